//! Tests of the contract of [`Engine`], on phase 2's engine; of a damaged scale at loading; and of YaRN's frequencies.

use gptoss_reference::{Case, Check, Limit};
use phase1_loading::{Checkpoint, Format, HostTensor, RopeConfig, YarnRamp};
use phase2_forward::{
    Adjustment, BadRequest, Capacity, ComputeDevice, Draw, Engine, EngineError, GptOss, Input, Inspect, NoProbe,
    Outcome, RecomputeEngine, Rope, Sampling, SequenceId, Ticket, Want, Work, argmax, check_work, delegate_engine,
};

fn checkpoint() -> Checkpoint {
    let case = Case::committed().remove(0);
    Checkpoint::open(&case.model()).expect("opens")
}

fn load(checkpoint: &Checkpoint) -> RecomputeEngine {
    let device = ComputeDevice::cpu("a test");
    RecomputeEngine::new(GptOss::load(checkpoint, device, &mut |_, _| ()).expect("loads"))
}

fn engine() -> RecomputeEngine {
    load(&checkpoint())
}

fn last(sequence: SequenceId, tokens: &[u32]) -> Work<'_> {
    Work::tokens(sequence, tokens, Want::LastLogits)
}

/// A draw at temperature 1 from all tokens.
fn seeded(seed: u64) -> Draw<'static> {
    Draw { sampling: Sampling { temperature: 1.0, ..Sampling::GREEDY }, seed, ..Draw::GREEDY }
}

/// Runs a step of one item and returns the drawn token.
fn token(engine: &mut dyn Engine, work: Work<'_>) -> u32 {
    engine.step(&[work]).expect("a step").remove(0).token().expect("a token").id
}

