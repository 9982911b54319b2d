//! Logits computed with a cache equal recomputed ones, however a sequence is cut into chunks.

mod model;

use std::ops::Range;

use burn::tensor::Tensor;
use gptoss_reference::{Check, Limit};
use phase1_loading::{AttentionKind, Checkpoint};
use phase2_forward::{
    BadRequest, Draw, Engine, EngineError, KvCache, NoProbe, Outcome, RecomputeEngine, SequenceId, Snapshot, Snapshots,
    Want, Work,
};
use phase3_kvcache::{CacheLayout, CacheType, CachedEngine, ReadCache};
use proptest::prelude::*;
use synthetic::SyntheticModel;

use model::{WINDOW, load, model, weights, written};

/// Logits of every token, fed in chunks of these lengths; the last length is repeated.
fn logits(engine: &mut dyn Engine, mut tokens: &[u32], lengths: &[usize]) -> Vec<f32> {
    let mut all = Vec::new();
    let mut lengths = lengths.iter().chain(std::iter::repeat(lengths.last().expect("a length")));
    while !tokens.is_empty() {
        let (chunk, rest) = tokens.split_at(tokens.len().min(*lengths.next().expect("endless")));
        all.extend(engine.all_logits(0, chunk).expect("a step"));
        tokens = rest;
    }
    engine.release(0);
    all
}

/// Feeds tokens without requesting a result.
fn feed(engine: &mut dyn Engine, sequence: SequenceId, tokens: &[u32]) {
    let outcomes = engine.step(&[Work::tokens(sequence, tokens, Want::Nothing)]).expect("a step");
    assert_eq!(outcomes, [Outcome::Fed]);
}

/// A cache type, and the allowed difference of its logits from recomputed ones, which need no cache.
const LOSSES: [(CacheType, Limit); 2] =
    [(CacheType::F16, Limit { rms: 2e-3, max: 2e-2 }), (CacheType::Q8_0, Limit { rms: 3e-2, max: 2e-1 })];

fn with_cache(kind: CacheType) -> CachedEngine {
    CachedEngine::with_cache(model(), kind).expect("heads of 32 fit any kind")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However a sequence is cut, logits with a packed cache are close to recomputed ones.
    #[test]
    fn packed_cache_logits_are_close_to_recomputed(
        tokens in prop::collection::vec(0u32..1000, 1..70),
        lengths in prop::collection::vec(1usize..30, 1..6),
    ) {
        let whole = logits(&mut RecomputeEngine::new(model()), &tokens, &[tokens.len()]);
        for (kind, limit) in LOSSES {
            let chunked = logits(&mut with_cache(kind), &tokens, &lengths);
            let check = Check::values("random", kind.name(), &whole, &chunked, limit);
            prop_assert!(check.passed(), "{check:?}, {}", weights());
        }
    }

    /// A sequence that is saved and restored at any point, even over another sequence, gives bit-identical logits.
    #[test]
    fn restored_sequence_continues_bit_identically(
        tokens in prop::collection::vec(0u32..1000, 2..60),
        share in 0.0f64..1.0,
        kind in prop::sample::select(CacheType::ALL.to_vec()),
    ) {
        let cut = 1 + ((tokens.len() - 2) as f64 * share) as usize;
        let (before, after) = tokens.split_at(cut);
        let mut first = with_cache(kind);
        feed(&mut first, 1, before);
        let snapshot = first.save(1).expect("known");
        let mut second = with_cache(kind);
        feed(&mut second, 2, &[5, 6]);
        second.restore(2, &snapshot).expect("the same model");
        prop_assert_eq!(second.length(2), cut);
        let rest = |engine: &mut CachedEngine, sequence| engine.all_logits(sequence, after).expect("a step");
        prop_assert_eq!(rest(&mut first, 1), rest(&mut second, 2), "{}", weights());
    }

    #[test]
    fn chunked_prefill_equals_one_step(
        tokens in prop::collection::vec(0u32..1000, 1..70),
        lengths in prop::collection::vec(1usize..30, 1..6),
    ) {
        let whole = logits(&mut RecomputeEngine::new(model()), &tokens, &[tokens.len()]);
        let chunked = logits(&mut CachedEngine::new(model()), &tokens, &lengths);
        let check = Check::values("random", "logits", &whole, &chunked, Limit::F32);
        prop_assert!(check.passed(), "{check:?}, {}", weights());
    }

    /// A ring (the cache of a sliding layer) holds exactly the last `WINDOW` positions and a full layer all positions, with the
    /// same keys and values as one forward pass over the whole sequence computes.
    #[test]
    fn ring_equals_the_end_of_a_full_cache(
        tokens in prop::collection::vec(0u32..1000, 1..60),
        length in 1usize..40,
    ) {
        let mut engine = CachedEngine::new(model());
        for tokens in tokens.chunks(length) {
            feed(&mut engine, 4, tokens);
        }
        let mut whole = Recorder::default();
        model().forward(&tokens, 0, 0..0, &mut whole, &mut NoProbe);
        for layer in 0..3 {
            let (positions, keys, values) = engine.read_cache(4, layer).expect("cached");
            let (all_keys, all_values) = &whole.layers[layer];
            for (what, cached, all) in [("keys", keys, all_keys), ("values", values, all_values)] {
                prop_assert_eq!(cached.dims(), [2, positions.len(), 32]);
                let row = |head: usize, position: usize| &all[(head * tokens.len() + position) * 32..][..32];
                let rows_of = |head| positions.iter().flat_map(move |&position| row(head, position));
                let expected: Vec<f32> = (0..2).flat_map(rows_of).copied().collect();
                let label = format!("{what} of layer {layer}");
                let check = Check::values("random", label, &expected, &on_host(cached), Limit::F32);
                prop_assert!(check.passed(), "{check:?}, {}", weights());
            }
            let mut sorted = positions;
            sorted.sort_unstable();
            let first = if layer % 2 == 0 { tokens.len().saturating_sub(WINDOW) } else { 0 };
            prop_assert_eq!(sorted, (first..tokens.len()).collect::<Vec<_>>());
        }
    }
}

