//! The contract of an engine, on phase 2's.

use gptoss_reference::Case;
use phase1_loading::{Checkpoint, RopeConfig, YarnRamp};
use phase2_forward::{Chunk, ComputeDevice, Engine, GptOss, LogitsFor, NoProbe, Recompute, Rope};

fn engine() -> Recompute {
    let case = Case::committed().remove(0);
    let checkpoint = Checkpoint::open(&case.model()).expect("opens");
    let device = ComputeDevice::cpu("a test");
    Recompute::new(GptOss::load(&checkpoint, device, &mut |_, _| ()).expect("loads"))
}

fn last(sequence: u64, tokens: &[u32]) -> Chunk<'_> {
    Chunk { sequence, tokens, logits: LogitsFor::LastToken }
}

#[test]
fn sequences_of_a_batch_do_not_meet() {
    let mut together = engine();
    let both = together.step(&[last(1, &[5, 6, 7]), last(2, &[8, 9])], &mut NoProbe).expect("a batch");
    let mut alone = engine();
    for (chunk, logits) in [last(1, &[5, 6, 7]), last(2, &[8, 9])].into_iter().zip(both) {
        let expected = alone.step(&[chunk], &mut NoProbe).expect("a step").remove(0).expect("logits");
        assert_eq!(logits.expect("logits").into_data(), expected.into_data());
    }
    assert_eq!((together.length(1), together.length(2), together.length(3)), (3, 2, 0));
    together.release(1);
    assert_eq!(together.length(1), 0);
}

#[test]
fn logits_come_for_the_positions_asked_for() {
    let vocab = engine().config().vocab;
    let rows = |logits| {
        let mut engine = engine();
        engine
            .step(&[Chunk { sequence: 0, tokens: &[1, 2], logits: LogitsFor::Nothing }], &mut NoProbe)
            .expect("a step");
        let chunk = Chunk { sequence: 0, tokens: &[3, 4, 5], logits };
        engine.step(&[chunk], &mut NoProbe).expect("a step").remove(0).map(|logits| logits.dims())
    };
    assert_eq!(rows(LogitsFor::Nothing), None);
    assert_eq!(rows(LogitsFor::LastToken), Some([1, vocab]));
    assert_eq!(rows(LogitsFor::EveryToken), Some([3, vocab]));
}

#[test]
fn a_refused_batch_changes_nothing() {
    let mut engine = engine();
    engine.step(&[last(0, &[1, 2, 3])], &mut NoProbe).expect("a step");
    let outside = engine.config().vocab as u32;
    let long = vec![0; engine.config().context_length];
    let refusals: Vec<String> = [
        vec![last(0, &[4]), last(1, &[])],
        vec![last(0, &[4, outside])],
        vec![last(0, &[4]), last(0, &[5])],
        vec![last(0, &long)],
    ]
    .iter()
    .map(|batch| engine.step(batch, &mut NoProbe).expect_err("refused").to_string())
    .collect();
    insta::assert_snapshot!(refusals.join("\n"));
    assert_eq!(engine.length(0), 3);
}

#[test]
fn yarn_has_the_constants_of_gpt_oss() {
    let with = |ramp| RopeConfig { theta: 150_000.0, factor: 32.0, original_context: 4096, ramp };
    let [exact, truncated] = YarnRamp::ALL.map(|ramp| Rope::new(&with(ramp), 64));
    assert!((exact.mscale - 1.346_573_6).abs() < 1e-6);
    // The correction range is 8.09 to 17.40, or 8 to 18 truncated: pairs outside it are the same in both modes.
    for (pair, (e, t)) in exact.inverse_frequencies.iter().zip(&truncated.inverse_frequencies).enumerate() {
        assert_eq!(e == t, !(9..18).contains(&pair), "pair {pair}: {e} and {t}");
    }
    let plain = |pair: i32| 150_000f64.powf(-2.0 * f64::from(pair) / 64.0);
    assert!((f64::from(exact.inverse_frequencies[8]) / plain(8) - 1.0).abs() < 1e-6, "fast pairs are left alone");
    assert!(
        (f64::from(exact.inverse_frequencies[18]) / plain(18) * 32.0 - 1.0).abs() < 1e-6,
        "slow ones are stretched"
    );
}
