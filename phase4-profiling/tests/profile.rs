//! A profile names every operation, accounts for the step's time, counts the bytes that a step reads, and shows a slowdown.

use std::time::Duration;

use phase1_loading::{AttentionKind, Checkpoint};
use phase2_forward::{
    Activation, ComputeDevice, Engine, EngineError, GptOss, Inspect, Operation, Outcome, Probe, RecomputeEngine, Span,
    Work, delegate_engine,
};
use phase3_kvcache::{CacheType, CachedEngine};
use phase4_profiling::report::compare;
use phase4_profiling::{Ceiling, Clock, CostModel, LAUNCH, Profile, READBACK, Recorder, TimedStep, Workload, run};
use synthetic::SyntheticModel;
use tempfile::TempDir;

/// An invented ceiling: these tests check structure, not speed.
fn ceiling() -> Ceiling {
    Ceiling {
        read_bandwidth: 1e10,
        f32_rate: 1e11,
        packed_rate: 1e11,
        machine: "none".into(),
        device: "none".into(),
        date: "2026-01-01".into(),
    }
}

fn nano() -> (TempDir, Checkpoint) {
    written(&SyntheticModel::preset("nano").unwrap())
}

fn written(model: &SyntheticModel) -> (TempDir, Checkpoint) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    model.write(&path, 3, &mut |_, _| ()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    (directory, checkpoint)
}

fn model(checkpoint: &Checkpoint, device: &ComputeDevice) -> GptOss {
    GptOss::load(checkpoint, device.clone(), &mut |_, _| ()).unwrap()
}

fn profile(checkpoint: &Checkpoint, engine: &mut dyn Inspect, device: &ComputeDevice, workload: Workload) -> Profile {
    let costs = CostModel::new(checkpoint, CacheType::F32);
    let mut recorder = Recorder::new(device, &costs);
    let (steps, clock) = run(engine, workload, 5, &mut recorder, &mut |_| ()).unwrap();
    Profile {
        model: "nano".into(),
        device: device.name.clone(),
        machine: "none".into(),
        date: "2026-01-01".into(),
        phase: 3,
        workload,
        clock,
        ceiling: ceiling(),
        steps,
    }
}

/// Name and layer of each operation of a step, in order.
fn operations(step: &TimedStep) -> Vec<(String, Option<usize>)> {
    let spans = step.spans.iter().filter(|span| span.name != LAUNCH && span.name != READBACK);
    spans.map(|span| (span.name.clone(), span.layer)).collect()
}

fn expected(layers: usize) -> Vec<(String, Option<usize>)> {
    let name = |operation: &Operation| operation.name().to_owned();
    let (before, rest) = Operation::ALL.split_at(2);
    let (inside, after) = rest.split_at(10);
    let of_layer = |layer| inside.iter().map(move |operation| (name(operation), Some(layer)));
    let mut expected: Vec<_> = before.iter().map(|operation| (name(operation), None)).collect();
    expected.extend((0..layers).flat_map(of_layer));
    expected.extend(after.iter().map(|operation| (name(operation), None)));
    expected
}

#[test]
fn every_phase_and_device_reports_the_same_operations() {
    let (_directory, checkpoint) = nano();
    for device in ComputeDevice::for_gates().unwrap() {
        let engines: [Box<dyn Inspect>; 2] = [
            Box::new(RecomputeEngine::new(model(&checkpoint, &device))),
            Box::new(CachedEngine::new(model(&checkpoint, &device))),
        ];
        for mut engine in engines {
            for workload in [(0, 1), (40, 1), (5, 3)]
                .map(|(depth, sequences)| Workload::Decode { depth, sequences })
                .into_iter()
                .chain([Workload::Prefill { tokens: 9 }])
            {
                let profile = profile(&checkpoint, &mut *engine, &device, workload);
                assert_eq!(profile.steps.len(), 5);
                for step in &profile.steps {
                    // These phases compute the sequences of a batch one after another.
                    let sequences = if let Workload::Decode { sequences, .. } = workload { sequences } else { 1 };
                    let expected = vec![expected(checkpoint.config.layers()); sequences].concat();
                    assert_eq!(operations(step), expected, "{workload:?} on {}", device.name);
                }
                let clock_fits = (profile.clock == Clock::Host) == device.is_cpu();
                assert!(clock_fits, "{:?} on {}", profile.clock, device.name);
            }
        }
    }
}

#[test]
fn spans_do_not_overlap_and_cover_the_step() {
    let (_directory, checkpoint) = nano();
    let device = ComputeDevice::cpu("the test runs there");
    let mut engine = CachedEngine::new(model(&checkpoint, &device));
    let profile = profile(&checkpoint, &mut engine, &device, Workload::Prefill { tokens: 64 });
    for step in &profile.steps {
        let mut end = 0.0;
        for span in &step.spans {
            assert!(span.start >= end - 1e-9 && span.duration >= 0.0, "{span:?} begins before {end}");
            end = span.start + span.duration;
        }
        assert!(end <= step.wall + 1e-9);
    }
    // Much time outside operations is taken only if other processes interrupt a step. They do not interrupt every step, so the best one is
    // checked.
    let of_operations = |step: &TimedStep| -> f64 {
        let operations = step.spans.iter().filter(|span| span.name != READBACK);
        operations.map(|span| span.duration).sum::<f64>() / step.wall
    };
    let best = profile.steps.iter().map(of_operations).fold(0.0, f64::max);
    assert!(best >= 0.95, "operations cover {best} of a step's time");
    let rows = profile.rows();
    assert!(rows.windows(2).all(|pair| pair[0].total >= pair[1].total), "the slowest first");
    let total: f64 = rows.iter().map(|row| row.total).sum();
    assert!((total + profile.unattributed() - profile.wall()).abs() < 1e-9);
}