/// Why a call was refused.
fn refusal<T>(result: Result<T, EngineError>) -> BadRequest {
    match result {
        Err(EngineError::BadRequest(refusal)) => refusal,
        Err(other) => panic!("refused for another reason: {other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn sequences_of_a_batch_are_independent() {
    let mut together = engine();
    let both = together.step(&[last(1, &[5, 6, 7]), last(2, &[8, 9])]).expect("a batch");
    let mut alone = engine();
    for (work, outcome) in [last(1, &[5, 6, 7]), last(2, &[8, 9])].into_iter().zip(both) {
        let expected = alone.step(&[work]).expect("a step").remove(0).logits().expect("logits");
        assert_eq!(outcome.logits().expect("logits"), expected);
    }
    assert_eq!((together.length(1), together.length(2), together.length(3)), (3, 2, 0));
    together.release(1);
    assert_eq!(together.length(1), 0);
}

#[test]
fn logits_are_returned_for_requested_positions() {
    let vocab = engine().config().vocab;
    let outcome = |want| {
        let mut engine = engine();
        let fed = engine.step(&[Work::tokens(0, &[1, 2], Want::Nothing)]).expect("a step");
        assert_eq!(fed, [Outcome::Fed]);
        engine.step(&[Work::tokens(0, &[3, 4, 5], want)]).expect("a step").remove(0)
    };
    assert_eq!(outcome(Want::Nothing), Outcome::Fed);
    assert_eq!(outcome(Want::LastLogits).logits().expect("logits").len(), vocab);
    assert_eq!(outcome(Want::AllLogits).logits().expect("logits").len(), 3 * vocab);
    assert!(outcome(Want::Token(Draw::GREEDY)).drawn_id().is_some());
}

#[test]
fn all_logits_are_the_last_logits_after_each_token() {
    let mut engine = engine();
    let vocab = engine.config().vocab;
    let tokens = [3, 140, 59, 265, 35, 89];
    let all = engine.all_logits(0, &tokens).expect("logits");
    assert_eq!(all.len(), tokens.len() * vocab);
    for (row, token) in all.chunks_exact(vocab).zip(&tokens) {
        let last = engine.last_logits(1, &[*token]).expect("logits");
        let check = Check::values("even", "logits", &last, row, Limit::F32);
        assert!(check.passed(), "{check:?}");
    }
}

#[test]
fn drawn_token_is_fed_to_its_sequence() {
    let mut drawing = engine();
    let mut reference = engine();
    let mut drawn = token(&mut drawing, Work::tokens(0, &[1, 2, 3], Want::Token(Draw::GREEDY)));
    assert_eq!(drawn, argmax(&reference.last_logits(0, &[1, 2, 3]).expect("logits")));
    for step in 0..6 {
        let logits = reference.last_logits(0, &[drawn]).expect("logits");
        // With a drawn token as input, logits may be requested instead of another token.
        if step == 3 {
            let work = Work { sequence: 0, input: Input::Drawn, want: Want::LastLogits };
            let found = drawing.step(&[work]).expect("a step").remove(0).logits().expect("logits");
            assert_eq!(found, logits);
            let refused = refusal(drawing.step(&[Work::decode(0, Draw::GREEDY)]));
            assert_eq!(refused, BadRequest::NothingDrawn(0));
            let next = argmax(&logits);
            drawn = token(&mut drawing, Work::tokens(0, &[next], Want::Token(Draw::GREEDY)));
            assert_eq!(drawn, argmax(&reference.last_logits(0, &[next]).expect("logits")));
        } else {
            drawn = token(&mut drawing, Work::decode(0, Draw::GREEDY));
            assert_eq!(drawn, argmax(&logits), "step {step}");
        }
    }
    assert_eq!((drawing.length(0), reference.length(0)), (10, 10));
}

#[test]
fn callers_token_replaces_the_drawn_one() {
    let mut engine = engine();
    let drawn = token(&mut engine, Work::tokens(0, &[1, 2], Want::Token(Draw::GREEDY)));
    let other = if drawn == 7 { 8 } else { 7 };
    let found = engine.last_logits(0, &[other]).expect("logits");
    assert_eq!(found, engine.last_logits(1, &[1, 2, other]).expect("logits"));
}

#[test]
fn draws_do_not_depend_on_prompt_chunks() {
    let prompt = [70, 80, 90, 100, 110, 7, 8];
    let drawn = |chunk: usize, company: bool, seed: u64| -> Vec<u32> {
        let mut engine = engine();
        let (body, end) = prompt.split_at((prompt.len() - 1) / chunk * chunk);
        for tokens in body.chunks(chunk) {
            engine.step(&[Work::tokens(0, tokens, Want::Nothing)]).expect("a step");
        }
        let mut tokens = vec![token(&mut engine, Work::tokens(0, end, Want::Token(seeded(seed))))];
        for number in 0..12 {
            let other = [number];
            let mut work = vec![Work::decode(0, seeded(seed))];
            if company {
                work.insert(0, Work::tokens(1, &other, Want::Token(seeded(seed + 1))));
            }
            tokens.extend(engine.step(&work).expect("a step").pop().and_then(|outcome| outcome.drawn_id()));
        }
        tokens
    };
    let whole = drawn(prompt.len(), false, 42);
    assert_eq!(whole.len(), 13);
    for chunk in 1..prompt.len() {
        assert_eq!(drawn(chunk, chunk % 2 == 0, 42), whole, "chunks of {chunk}");
    }
    assert!((43..53).any(|seed| drawn(7, false, seed) != whole), "the seed is ignored");
}

#[test]
fn draws_respect_mask_and_adjustments() {
    let mut engine = engine();
    let vocab = engine.config().vocab;
    let logits = engine.last_logits(0, &[1, 2, 3]).expect("logits");
    let best = argmax(&logits);
    let mut sequence = 1;
    let mut drawn = |draw: Draw<'_>| {
        sequence += 1;
        engine.step(&[Work::tokens(sequence, &[1, 2, 3], Want::Token(draw))]).expect("a step").remove(0)
    };
    let mut allowed = vec![0u32; vocab.div_ceil(32)];
    allowed[(vocab - 1) / 32] = 1 << ((vocab - 1) % 32);
    let masked = drawn(Draw { allowed: Some(&allowed), ..Draw::GREEDY });
    assert_eq!(masked.drawn_id(), Some(vocab as u32 - 1));
    let banned = [Adjustment { token: best, bias: f32::NEG_INFINITY, repetition_penalty: 1.0, penalty: 0.0 }];
    let mut others = logits.clone();
    others[best as usize] = f32::NEG_INFINITY;
    assert_eq!(drawn(Draw { adjustments: &banned, ..Draw::GREEDY }).drawn_id(), Some(argmax(&others)));
    // Log probabilities are those of the model, whatever was banned.
    let reported = drawn(Draw { adjustments: &banned, logprobs: Some(2), ..Draw::GREEDY }).token().expect("a token");
    let found = reported.logprobs.expect("log probabilities");
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let expected = |token: u32| f64::from(logits[token as usize]) - sum.ln();
    assert_eq!((found.top.len(), found.top[0].0), (2, best));
    assert!((f64::from(found.top[0].1) - expected(best)).abs() < 1e-5, "{found:?}");
    assert!((f64::from(found.token) - expected(reported.id)).abs() < 1e-5, "{found:?}");
}

/// An engine with a small limit of tokens per step.
struct Narrow(RecomputeEngine);

impl Engine for Narrow {
    delegate_engine!(0: config, length, collect, fork, truncate, release);

    fn capacity(&self) -> Capacity {
        Capacity { tokens_per_step: 4, ..self.0.capacity() }
    }

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        check_work(self, work)?;
        self.0.submit(work)
    }
}

