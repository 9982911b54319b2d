//! However a sequence is cut into chunks, the cache gives what recomputing gives.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gptoss_reference::{Check, Limit};
use phase1_loading::{AttentionKind, Checkpoint};
use phase2_forward::{Chunk, ComputeDevice, Engine, GptOss, LogitsFor, NoProbe, Recompute, Snapshot};
use phase3_kvcache::{CacheLayout, CacheType, Cached, ReadCache};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use synthetic::SyntheticModel;

const WINDOW: usize = 12;

/// A fresh random model whose window is short enough to wrap several times.
fn model() -> GptOss {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| written(WINDOW));
    load(path)
}

fn written(window: usize) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    let nano = SyntheticModel::preset("nano").expect("a preset");
    // All experts for every token: a router would turn a small loss in a cache into another choice.
    let model = SyntheticModel { sliding_window: window, layers: 3, experts: 4, experts_per_token: 4, ..nano };
    model.write(&path, seed(), &mut |_, _| ()).expect("written");
    (directory, path)
}

/// The seed of all weights: `PROPTEST_RNG_SEED`, or a new one in every run.
fn seed() -> u64 {
    match ProptestConfig::default().rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => std::process::id().into(),
    }
}

/// What a failure says about the weights.
fn weights() -> String {
    format!("weights of PROPTEST_RNG_SEED={}", seed())
}

fn load(path: &Path) -> GptOss {
    let checkpoint = Checkpoint::open(path).expect("opens");
    GptOss::load(&checkpoint, ComputeDevice::cpu("a test"), &mut |_, _| ()).expect("loads")
}

/// Logits of every token, fed in chunks of these lengths, the last one again and again.
fn logits(engine: &mut dyn Engine, mut tokens: &[u32], lengths: &[usize]) -> Vec<f32> {
    let mut all = Vec::new();
    let mut lengths = lengths.iter().chain(std::iter::repeat(lengths.last().expect("a length")));
    while !tokens.is_empty() {
        let (chunk, rest) = tokens.split_at(tokens.len().min(*lengths.next().expect("endless")));
        let chunk = Chunk { sequence: 0, tokens: chunk, logits: LogitsFor::EveryToken };
        let rows = engine.step(&[chunk], &mut NoProbe).expect("a step").remove(0).expect("logits");
        all.extend(rows.into_data().try_to_vec::<f32>().expect("f32"));
        tokens = rest;
    }
    engine.release(0);
    all
}

/// A cache of this kind, and how far it may take the logits from those of an f32 one.
const LOSSES: [(CacheType, Limit); 2] =
    [(CacheType::F16, Limit { rms: 2e-3, max: 2e-2 }), (CacheType::Q8_0, Limit { rms: 3e-2, max: 2e-1 })];

