//! Invalid files: inconsistent ones are refused with an error that names the file, the part, what was expected and what was found; a
//! flipped bit never causes a panic.

use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use gptoss_reference::Case;
use phase1_loading::{Checkpoint, LoadError};
use proptest::prelude::*;

fn model() -> Vec<u8> {
    let case = Case::committed().into_iter().find(|case| case.name == "ties").expect("a small case");
    std::fs::read(case.model()).expect("the case's model")
}

fn open(file: Vec<u8>) -> Result<Checkpoint, LoadError> {
    Checkpoint::from_bytes("lying.gguf", Bytes::from(file))
}

/// The message of the refusal.
fn refusal(file: Vec<u8>) -> String {
    match open(file) {
        Ok(_) => panic!("the file was accepted"),
        Err(error) => error.to_string(),
    }
}

/// The position after `name` in the file. The name is found together with its length, which is stored before it.
fn after(file: &[u8], name: &str) -> usize {
    let mut needle = (name.len() as u64).to_le_bytes().to_vec();
    needle.extend(name.as_bytes());
    let at = file.windows(needle.len()).position(|window| window == needle).expect("the name is in the file");
    at + needle.len()
}

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = model();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

const MATRIX: &str = "blk.0.attn_q.weight";

#[test]
fn unmodified_file_is_accepted() {
    assert!(open(model()).is_ok());
}

#[test]
fn inconsistent_headers_are_refused_by_name() {
    let file = model();
    // A description consists of: name, number of dimensions (4 bytes), dimensions (8 bytes each), type (4), offset (8).
    let description = after(&file, MATRIX);
    // A metadata entry consists of: key, type (4 bytes), value.
    let value = |key: &str| after(&file, key) + 4;
    let renamed = {
        let at = after(&file, MATRIX) - MATRIX.len();
        patched(at, b"blk.0.attn_Q.weight")
    };
    let lies = [
        ("magic", patched(0, b"GGML")),
        ("version 2", patched(4, &2u32.to_le_bytes())),
        ("big-endian", patched(4, &3u32.to_be_bytes())),
        ("too many tensors", patched(8, &u64::MAX.to_le_bytes())),
        ("too many metadata entries", patched(16, &u64::MAX.to_le_bytes())),
        ("missing tensor", renamed),
        ("no dimensions", patched(description, &0u32.to_le_bytes())),
        ("five dimensions", patched(description, &5u32.to_le_bytes())),
        ("other shape", patched(description + 12, &32u64.to_le_bytes())),
        ("zero dimension", patched(description + 4, &0u64.to_le_bytes())),
        ("overflowing shape", patched(description + 12, &(u64::MAX / 2).to_le_bytes())),
        ("unknown type", patched(description + 20, &77u32.to_le_bytes())),
        ("unaligned offset", patched(description + 24, &1u64.to_le_bytes())),
        ("overlapping offset", patched(description + 24, &0u64.to_le_bytes())),
        ("offset past the end", patched(description + 24, &(1u64 << 40).to_le_bytes())),
        ("overflowing offset", patched(description + 24, &(u64::MAX - 31).to_le_bytes())),
        ("other architecture", patched(value("general.architecture") + 8, b"gpt-osz")),
        ("experts do not fit", patched(value("gpt-oss.expert_used_count"), &99u32.to_le_bytes())),
        ("heads do not divide", patched(value("gpt-oss.attention.head_count_kv"), &3u32.to_le_bytes())),
        ("no layers", patched(value("gpt-oss.block_count"), &0u32.to_le_bytes())),
        ("absurdly many layers", patched(value("gpt-oss.block_count"), &9_999_999u32.to_le_bytes())),
        ("fewer layers than tensors", patched(value("gpt-oss.block_count"), &1u32.to_le_bytes())),
        ("more layers than tensors", patched(value("gpt-oss.block_count"), &3u32.to_le_bytes())),
        ("epsilon is NaN", patched(value("gpt-oss.attention.layer_norm_rms_epsilon"), &f32::NAN.to_le_bytes())),
        ("long text", patched(value("general.architecture"), &(1u64 << 50).to_le_bytes())),
        ("long array", patched(value("tokenizer.ggml.tokens") + 4, &(1u64 << 60).to_le_bytes())),
        ("array of arrays", patched(value("tokenizer.ggml.tokens"), &9u32.to_le_bytes())),
        ("truncated data", file[..file.len() - 1000].to_vec()),
        ("empty", Vec::new()),
    ];
    let messages: Vec<String> = lies.into_iter().map(|(lie, file)| format!("{lie}: {}", refusal(file))).collect();
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn empty_and_missing_files_and_folders_are_refused() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let error = Checkpoint::open(file.path()).err().expect("refused").to_string();
    assert!(error.contains("an empty file"), "{error}");
    let missing = PathBuf::from("no-such-model.gguf");
    let error = Checkpoint::open(&missing).err().expect("refused").to_string();
    assert!(error.starts_with("no-such-model.gguf cannot be read"), "{error}");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let error = Checkpoint::open(folder.path()).err().expect("refused").to_string();
    assert!(error.ends_with(": folder: expected a .gguf file or a config.json, found neither"), "{error}");
}

#[test]
fn check_finds_a_scale_of_255() {
    let clean = open(model()).expect("accepted");
    let name = "blk.0.ffn_up_exps.weight";
    let tensor = clean.tensor(name);
    let file = model();
    let at = file.windows(tensor.bytes()).position(|window| *window == tensor.packed()[..]).expect("in the file");
    let damaged = open(patched(at + 17 * 3, &[255])).expect("opening reads no weights");
    let error = phase1_loading::check_scales(&damaged.path, name, damaged.tensor(name)).expect_err("refused");
    assert!(error.to_string().contains(name) && error.to_string().contains("block 3"), "{error}");
    assert!(phase1_loading::check_values(&clean.path, name, tensor).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A file that lacks more than its last 64 bytes is refused: only padding, which is shorter, may follow the data of the last tensor.
    #[test]
    fn a_truncated_file_is_refused(share in 0.0f64..1.0) {
        let file = model();
        let len = ((file.len() - 64) as f64 * share) as usize;
        prop_assert!(open(file[..len].to_vec()).is_err());
    }

    /// A header with a flipped bit gives an error or a checkpoint, never a panic. If a checkpoint opens, building its tokenizer and
    /// decoding its weights do not panic either.
    #[test]
    fn a_flipped_bit_never_panics(at in 0usize..12_000, bit in 0u8..8) {
        let mut file = model();
        file[at] ^= 1 << bit;
        if let Ok(checkpoint) = open(file) {
            let _ = checkpoint.tokenizer().map(|tokenizer| tokenizer.encode_with_control("<|start|>a test"));
            for tensor in checkpoint.tensors.values() {
                prop_assert_eq!(tensor.to_f32().len(), tensor.shape.iter().product::<usize>());
            }
        }
    }
}

/// Checks only that a file opens by its path; which bytes were read cannot be seen here.
#[test]
fn opening_maps_the_file_without_reading_it() {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&model()).expect("written");
    let checkpoint = Checkpoint::open(file.path()).expect("accepted");
    assert_eq!(checkpoint.path, file.path());
    assert_eq!(checkpoint.tensor("output_norm.weight").shape, [32]);
}