/// A cache that records the keys and values of a forward pass over a whole sequence, each `[kv_heads, positions, head_dim]`, by layer.
#[derive(Default)]
struct Recorder {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

impl KvCache for Recorder {
    fn positions(&self, _: AttentionKind, new: Range<usize>) -> Vec<usize> {
        new.collect()
    }

    fn extend(&mut self, layer: usize, keys: Tensor<3>, values: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        assert_eq!(layer, self.layers.len());
        self.layers.push((on_host(keys.clone()), on_host(values.clone())));
        (keys, values)
    }
}

fn on_host(tensor: Tensor<3>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32")
}

/// A sequence longer than the first capacity of a full layer's buffer, which then grows.
#[test]
fn a_full_layer_grows() {
    let tokens: Vec<u32> = (0..300).map(|i| i * 7 % 1000).collect();
    let whole = logits(&mut RecomputeEngine::new(model()), &tokens, &[300]);
    for lengths in [&[200, 55, 1][..], &[300], &[256, 1], &[257]] {
        let chunked = logits(&mut CachedEngine::new(model()), &tokens, lengths);
        let check = Check::values("long", "logits", &whole, &chunked, Limit::F32);
        assert!(check.passed(), "{lengths:?}: {check:?}, {}", weights());
    }
}

/// A ring larger than a buffer's first capacity grows to its window, and then wraps; also after saving and restoring.
#[test]
fn a_wide_ring_grows() {
    let (_directory, path) = written(300);
    let checkpoint = Checkpoint::open(&path).expect("opens");
    let tokens: Vec<u32> = (0..700).map(|i| i * 7 % 1000).collect();
    let whole = logits(&mut RecomputeEngine::new(load(&checkpoint)), &tokens, &[700]);
    for lengths in [&[200, 55, 1, 44, 1, 100][..], &[700], &[290, 30]] {
        let chunked = logits(&mut CachedEngine::new(load(&checkpoint)), &tokens, lengths);
        let check = Check::values("wide", "logits", &whole, &chunked, Limit::F32);
        assert!(check.passed(), "{lengths:?}: {check:?}, {}", weights());
    }
    for cut in [100, 280, 300, 301, 650] {
        let (mut first, mut second) = (CachedEngine::new(load(&checkpoint)), CachedEngine::new(load(&checkpoint)));
        feed(&mut first, 0, &tokens[..cut]);
        second.restore(0, &first.save(0).expect("known")).expect("the same model");
        let rest = |engine: &mut CachedEngine| engine.all_logits(0, &tokens[cut..]).expect("a step");
        assert_eq!(rest(&mut first), rest(&mut second), "cut at {cut}, {}", weights());
    }
}

#[test]
fn sequences_of_a_batch_are_independent() {
    let mut together = CachedEngine::new(model());
    let mut alone = CachedEngine::new(model());
    for step in 0..20 {
        let (a, b) = ([step, step + 1], [900 - step]);
        let work = [Work::tokens(1, &a, Want::LastLogits), Work::tokens(2, &b, Want::LastLogits)];
        let both = together.step(&work).expect("a batch");
        let expected = [alone.last_logits(1, &a), alone.last_logits(2, &b)];
        for (one, other) in both.into_iter().zip(expected) {
            assert_eq!(one.logits().expect("logits"), other.expect("logits"), "{}", weights());
        }
    }
}

#[test]
fn packed_caches_are_smaller() {
    let tokens: Vec<u32> = (0..700).map(|i| i * 7 % 1000).collect();
    let bytes = |kind| {
        let mut engine = with_cache(kind);
        feed(&mut engine, 0, &tokens);
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
fn snapshots_of_other_engines_and_models_are_refused() {
    let mut engine = with_cache(CacheType::F16);
    feed(&mut engine, 0, &[1, 2, 3]);
    let good = engine.save(0).expect("known");
    // The sequence that a refused restore must not change.
    feed(&mut engine, 1, &[4, 5]);
    let mut untouched = with_cache(CacheType::F16);
    feed(&mut untouched, 1, &[4, 5]);
    let mut refusal = |snapshot: &Snapshot| match engine.restore(1, snapshot) {
        Err(EngineError::BadRequest(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let mut fewer = good.clone();
    fewer.items.pop();
    let mut longer = good.clone();
    longer.items[0] = [&longer.items[0][..], &[0; 4]].concat().into();
    for wrong in [
        Snapshot { length: 4, ..good.clone() },
        Snapshot { length: 0, ..good.clone() },
        Snapshot { length: usize::MAX, ..good.clone() },
        fewer,
        longer,
        with_f32_cache(&[1, 2, 3]),
    ] {
        let found = refusal(&wrong);
        assert!(matches!(found, BadRequest::WrongSnapshot(_)), "{found:?}");
        assert!(found.to_string().starts_with("the saved sequence does not fit this model's cache: "), "{found}");
    }
    let other = refusal(&Snapshot { engine: "phase 5 on the CPU".into(), ..good.clone() });
    assert_eq!(other, BadRequest::OtherEngine { found: "phase 5 on the CPU".into(), expected: "phase 3" });
    assert_eq!(other.to_string(), "a sequence saved by phase 5 on the CPU cannot be restored by phase 3");
    assert_eq!(engine.last_logits(1, &[6]).expect("logits"), untouched.last_logits(1, &[6]).expect("logits"));
    engine.restore(1, &good).expect("a snapshot of this engine");
    assert_eq!(engine.length(1), 3);
    assert!(matches!(engine.save(9), Err(EngineError::BadRequest(BadRequest::UnknownSequence(9)))));
}

/// The snapshot that an engine with an f32 cache gives of a sequence.
fn with_f32_cache(tokens: &[u32]) -> Snapshot {
    let mut engine = with_cache(CacheType::F32);
    feed(&mut engine, 0, tokens);
    engine.save(0).expect("known")
}

/// Heads of 16 values are half of a q8_0 block, but whole words of f16.
#[test]
fn cache_format_that_does_not_fit_the_heads_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    let model = SyntheticModel { head_dim: 16, ..SyntheticModel::preset("nano").expect("a preset") };
    model.write(&path, 0, &mut |_, _| ()).expect("written");
    let checkpoint = Checkpoint::open(&path).expect("opens");
    for kind in [CacheType::F32, CacheType::F16] {
        assert!(CachedEngine::with_cache(load(&checkpoint), kind).is_ok(), "{kind}");
    }
    let refused = CachedEngine::with_cache(load(&checkpoint), CacheType::Q8_0).err().expect("refused").to_string();
    assert_eq!(refused, "a q8_0 cache needs heads of a multiple of 32 values, but the model's have 16; use --kv f16");
}

/// The drawn token is not part of a snapshot, and is discarded when its sequence is replaced.
#[test]
fn restored_sequence_has_no_drawn_token() {
    let mut engine = CachedEngine::new(model());
    let work = Work::tokens(0, &[1, 2, 3], Want::Token(Draw::GREEDY));
    engine.step(&[work]).expect("a step").remove(0).token().expect("a token");
    let snapshot = engine.snapshots().expect("phase 3 has snapshots").save(0).expect("known");
    engine.snapshots().expect("phase 3 has snapshots").restore(0, &snapshot).expect("a snapshot of this engine");
    let refused = engine.step(&[Work::decode(0, Draw::GREEDY)]).expect_err("nothing was drawn");
    assert!(matches!(refused, EngineError::BadRequest(BadRequest::NothingDrawn(0))), "{refused}");
    assert_eq!(engine.length(0), 3);
}
