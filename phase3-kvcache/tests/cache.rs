//! However a sequence is cut into chunks, the cache gives what recomputing gives.

use std::path::PathBuf;
use std::sync::OnceLock;

use gptoss_reference::{Check, Limit, RopeMode};
use phase1_loading::Checkpoint;
use phase1_loading::synthetic::SyntheticModel;
use phase2_forward::{Chunk, ComputeDevice, Engine, GptOss, LogitsFor, NoProbe, Recompute};
use phase3_kvcache::Cached;
use proptest::prelude::*;

const WINDOW: usize = 12;

/// A fresh random model whose window is short enough to wrap several times.
fn model() -> GptOss {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("model.gguf");
        let nano = SyntheticModel::preset("nano").expect("a preset");
        let model = SyntheticModel { sliding_window: WINDOW, layers: 3, ..nano };
        model.write(&path, std::process::id().into(), &mut |_, _| ()).expect("written");
        (directory, path)
    });
    let checkpoint = Checkpoint::open(path).expect("opens");
    GptOss::load(&checkpoint, ComputeDevice::cpu("a test"), RopeMode::Exact, &mut |_, _| ()).expect("loads")
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn chunks_equal_the_whole(
        tokens in prop::collection::vec(0u32..1000, 1..70),
        lengths in prop::collection::vec(1usize..30, 1..6),
    ) {
        let whole = logits(&mut Recompute::new(model()), &tokens, &[tokens.len()]);
        let chunked = logits(&mut Cached::new(model()), &tokens, &lengths);
        let check = Check::values("random", "logits", &whole, &chunked, Limit::F32);
        prop_assert!(check.passed(), "{check:?}");
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
            let (mut positions, keys, values) = engine.cache(4, layer).expect("cached");
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
        assert!(check.passed(), "{lengths:?}: {check:?}");
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
            assert_eq!(one.expect("logits").into_data(), other.expect("logits").into_data());
        }
    }
}