#[test]
fn too_long_steps_are_refused() {
    let mut engine = Narrow(engine());
    let drawing = Want::Token(Draw::GREEDY);
    engine.step(&[Work::tokens(0, &[1, 2], drawing), last(1, &[3, 4])]).expect("four tokens");
    // A drawn token counts as one.
    let refused = refusal(engine.step(&[Work::decode(0, Draw::GREEDY), last(1, &[5, 6, 7, 8])]));
    assert_eq!(refused, BadRequest::StepTooLong { tokens: 5, most: 4 });
    assert_eq!((engine.length(0), engine.length(1)), (2, 2));
    engine.step(&[Work::decode(0, Draw::GREEDY), last(1, &[5, 6, 7])]).expect("four tokens");
}

#[test]
fn inspect_equals_a_step() {
    let work = [last(1, &[5, 6, 7]), Work::tokens(2, &[8, 9], Want::Token(seeded(3)))];
    let (mut inspected, mut stepped) = (engine(), engine());
    let outcomes = inspected.inspect(&work, &mut NoProbe).expect("a step");
    assert_eq!(outcomes, stepped.step(&work).expect("a step"));
    let next = [Work::decode(2, seeded(3))];
    assert_eq!(inspected.step(&next).expect("a step"), stepped.step(&next).expect("a step"));
    assert_eq!((inspected.length(1), inspected.length(2)), (3, 3));
}

#[test]
fn fork_equals_the_prefix_of_its_origin() {
    let mut engine = engine();
    let tokens = [1, 2, 3, 4, 5];
    let drawn = token(&mut engine, Work::tokens(0, &tokens, Want::Token(Draw::GREEDY)));
    for (to, length) in [(1, 5), (2, 2), (3, 1)] {
        engine.fork(0, to, length).expect("a fork");
        assert_eq!(engine.length(to), length);
        // A fork has no drawn token, even if it was forked at the full length.
        assert_eq!(refusal(engine.step(&[Work::decode(to, Draw::GREEDY)])), BadRequest::NothingDrawn(to));
        let found = engine.last_logits(to, &[9]).expect("logits");
        let whole = [&tokens[..length], &[9]].concat();
        assert_eq!(found, engine.last_logits(10 + to, &whole).expect("logits"));
    }
    // The forked sequence continues unchanged, and a fork remains valid after its release.
    assert_eq!(engine.length(0), 5);
    let next = token(&mut engine, Work::decode(0, Draw::GREEDY));
    let whole = [&tokens[..], &[drawn]].concat();
    assert_eq!(next, argmax(&engine.last_logits(20, &whole).expect("logits")));
    engine.release(0);
    let found = engine.last_logits(1, &[11]).expect("logits");
    assert_eq!(found, engine.last_logits(21, &[1, 2, 3, 4, 5, 9, 11]).expect("logits"));
}