fn with_cache(kind: CacheType) -> Cached {
    Cached::with_cache(model(), kind).expect("heads of 32 fit any kind")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However a sequence is cut, a packed cache stays close to no cache at all.
    #[test]
    fn packed_caches_lose_little(
        tokens in prop::collection::vec(0u32..1000, 1..70),
        lengths in prop::collection::vec(1usize..30, 1..6),
    ) {
        let whole = logits(&mut Recompute::new(model()), &tokens, &[tokens.len()]);
        for (kind, limit) in LOSSES {
            let chunked = logits(&mut with_cache(kind), &tokens, &lengths);
            let check = Check::values("random", kind.name(), &whole, &chunked, limit);
            prop_assert!(check.passed(), "{check:?}, {}", weights());
        }
    }

    /// Saved and restored anywhere, even into an engine that had another sequence there, the logits are the same to the bit.
    #[test]
    fn a_restored_sequence_goes_on(
        tokens in prop::collection::vec(0u32..1000, 2..60),
        share in 0.0f64..1.0,
        kind in prop::sample::select(CacheType::ALL.to_vec()),
    ) {
        let cut = 1 + ((tokens.len() - 2) as f64 * share) as usize;
        let (before, after) = tokens.split_at(cut);
        let mut first = with_cache(kind);
        first.step(&[Chunk { sequence: 1, tokens: before, logits: LogitsFor::Nothing }], &mut NoProbe).expect("a step");
        let snapshot = first.save(1).expect("known");
        let mut second = with_cache(kind);
        second.step(&[Chunk { sequence: 2, tokens: &[5, 6], logits: LogitsFor::Nothing }], &mut NoProbe).expect("a step");
        second.restore(2, &snapshot).expect("the same model");
        prop_assert_eq!(second.length(2), cut);
        let rest = |engine: &mut Cached, sequence| -> Vec<f32> {
            let chunk = Chunk { sequence, tokens: after, logits: LogitsFor::EveryToken };
            let rows = engine.step(&[chunk], &mut NoProbe).expect("a step").remove(0).expect("logits");
            rows.into_data().try_to_vec().expect("f32")
        };
        prop_assert_eq!(rest(&mut first, 1), rest(&mut second, 2), "{}", weights());
    }

    #[test]
    fn chunks_equal_the_whole(
        tokens in prop::collection::vec(0u32..1000, 1..70),
        lengths in prop::collection::vec(1usize..30, 1..6),
    ) {
        let whole = logits(&mut Recompute::new(model()), &tokens, &[tokens.len()]);
        let chunked = logits(&mut Cached::new(model()), &tokens, &lengths);
        let check = Check::values("random", "logits", &whole, &chunked, Limit::F32);
        prop_assert!(check.passed(), "{check:?}, {}", weights());
    }

    /// A ring holds exactly the last W positions and a full layer all, with equal keys where both hold them.
    #[test]
    fn the_ring_is_the_end_of_a_full_cache(
        tokens in prop::collection::vec(0u32..1000, 1..60),
        length in 1usize..40,
    ) {
        let mut engine = Cached::new(model());
        for tokens in tokens.chunks(length) {
            engine.step(&[Chunk { sequence: 4, tokens, logits: LogitsFor::Nothing }], &mut NoProbe).expect("a step");
        }
        for layer in 0..3 {
            let (mut positions, keys, values) = engine.read_cache(4, layer).expect("cached");
            prop_assert_eq!(keys.dims(), [2, positions.len(), 32]);
            prop_assert_eq!(values.dims(), keys.dims());
            positions.sort_unstable();
            let first = if layer % 2 == 0 { tokens.len().saturating_sub(WINDOW) } else { 0 };
            prop_assert_eq!(positions, (first..tokens.len()).collect::<Vec<_>>());
        }
    }
}

/// Past the first capacity of a full layer's buffer, which then grows.
#[test]
fn a_full_layer_grows() {
    let tokens: Vec<u32> = (0..300).map(|i| i * 7 % 1000).collect();
    let whole = logits(&mut Recompute::new(model()), &tokens, &[300]);
    for lengths in [&[200, 55, 1][..], &[300], &[256, 1], &[257]] {
        let chunked = logits(&mut Cached::new(model()), &tokens, lengths);
        let check = Check::values("long", "logits", &whole, &chunked, Limit::F32);
        assert!(check.passed(), "{lengths:?}: {check:?}, {}", weights());
    }
}

/// A ring wider than a buffer's first capacity grows to its window, and then turns; saved and restored too.
#[test]
fn a_wide_ring_grows() {
    let (_directory, path) = written(300);
    let tokens: Vec<u32> = (0..700).map(|i| i * 7 % 1000).collect();
    let whole = logits(&mut Recompute::new(load(&path)), &tokens, &[700]);
    for lengths in [&[200, 55, 1, 44, 1, 100][..], &[700], &[290, 30]] {
        let chunked = logits(&mut Cached::new(load(&path)), &tokens, lengths);
        let check = Check::values("wide", "logits", &whole, &chunked, Limit::F32);
        assert!(check.passed(), "{lengths:?}: {check:?}, {}", weights());
    }
    for cut in [100, 280, 300, 301, 650] {
        let (mut first, mut second) = (Cached::new(load(&path)), Cached::new(load(&path)));
        let chunk = |tokens, logits| [Chunk { sequence: 0, tokens, logits }];
        first.step(&chunk(&tokens[..cut], LogitsFor::Nothing), &mut NoProbe).expect("a step");
        second.restore(0, &first.save(0).expect("known")).expect("the same model");
        let rest = |engine: &mut Cached| -> Vec<f32> {
            let rows =
                engine.step(&chunk(&tokens[cut..], LogitsFor::EveryToken), &mut NoProbe).expect("a step").remove(0);
            rows.expect("logits").into_data().try_to_vec().expect("f32")
        };
        assert_eq!(rest(&mut first), rest(&mut second), "cut at {cut}, {}", weights());
    }
}

