//! Tests of the contract of [`Engine`], on phase 3's engine in comparison with phase 2's.

mod model;

use std::collections::BTreeMap;

use gptoss_reference::{Case, Check, Limit};
use phase1_loading::Checkpoint;
use phase2_forward::{
    BadRequest, Draw, Engine, EngineError, HostDraw, Input, RecomputeEngine, Sampling, SequenceId, Want, Work, argmax,
};
use phase3_kvcache::{CacheType, CachedEngine};
use proptest::prelude::*;

use model::{WINDOW, load, model, weights};

fn engine() -> CachedEngine {
    CachedEngine::new(model())
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

/// Checks that logits differ by no more than phases 2 and 3 may.
fn check(expected: &[f32], found: &[f32]) -> Result<(), TestCaseError> {
    let check = Check::values("random", "logits", expected, found, Limit::F32);
    prop_assert!(check.passed(), "{check:?}, {}", weights());
    Ok(())
}

/// An operation on sequences. `back` is the number of tokens by which the copied or kept prefix is shorter than the sequence.
#[derive(Clone, Debug)]
enum Action {
    Feed(SequenceId, Vec<u32>),
    Fork { from: SequenceId, to: SequenceId, back: usize },
    Truncate { sequence: SequenceId, back: usize },
    Release(SequenceId),
}

fn action() -> impl Strategy<Value = Action> {
    let sequence = 0..4u64;
    prop_oneof![
        5 => (sequence.clone(), prop::collection::vec(0u32..1000, 1..10)).prop_map(|(to, tokens)| Action::Feed(to, tokens)),
        3 => (sequence.clone(), sequence.clone(), 0usize..6)
            .prop_map(|(from, to, back)| Action::Fork { from, to, back }),
        2 => (sequence.clone(), 0usize..6).prop_map(|(sequence, back)| Action::Truncate { sequence, back }),
        1 => sequence.prop_map(Action::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The logits of a sequence depend only on its tokens, whichever forks, truncations and releases came before.
    #[test]
    fn logits_depend_only_on_the_tokens_of_a_sequence(
        actions in prop::collection::vec(action(), 1..30),
        kind in prop::sample::select(vec![CacheType::F32, CacheType::F16]),
    ) {
        let mut engine = CachedEngine::with_cache(model(), kind).expect("heads of 32 fit any kind");
        let mut sequences: BTreeMap<SequenceId, Vec<u32>> = BTreeMap::new();
        for action in actions {
            match action {
                Action::Feed(sequence, tokens) => {
                    engine.step(&[Work::tokens(sequence, &tokens, Want::Nothing)]).expect("a step");
                    sequences.entry(sequence).or_default().extend(tokens);
                }
                Action::Fork { from, to, back } => {
                    let known = sequences.get(&from).cloned().unwrap_or_default();
                    let length = known.len().saturating_sub(back);
                    let forked = engine.fork(from, to, length);
                    let exists = sequences.contains_key(&to).then_some(BadRequest::SequenceExists(to));
                    if let Some(expected) = exists.or_else(|| refused(from, &known, length)) {
                        prop_assert_eq!(refusal(forked), expected);
                    } else {
                        forked.expect("a fork");
                        sequences.insert(to, known[..length].to_vec());
                    }
                }
                Action::Truncate { sequence, back } => {
                    let known = sequences.get(&sequence).cloned().unwrap_or_default();
                    let length = known.len().saturating_sub(back);
                    let truncated = engine.truncate(sequence, length);
                    if let Some(expected) = refused(sequence, &known, length) {
                        prop_assert_eq!(refusal(truncated), expected);
                    } else {
                        truncated.expect("shorter");
                        sequences.insert(sequence, known[..length].to_vec());
                    }
                }
                Action::Release(sequence) => {
                    engine.release(sequence);
                    sequences.remove(&sequence);
                }
            }
            for sequence in 0..4 {
                prop_assert_eq!(engine.length(sequence), sequences.get(&sequence).map_or(0, Vec::len));
            }
        }
        // Logits of the next tokens of all sequences, in one step, equal those of an engine that computed each sequence alone in one chunk.
        let next = [5, 6, 7];
        let work: Vec<Work<'_>> = sequences.keys().map(|&to| Work::tokens(to, &next, Want::AllLogits)).collect();
        let outcomes = if work.is_empty() { Vec::new() } else { engine.step(&work).expect("a step") };
        for ((_, tokens), outcome) in sequences.iter().zip(outcomes) {
            let mut alone = CachedEngine::with_cache(model(), kind).expect("heads of 32 fit any kind");
            alone.step(&[Work::tokens(0, tokens, Want::Nothing)]).expect("a step");
            let expected = alone.all_logits(0, &next).expect("logits");
            let found = outcome.logits().expect("logits");
            if kind == CacheType::F32 {
                check(&expected, &found)?;
                let mut plain = RecomputeEngine::new(model());
                plain.step(&[Work::tokens(0, tokens, Want::Nothing)]).expect("a step");
                check(&plain.all_logits(0, &next).expect("logits"), &found)?;
            } else {
                // Values near a rounding boundary may be rounded differently, by one step of the cache's format.
                let limit = Limit { rms: 2e-3, max: 2e-2 };
                let check = Check::values("random", "logits", &expected, &found, limit);
                prop_assert!(check.passed(), "{check:?}, {}", weights());
            }
        }
    }
}

/// The expected error for truncating the sequence with the tokens `known` to `length`, or for forking it there; `None` if that works. The
/// sequence's own length always works. A shorter one fails if it is 0, or if the ring buffers of sliding layers have overwritten positions.
fn refused(sequence: SequenceId, known: &[u32], length: usize) -> Option<BadRequest> {
    match known.len() {
        0 => Some(BadRequest::UnknownSequence(sequence)),
        now if length == now => None,
        now if length == 0 || now > WINDOW => Some(BadRequest::CannotGoBack { sequence, length: now, wanted: length }),
        _ => None,
    }
}

/// Once the ring buffers of sliding layers have overwritten a position, a sequence can be forked or truncated only at its own length. Rings
/// that are exactly full have overwritten nothing yet.
#[test]
fn full_ring_cannot_be_truncated() {
    let mut engine = engine();
    assert_eq!(engine.capacity().rewind, 0);
    let tokens: Vec<u32> = (0..WINDOW as u32 + 1).collect();
    engine.step(&[Work::tokens(0, &tokens[..WINDOW], Want::Nothing)]).expect("a step");
    engine.fork(0, 1, 5).expect("nothing has been overwritten");
    engine.step(&[Work::tokens(0, &tokens[WINDOW..], Want::Nothing)]).expect("a step");
    let cannot = |wanted| BadRequest::CannotGoBack { sequence: 0, length: WINDOW + 1, wanted };
    for wanted in [0, 5, WINDOW, WINDOW + 2] {
        assert_eq!(refusal(engine.truncate(0, wanted)), cannot(wanted));
        assert_eq!(refusal(engine.fork(0, 2, wanted)), cannot(wanted));
    }
    engine.fork(0, 2, WINDOW + 1).expect("all of it");
    engine.truncate(0, WINDOW + 1).expect("its own length");
    assert_eq!([0, 1, 2].map(|sequence| engine.length(sequence)), [WINDOW + 1, 5, WINDOW + 1]);
}

#[test]
fn all_logits_are_the_last_logits_after_each_token() {
    let mut engine = engine();
    let vocab = engine.config().vocab;
    let tokens: Vec<u32> = (0..2 * WINDOW as u32).map(|i| i * 41 % 1000).collect();
    let all = engine.all_logits(0, &tokens).expect("logits");
    assert_eq!(all.len(), tokens.len() * vocab);
    for (row, token) in all.chunks_exact(vocab).zip(&tokens) {
        let last = engine.last_logits(1, &[*token]).expect("logits");
        check(&last, row).expect("equal logits");
    }
}

#[test]
fn drawn_token_is_fed_to_its_sequence() {
    let (mut drawing, mut reference) = (engine(), engine());
    let prompt: Vec<u32> = (0..20).collect();
    let mut drawn = token(&mut drawing, Work::tokens(0, &prompt, Want::Token(Draw::GREEDY)));
    assert_eq!(drawn, argmax(&reference.last_logits(0, &prompt).expect("logits")));
    for step in 0..15 {
        let logits = reference.last_logits(0, &[drawn]).expect("logits");
        drawn = token(&mut drawing, Work::decode(0, Draw::GREEDY));
        assert_eq!(drawn, argmax(&logits), "step {step}, {}", weights());
    }
    // With a drawn token as input, logits may be requested instead of another token.
    let work = Work { sequence: 0, input: Input::Drawn, want: Want::AllLogits };
    let found = drawing.step(&[work]).expect("a step").remove(0).logits().expect("logits");
    assert_eq!(found, reference.last_logits(0, &[drawn]).expect("logits"));
    assert_eq!(refusal(drawing.step(&[Work::decode(0, Draw::GREEDY)])), BadRequest::NothingDrawn(0));
    assert_eq!((drawing.length(0), reference.length(0)), (36, 36));
}

/// Forks and truncated sequences have no drawn token.
#[test]
fn forked_and_truncated_sequences_have_no_drawn_token() {
    let mut engine = engine();
    let drawn = token(&mut engine, Work::tokens(0, &[1, 2, 3], Want::Token(Draw::GREEDY)));
    engine.fork(0, 1, 3).expect("a fork");
    assert_eq!(refusal(engine.step(&[Work::decode(1, Draw::GREEDY)])), BadRequest::NothingDrawn(1));
    let next = token(&mut engine, Work::decode(0, Draw::GREEDY));
    assert_eq!(next, argmax(&engine.last_logits(1, &[drawn]).expect("logits")));
    engine.truncate(0, 3).expect("shorter");
    assert_eq!(refusal(engine.step(&[Work::decode(0, Draw::GREEDY)])), BadRequest::NothingDrawn(0));
    let other = if drawn == 7 { 8 } else { 7 };
    let found = engine.last_logits(0, &[other]).expect("logits");
    engine.last_logits(2, &[1, 2, 3]).expect("logits");
    assert_eq!(found, engine.last_logits(2, &[other]).expect("logits"));
}

/// The drawn token depends on the seed and the position, and not on chunks or other sequences.
#[test]
fn draws_do_not_depend_on_prompt_chunks() {
    let checkpoint = Checkpoint::open(&Case::committed().remove(0).model()).expect("opens");
    let prompt: Vec<u32> = (0..30).map(|i| i * 31 % 290).collect();
    let drawn = |lengths: &[usize], company: bool| -> Vec<u32> {
        let mut engine = CachedEngine::new(load(&checkpoint));
        let mut rest = &prompt[..];
        for &length in lengths {
            let (tokens, after) = rest.split_at(length);
            engine.step(&[Work::tokens(0, tokens, Want::Nothing)]).expect("a step");
            rest = after;
        }
        let mut tokens = vec![token(&mut engine, Work::tokens(0, rest, Want::Token(seeded(42))))];
        for number in 0..10 {
            let other = [number];
            let mut work = vec![Work::decode(0, seeded(42))];
            if company {
                work.insert(0, Work::tokens(1, &other, Want::Token(seeded(43))));
            }
            tokens.extend(engine.step(&work).expect("a step").pop().and_then(|outcome| outcome.drawn_id()));
        }
        tokens
    };
    let tokens = drawn(&[], false);
    assert_eq!(tokens.len(), 11);
    for (lengths, company) in [(&[1; 29][..], false), (&[7, 7, 7], true), (&[29], false), (&[1, 20], true)] {
        assert_eq!(drawn(lengths, company), tokens, "after chunks of {lengths:?}");
    }
    // The host draws the same token from the logits of the whole text.
    let mut engine = CachedEngine::new(load(&checkpoint));
    let vocab = engine.config().vocab;
    let logits = engine.all_logits(0, &[&prompt[..], &tokens[..]].concat()).expect("logits");
    let mut host = HostDraw::default();
    for (position, &token) in (prompt.len()..).zip(&tokens) {
        let mut row = logits[(position - 1) * vocab..][..vocab].to_vec();
        assert_eq!(host.draw(&mut row, position, &seeded(42)).map(|drawn| drawn.id), Some(token), "at {position}");
    }
}