#[test]
fn truncated_sequence_equals_its_prefix() {
    let mut engine = engine();
    token(&mut engine, Work::tokens(0, &[1, 2, 3, 4, 5], Want::Token(Draw::GREEDY)));
    engine.truncate(0, 3).expect("shorter");
    assert_eq!(engine.length(0), 3);
    // Truncation discards the drawn token.
    assert_eq!(refusal(engine.step(&[Work::decode(0, Draw::GREEDY)])), BadRequest::NothingDrawn(0));
    let found = engine.last_logits(0, &[9]).expect("logits");
    assert_eq!(found, engine.last_logits(1, &[1, 2, 3, 9]).expect("logits"));
    engine.truncate(0, 4).expect("its own length");
    assert_eq!(engine.length(0), 4);
}

#[test]
fn phase_2_has_no_snapshots() {
    assert!(engine().snapshots().is_none());
}

/// Programs differ in how they interpret an MXFP4 scale byte of 255. Loading reports such a scale, before it can make logits NaN.
#[test]
fn a_scale_of_255_is_refused_on_the_cpu() {
    let mut spoilt = checkpoint();
    let name = "blk.1.ffn_up_exps.weight";
    let tensor = spoilt.tensor(name);
    let mut packed = tensor.packed().to_vec();
    packed[17 * 3] = 255;
    let tensor = HostTensor::packed_rows(tensor.format, tensor.shape.clone(), packed.into());
    assert_eq!(tensor.format, Format::Mxfp4);
    spoilt.tensors.insert(name.into(), tensor);
    let refused = GptOss::load(&spoilt, ComputeDevice::cpu("a test"), &mut |_, _| ());
    let error = refused.err().expect("refused").to_string();
    assert!(error.contains(name) && error.contains("255 in block 3"), "{error}");
}

/// In a short context even the fastest dimension pair makes fewer than `BETA_FAST` turns. The ramp then begins at the first pair, as in
/// transformers and mlx-lm.
#[test]
fn yarn_ramp_stays_inside_the_head() {
    let exact_end = 64.0 * (150.0 / std::f64::consts::TAU).ln() / (2.0 * 150_000f64.ln());
    for (ramp, end) in [(YarnRamp::Exact, exact_end), (YarnRamp::Truncated, exact_end.ceil())] {
        let rope = Rope::new(&RopeConfig { theta: 150_000.0, factor: 32.0, original_context: 150, ramp }, 64);
        assert_eq!(rope.inverse_frequencies[0], 1.0, "{ramp:?}");
        let (plain, along) = (150_000f64.powf(-2.0 / 64.0), 1.0 / end);
        let expected = plain * (1.0 - along) + plain / 32.0 * along;
        assert!((f64::from(rope.inverse_frequencies[1]) / expected - 1.0).abs() < 1e-6, "{ramp:?}");
    }
}

#[test]
fn yarn_constants_equal_gpt_oss() {
    let with = |ramp| RopeConfig { theta: 150_000.0, factor: 32.0, original_context: 4096, ramp };
    let [exact, truncated] = YarnRamp::ALL.map(|ramp| Rope::new(&with(ramp), 64));
    assert!((exact.mscale - 1.346_573_6).abs() < 1e-6);
    // The correction range is 8.09 to 17.40, or 8 to 18 truncated: pairs outside it are the same in both modes.
    for (pair, (e, t)) in exact.inverse_frequencies.iter().zip(&truncated.inverse_frequencies).enumerate() {
        assert_eq!(e == t, !(9..18).contains(&pair), "pair {pair}: {e} and {t}");
    }
    let plain = |pair: i32| 150_000f64.powf(-2.0 * f64::from(pair) / 64.0);
    assert!((f64::from(exact.inverse_frequencies[8]) / plain(8) - 1.0).abs() < 1e-6, "fast pairs are not scaled");
    assert!(
        (f64::from(exact.inverse_frequencies[18]) / plain(18) * 32.0 - 1.0).abs() < 1e-6,
        "slow ones are stretched"
    );
}
