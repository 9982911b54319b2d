//! Tests a sequence with NaN logits on any engine: the outcome of the sequence reports NaN, and no other sequence is affected.

use phase1_loading::{Checkpoint, Format, HostTensor};
use phase2_forward::{BadRequest, Draw, Engine, EngineError, Outcome, Sampling, Want, Work};

/// The token whose embedding [`insert_nan`] makes NaN.
const NAN_TOKEN: u32 = 17;

/// The number of pages that an engine with pages must have for [`check_isolation`], which then uses all of them.
pub const PAGES: usize = 12;

/// Makes the embedding of one token NaN: a sequence that is fed this token has NaN logits.
pub fn insert_nan(checkpoint: &mut Checkpoint) {
    let name = "token_embd.weight";
    let embedding = checkpoint.tensor(name);
    let (shape, width) = (embedding.shape.clone(), embedding.row_len());
    let mut values = embedding.to_f32();
    values[NAN_TOKEN as usize * width..][..width].fill(f32::NAN);
    let rows = HostTensor::packed_rows(Format::F32, shape, Format::F32.encode(&values).into());
    checkpoint.tensors.insert(name.into(), rows);
}

/// Feeds the NaN token to some sequences of a batch. Their logits are NaN. The other sequences of the step, and the next sequences in
/// the same pages, must have the logits of `whole`, an engine with the same model before it was [changed](insert_nan). Every token must
/// go to all experts, so that both engines compute a row in the same way. Engines with pages must have [`PAGES`] of them.
///
/// # Panics
/// If an outcome differs.
pub fn check_isolation(with_nan: &mut dyn Engine, whole: &mut dyn Engine) {
    let has_pages = with_nan.capacity().pages_total < usize::MAX;
    if has_pages {
        assert_eq!([&*with_nan, &*whole].map(free), [PAGES; 2]);
    }
    let sampled = Draw { sampling: Sampling { temperature: 1.0, ..Sampling::GREEDY }, seed: 5, ..Draw::GREEDY };
    let bad = [1, NAN_TOKEN, 3];
    let work = [
        Work::tokens(0, &[5, 6, 7], Want::LastLogits),
        Work::tokens(1, &bad, Want::LastLogits),
        Work::tokens(2, &bad, Want::AllLogits),
        Work::tokens(3, &bad, Want::Token(sampled)),
        Work::tokens(4, &bad, Want::Token(Draw::GREEDY)),
        Work::tokens(5, &[8, 9], Want::Token(sampled)),
    ];
    let (found, expected) = (with_nan.step(&work).expect("a step"), whole.step(&work).expect("a step"));
    for outcome in &found[1..5] {
        assert_eq!(*outcome, Outcome::NotANumber { position: 3 });
    }
    assert_eq!([&found[0], &found[5]], [&expected[0], &expected[5]]);
    for sequence in [3, 4] {
        let refused = with_nan.step(&[Work::decode(sequence, Draw::GREEDY)]).expect_err("nothing was drawn");
        assert!(
            matches!(refused, EngineError::BadRequest(BadRequest::NothingDrawn(of)) if of == sequence),
            "{refused}"
        );
    }
    if has_pages {
        assert_eq!(free(with_nan), 0);
    }
    for sequence in 1..5 {
        with_nan.release(sequence);
        whole.release(sequence);
    }
    for next in [
        [Work::decode(5, sampled), Work::tokens(6, &[5], Want::LastLogits)],
        [Work::decode(5, sampled), Work::tokens(1, &[5, 6], Want::AllLogits)],
    ] {
        assert_eq!(with_nan.step(&next).expect("a step"), whole.step(&next).expect("a step"));
    }
    let error = with_nan.last_logits(7, &[NAN_TOKEN]).expect_err("NaN");
    assert!(matches!(error, EngineError::NotANumber { position: 1 }), "{error}");
    for sequence in 0..8 {
        with_nan.release(sequence);
        whole.release(sequence);
    }
}

/// As [`check_isolation`], for an engine with several steps in flight: the next step may be submitted before the NaN is known.
///
/// # Panics
/// If an outcome differs.
pub fn check_isolation_in_flight(with_nan: &mut dyn Engine, whole: &mut dyn Engine) {
    let first = [[NAN_TOKEN], [4]];
    let begin = [0, 1].map(|row| Work::tokens(row, &first[row as usize], Want::Token(Draw::GREEDY)));
    let decode = [0, 1].map(|sequence| Work::decode(sequence, Draw::GREEDY));
    let both_steps = |engine: &mut dyn Engine| {
        let tickets = [engine.submit(&begin).expect("a step"), engine.submit(&decode).expect("a step")];
        tickets.map(|ticket| engine.collect(ticket).expect("outcomes"))
    };
    let (found, expected) = (both_steps(with_nan), both_steps(whole));
    for (position, (found, expected)) in (1..).zip(found.iter().zip(&expected)) {
        assert_eq!(found[0], Outcome::NotANumber { position });
        assert_eq!(found[1], expected[1]);
    }
}

fn free(engine: &dyn Engine) -> usize {
    engine.capacity().pages_free
}