#[test]
fn sequences_of_a_batch_do_not_meet() {
    let mut together = Cached::new(model());
    let mut alone = Cached::new(model());
    for step in 0..20 {
        let (a, b) = ([step, step + 1], [900 - step]);
        let chunk = |sequence, tokens| Chunk { sequence, tokens, logits: LogitsFor::LastToken };
        let both = together.step(&[chunk(1, &a), chunk(2, &b)], &mut NoProbe).expect("a batch");
        let first = alone.step(&[chunk(1, &a)], &mut NoProbe).expect("a step").remove(0);
        let second = alone.step(&[chunk(2, &b)], &mut NoProbe).expect("a step").remove(0);
        for (one, other) in both.into_iter().zip([first, second]) {
            assert_eq!(one.expect("logits").into_data(), other.expect("logits").into_data(), "{}", weights());
        }
    }
}

#[test]
fn packed_caches_are_smaller() {
    let tokens: Vec<u32> = (0..700).map(|i| i * 7 % 1000).collect();
    let bytes = |kind| {
        let mut engine = with_cache(kind);
        engine
            .step(&[Chunk { sequence: 0, tokens: &tokens, logits: LogitsFor::Nothing }], &mut NoProbe)
            .expect("a step");
        let saved: usize = engine.save(0).expect("known").items.iter().map(|item| item.len()).sum();
        assert_eq!(saved, (700 + 2 * WINDOW) * 2 * 2 * kind.row_bytes(32), "{kind}");
        let layout = CacheLayout::new(engine.config(), kind);
        assert_eq!(saved as u64, layout.occupied_bytes(700), "{kind}");
        let reserved = [AttentionKind::Full, AttentionKind::Sliding].map(|of| layout.reserved_bytes(of, 700));
        assert_eq!(engine.cache_bytes(0) as u64, reserved.iter().sum::<u64>(), "{kind}");
        engine.cache_bytes(0)
    };
    let [f32, f16, q8_0] = CacheType::ALL.map(bytes);
    // A full layer of 700 positions, with room for 1024, and two rings, keys and values of 2 heads of 32.
    assert_eq!(f32, (1024 + 2 * WINDOW) * 2 * 2 * 32 * 4);
    assert_eq!(f16 * 2, f32);
    assert_eq!(q8_0 * 2, f16);
    for head_dim in [32, 64, 96, 128] {
        assert_eq!(CacheType::Q8_0.row_bytes(head_dim) * 2, CacheType::F16.row_bytes(head_dim));
    }
}

#[test]
fn what_another_model_saved_is_refused() {
    let mut engine = with_cache(CacheType::F16);
    engine
        .step(&[Chunk { sequence: 0, tokens: &[1, 2, 3], logits: LogitsFor::Nothing }], &mut NoProbe)
        .expect("a step");
    let good = engine.save(0).expect("known");
    let mut refusal = |snapshot: &Snapshot| engine.restore(0, snapshot).expect_err("refused").to_string();
    let mut fewer = good.clone();
    fewer.items.pop();
    let refusals = [
        refusal(&Snapshot { length: 4, ..good.clone() }),
        refusal(&Snapshot { length: 0, ..good.clone() }),
        refusal(&Snapshot { length: usize::MAX, ..good.clone() }),
        refusal(&fewer),
    ];
    assert!(refusals.iter().all(|message| message.contains("saved sequence")), "{refusals:#?}");
    let other = refusal(&Snapshot { form: "phase 5 on the CPU".into(), ..good.clone() });
    assert_eq!(other, "a sequence saved by phase 5 on the CPU cannot be restored by phase 3");
    assert!(engine.restore(0, &good).is_ok());
    assert!(with_cache(CacheType::F32).restore(0, &good).is_err());
    assert!(Recompute::new(model()).restore(0, &good).is_err());
}
