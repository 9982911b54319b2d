//! Checks that memory plans count weights in the form in which engines store them.

use gptoss_reference::{Case, Folder};
use phase1_loading::Checkpoint;
use phase3_kvcache::CacheType;
use phase4_profiling::{EngineSetup, MemoryKind, MemoryPlan};

fn plan(checkpoint: &Checkpoint, phase: u8, on_gpu: bool) -> MemoryPlan {
    let (cache, context, chunk) = (CacheType::F32, 64, 16);
    MemoryPlan::new(checkpoint, EngineSetup { phase, on_gpu, cache, pool: None, context, chunk, shortlist: 0 })
}

/// Bytes in one place of the parts whose name begins with `what`.
fn bytes(plan: &MemoryPlan, what: &str, place: MemoryKind) -> u64 {
    let parts = plan.parts.iter().filter(|part| part.place == place && part.what.starts_with(what));
    parts.map(|part| part.bytes).sum()
}

/// Number of values of all matrices in this format, except the embedding.
fn values(checkpoint: &Checkpoint, format: &str) -> u64 {
    let matrices = checkpoint.tensors.iter().filter(|(name, tensor)| {
        name.ends_with("weight")
            && tensor.shape.len() > 1
            && !name.starts_with("token_embd")
            && tensor.format.name() == format
    });
    matrices.map(|(_, tensor)| (tensor.rows() * tensor.row_len()) as u64).sum()
}

fn folder(name: &str) -> Checkpoint {
    let folder = Folder::committed().into_iter().find(|folder| folder.name == name).expect("a folder");
    Checkpoint::open(&folder.path).expect("opens")
}

#[test]
fn memory_plan_counts_unpacked_and_copied_weights() {
    let quantized = folder("mlx-q8");
    let (affine, experts) = (values(&quantized, "MLX8/64"), values(&quantized, "MXFP4"));
    assert!(affine > 0 && experts > 0);
    // Phase 5 unpacks formats that its kernels do not support, and joins separate codes and scales.
    let fast = plan(&quantized, 5, false);
    assert_eq!(bytes(&fast, "weights MLX8/64 as F32", MemoryKind::Host), 4 * affine);
    assert_eq!(bytes(&fast, "weights MXFP4, copied", MemoryKind::Host), experts / 32 * 17);
    assert_eq!(bytes(&fast, "weights", MemoryKind::Mapped), 0);
    // Phases 2 and 3 read the rows of the file.
    let plain = plan(&quantized, 3, false);
    assert_eq!(bytes(&plain, "weights", MemoryKind::Host), 0);
    assert_eq!(bytes(&plain, "weights MXFP4", MemoryKind::Mapped), experts / 32 * 17);
    for phase in [3, 5] {
        let on_gpu = plan(&quantized, phase, true);
        assert_eq!(bytes(&on_gpu, "weights MXFP4", MemoryKind::Device), experts / 32 * 17);
        let embedding = (quantized.config.vocab * quantized.config.hidden) as u64;
        let expected = 4 * (affine + if phase == 5 { embedding } else { 0 });
        assert_eq!(bytes(&on_gpu, "weights MLX8/64 as F32", MemoryKind::Device), expected, "phase {phase}");
        assert_eq!(bytes(&on_gpu, "embedding", MemoryKind::Mapped) > 0, phase == 3);
    }
    // A GGUF file's rows are already in the layout of the kernels.
    let gguf = Checkpoint::open(&Case::committed()[0].model()).expect("opens");
    let fast = plan(&gguf, 5, false);
    assert_eq!(bytes(&fast, "weights MXFP4", MemoryKind::Mapped), values(&gguf, "MXFP4") / 32 * 17);
    assert_eq!(bytes(&fast, "weights", MemoryKind::Host), 0);
}

#[test]
fn memory_plan_uses_the_given_cache_size() {
    let gguf = Checkpoint::open(&Case::committed()[0].model()).expect("opens");
    let setup = EngineSetup {
        phase: 5,
        on_gpu: true,
        cache: CacheType::F16,
        pool: Some(12_345),
        context: 64,
        chunk: 16,
        shortlist: 0,
    };
    assert_eq!(bytes(&MemoryPlan::new(&gguf, setup), "cache", MemoryKind::Device), 12_345);
}
