//! Phase 2's gate (the comparison with MLX's golden outputs) fails when a typical bug is introduced into the model, and when an engine
//! reports fewer tensors than it should.

use std::path::Path;

use bytes::Bytes;
use gates::forward;
use gptoss_reference::Case;
use phase1_loading::{Checkpoint, YarnRamp};
use phase2_forward::{
    Activation, ComputeDevice, Engine, EngineError, GptOss, Inspect, Outcome, Probe, RecomputeEngine, Span, Work,
    delegate_engine,
};

fn case() -> Case {
    Case::committed().into_iter().find(|case| case.name == "even").expect("the case")
}

fn load(checkpoint: &Checkpoint) -> GptOss {
    GptOss::load(checkpoint, ComputeDevice::cpu("a test"), &mut |_, _| ()).expect("loads")
}

/// Names of the tensors that fail.
fn failures(model: GptOss) -> Vec<String> {
    failures_of(&mut RecomputeEngine::new(model))
}

fn failures_of(engine: &mut dyn Inspect) -> Vec<String> {
    let checks = forward::check_forward(&case(), YarnRamp::Exact, engine).expect("the gate runs");
    checks.into_iter().filter(|check| !check.passed()).map(|check| check.tensor).collect()
}

/// The case's model with the bytes of some tensors changed.
fn with_tensors(select: impl Fn(&str) -> bool, change: impl Fn(&mut [u8])) -> GptOss {
    let path = case().model();
    let original = Checkpoint::open(&path).expect("opens");
    let mut file = std::fs::read(&path).expect("readable");
    for (name, tensor) in original.tensors.iter().filter(|(name, _)| select(name)) {
        let at = file.windows(tensor.bytes()).position(|window| *window == tensor.packed()[..]).expect(name);
        change(&mut file[at..at + tensor.bytes()]);
    }
    load(&Checkpoint::from_bytes("mutated", Bytes::from(file)).expect("opens"))
}

#[test]
fn the_unbroken_model_passes() {
    let checkpoint = Checkpoint::open(Path::new(&case().model())).expect("opens");
    assert_eq!(failures(load(&checkpoint)), [""; 0]);
    assert_eq!(failures(with_tensors(|name| name.contains("sinks"), |_| ())), [""; 0]);
}

#[test]
fn missing_sinks_are_caught() {
    let no_sink =
        |bytes: &mut [u8]| bytes.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&(-1e9f32).to_le_bytes()));
    let failed = failures(with_tensors(|name| name.contains("sinks"), no_sink));
    assert!(failed.iter().any(|name| name.starts_with("layers.0.resid_attn")), "{failed:?}");
    assert!(failed.iter().any(|name| name.starts_with("logits")), "{failed:?}");
}

#[test]
fn swapped_nibbles_are_caught() {
    let swap = |bytes: &mut [u8]| {
        for block in bytes.chunks_exact_mut(17) {
            block[1..].iter_mut().for_each(|codes| *codes = codes.rotate_left(4));
        }
    };
    let failed = failures(with_tensors(|name| name.contains("_exps.weight"), swap));
    assert!(failed.iter().any(|name| name.starts_with("layers.0.resid_mlp")), "{failed:?}");
}

#[test]
fn a_window_off_by_one_is_caught() {
    for change in [1, -1isize] {
        let mut model = load(&Checkpoint::open(&case().model()).expect("opens"));
        model.config.sliding_window = model.config.sliding_window.wrapping_add_signed(change);
        let failed = failures(model);
        assert!(failed.iter().any(|name| name.starts_with("layers.0.resid_attn")), "{change}: {failed:?}");
    }
}

#[test]
fn a_skipped_mscale_is_caught() {
    let mut model = load(&Checkpoint::open(&case().model()).expect("opens"));
    model.rope.mscale = 1.0;
    let failed = failures(model);
    assert!(failed.iter().any(|name| name.starts_with("layers.0.resid_attn")), "{failed:?}");
}

#[test]
fn wrong_yarn_ramp_is_caught() {
    let mut checkpoint = Checkpoint::open(&case().model()).expect("opens");
    checkpoint.config.rope.ramp = YarnRamp::Truncated;
    let failed = failures(load(&checkpoint));
    assert!(failed.iter().any(|name| name.starts_with("logits")), "{failed:?}");
}

/// An engine that does not report the activations whose names `hides` accepts.
struct Silent {
    engine: RecomputeEngine,
    hides: fn(&str) -> bool,
}

impl Silent {
    fn new(hides: fn(&str) -> bool) -> Silent {
        let model = load(&Checkpoint::open(&case().model()).expect("opens"));
        Silent { engine: RecomputeEngine::new(model), hides }
    }
}

impl Engine for Silent {
    delegate_engine!(engine: config, capacity, length, submit, collect, fork, truncate, release);
}

impl Inspect for Silent {
    fn inspect(&mut self, work: &[Work<'_>], probe: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError> {
        self.engine.inspect(work, &mut Filtered { probe, hides: self.hides })
    }
}

struct Filtered<'a> {
    probe: &'a mut dyn Probe,
    hides: fn(&str) -> bool,
}

impl Probe for Filtered<'_> {
    fn observe(&mut self, name: &dyn Fn() -> String, value: &dyn Fn() -> Activation) {
        if !(self.hides)(&name()) {
            self.probe.observe(name, value);
        }
    }

    fn done(&mut self, span: Span) {
        self.probe.done(span);
    }
}

#[test]
fn an_engine_that_reports_no_activations_is_caught() {
    let failed = failures_of(&mut Silent::new(|_| true));
    let activations =
        |layer: usize| ["resid_attn", "resid_mlp", "router_logits"].map(|part| format!("layers.{layer}.{part}"));
    let expected: Vec<String> =
        ["embed".into(), "final_norm".into()].into_iter().chain((0..4).flat_map(activations)).collect();
    for name in expected {
        assert!(failed.contains(&format!("{name} (exact)")), "{name} is not among {failed:?}");
    }
    assert!(!failed.iter().any(|name| name.starts_with("logits")), "{failed:?}");
}

#[test]
fn one_missing_activation_is_caught() {
    let failed = failures_of(&mut Silent::new(|name| name == "layers.2.resid_mlp"));
    assert_eq!(failed, ["layers.2.resid_mlp (exact)"]);
    let failed = failures_of(&mut Silent::new(|name| name == "layers.1.router_logits"));
    assert_eq!(failed, ["layers.1.router_logits (exact)", "layers.1.experts (exact)"]);
}