/// Every weight that one token needs is read once: compares the bytes of the checkpoint's tensors with those of the operations.
#[test]
fn token_reads_each_needed_weight_once() {
    let (_directory, checkpoint) = nano();
    let config = &checkpoint.config;
    let costs = CostModel::new(&checkpoint, CacheType::F32);
    let weights: u64 = checkpoint
        .tensors
        .iter()
        .map(|(name, tensor)| {
            let bytes = tensor.bytes() as u64;
            match () {
                () if name.starts_with("token_embd") => bytes / config.vocab as u64,
                () if name.contains("_exps") => bytes * config.experts_per_token as u64 / config.experts as u64,
                () => bytes,
            }
        })
        .sum();
    let bytes = |sequences, depth| costs.step(sequences, 1, depth).iter().map(|work| work.bytes).sum::<u64>();
    let moved = bytes(1, 0);
    // All other bytes are activations: a few dozen rows per layer, and the logits.
    let widest = config.vocab.max(config.heads * config.head_dim).max(config.hidden).max(config.expert_width) as u64;
    let activations = moved - weights;
    assert!(moved > weights && activations < 4 * widest * 40 * config.layers() as u64, "{activations}");
    // Beyond the window, another token of each sequence adds one key and value in each full layer, and nothing else.
    let full = config.attention.iter().filter(|&&attention| attention == AttentionKind::Full).count();
    let position = (full * 2 * config.kv_heads * config.head_dim * 4) as u64;
    let depth = config.sliding_window;
    assert_eq!([1, 3].map(|n| bytes(n, depth + 1) - bytes(n, depth)), [position, 3 * position]);
}

/// Phase 2 has no cache: its cost model counts the keys and values that attention reads, in f32, but not their storage in a cache.
#[test]
fn engine_without_cache_has_no_append_cost() {
    let (_directory, checkpoint) = nano();
    let cached = CostModel::new(&checkpoint, CacheType::F32);
    let uncached = CostModel::new(&checkpoint, CacheType::F16).without_cache();
    let span = |operation, keys| Span { operation, layer: Some(1), tokens: 5, sequences: 1, keys };
    let append = span(Operation::CacheAppend, 0);
    assert_eq!((uncached.of(append).bytes, uncached.of(append).operations), (0, 0));
    assert!(cached.of(append).bytes > 0);
    let attention = span(Operation::Attention, 5);
    assert_eq!(uncached.of(attention).bytes, cached.of(attention).bytes);
}

#[test]
fn attention_cost_counts_pairs_inside_the_window() {
    let (_directory, checkpoint) = nano();
    let config = &checkpoint.config;
    let costs = CostModel::new(&checkpoint, CacheType::F16);
    let (window, width) = (config.sliding_window, config.heads * config.head_dim);
    let span = |layer, tokens, sequences, keys| Span {
        operation: Operation::Attention,
        layer: Some(layer),
        tokens,
        sequences,
        keys,
    };
    // Layer 0 has a sliding window, layer 1 has full attention.
    for (tokens, earlier) in [(1, 0), (1, 3 * window), (7, window - 3), (2 * window, 5)] {
        let pairs = |reach: usize| (0..tokens).map(|i| (earlier + i + 1).min(reach) as u64).sum::<u64>();
        let of = |layer| costs.of(span(layer, tokens, 1, earlier + tokens)).operations;
        assert_eq!(of(0), 4 * width as u64 * pairs(window), "{tokens} after {earlier}");
        assert_eq!(of(1), 4 * width as u64 * pairs(usize::MAX), "{tokens} after {earlier}");
        let three = costs.of(span(0, 3 * tokens, 3, earlier + tokens)).operations;
        assert_eq!(three, 3 * of(0), "the pairs of three sequences are counted separately");
    }
}

/// An engine whose down projection of the experts takes `delay` longer in every layer.
struct SlowDown {
    engine: CachedEngine,
    delay: Duration,
}

impl Engine for SlowDown {
    delegate_engine!(engine: config, capacity, length, submit, collect, fork, truncate, release);
}

impl Inspect for SlowDown {
    fn inspect(&mut self, work: &[Work<'_>], probe: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError> {
        self.engine.inspect(work, &mut DelayDown { probe, delay: self.delay })
    }
}

struct DelayDown<'a> {
    probe: &'a mut dyn Probe,
    delay: Duration,
}

impl Probe for DelayDown<'_> {
    fn observe(&mut self, name: &dyn Fn() -> String, value: &dyn Fn() -> Activation) {
        self.probe.observe(name, value);
    }

    fn done(&mut self, span: Span) {
        if span.operation == Operation::Down {
            std::thread::sleep(self.delay);
        }
        self.probe.done(span);
    }
}

#[test]
fn compare_lists_the_slowest_change_first() {
    let (_directory, checkpoint) = nano();
    let device = ComputeDevice::cpu("the test runs there");
    let cached = || CachedEngine::new(model(&checkpoint, &device));
    let workload = Workload::Prefill { tokens: 32 };
    let before = profile(&checkpoint, &mut cached(), &device, workload);
    // In each layer, several times the duration of a step: no other operation can vary that much.
    let delay = Duration::from_secs_f64(5.0 * before.wall());
    let after = profile(&checkpoint, &mut SlowDown { engine: cached(), delay }, &device, workload);
    assert_eq!(compare(&before, &after).changes[0].name, "moe.down");
}
