//! A sequence with NaN logits, on any engine: its outcome reports it, and no other sequence is affected.

use phase1_loading::{Checkpoint, Format, HostTensor};
use phase2_forward::{BadRequest, Draw, Engine, EngineError, Outcome, Sampling, Want, Work};

/// The token whose embedding [`spoil`] makes NaN.
const SPOILT: u32 = 17;

/// The number of pages that an engine with pages needs for [`stays_in_its_sequence`]: all are then in use.
pub const PAGES: usize = 12;

/// Makes the embedding of one token NaN: a sequence that is fed this token has NaN logits.
pub fn spoil(checkpoint: &mut Checkpoint) {
    let name = "token_embd.weight";
    let embedding = checkpoint.tensor(name);
    let (shape, width) = (embedding.shape.clone(), embedding.row_len());
    let mut values = embedding.to_f32();
    values[SPOILT as usize * width..][..width].fill(f32::NAN);
    let rows = HostTensor::packed_rows(Format::F32, shape, Format::F32.encode(&values).into());
    checkpoint.tensors.insert(name.into(), rows);
}

/// Feeds the spoilt token to some sequences of a batch. Their logits are NaN. The other sequences of the step, and the next sequences in
/// the same pages, must have the logits of `whole`, an engine with the same model before it was [spoilt](spoil). Every token must go to all
/// experts, so that both engines compute a row in the same way. Engines with pages must have [`PAGES`] of them.
///
/// # Panics
/// If an outcome differs.
pub fn stays_in_its_sequence(spoilt: &mut dyn Engine, whole: &mut dyn Engine) {
    let has_pages = spoilt.capacity().pages_total < usize::MAX;
    if has_pages {
        assert_eq!([&*spoilt, &*whole].map(free), [PAGES; 2]);
    }
    let sampled = Draw { sampling: Sampling { temperature: 1.0, ..Sampling::GREEDY }, seed: 5, ..Draw::GREEDY };
    let bad = [1, SPOILT, 3];
    let work = [
        Work::tokens(0, &[5, 6, 7], Want::LastLogits),
        Work::tokens(1, &bad, Want::LastLogits),
        Work::tokens(2, &bad, Want::AllLogits),
        Work::tokens(3, &bad, Want::Token(sampled)),
        Work::tokens(4, &bad, Want::Token(Draw::GREEDY)),
        Work::tokens(5, &[8, 9], Want::Token(sampled)),
    ];
    let (found, expected) = (spoilt.step(&work).expect("a step"), whole.step(&work).expect("a step"));
    for outcome in &found[1..5] {
        assert_eq!(*outcome, Outcome::NotANumber { position: 3 });
    }
    assert_eq!([&found[0], &found[5]], [&expected[0], &expected[5]]);
    for sequence in [3, 4] {
        let refused = spoilt.step(&[Work::decode(sequence, Draw::GREEDY)]).expect_err("nothing was drawn");
        assert!(
            matches!(refused, EngineError::BadRequest(BadRequest::NothingDrawn(of)) if of == sequence),
            "{refused}"
        );
    }
    if has_pages {
        assert_eq!(free(spoilt), 0);
    }
    for sequence in 1..5 {
        spoilt.release(sequence);
        whole.release(sequence);
    }
    for next in [
        [Work::decode(5, sampled), Work::tokens(6, &[5], Want::LastLogits)],
        [Work::decode(5, sampled), Work::tokens(1, &[5, 6], Want::AllLogits)],
    ] {
        assert_eq!(spoilt.step(&next).expect("a step"), whole.step(&next).expect("a step"));
    }
    let error = spoilt.last_logits(7, &[SPOILT]).expect_err("NaN");
    assert!(matches!(error, EngineError::NotANumber { position: 1 }), "{error}");
    for sequence in 0..8 {
        spoilt.release(sequence);
        whole.release(sequence);
    }
}

/// As [`stays_in_its_sequence`], for an engine with several steps in flight: the next step may be submitted before the NaN is known.
///
/// # Panics
/// If an outcome differs.
pub fn stays_in_its_sequence_in_flight(spoilt: &mut dyn Engine, whole: &mut dyn Engine) {
    let first = [[SPOILT], [4]];
    let begin = [0, 1].map(|row| Work::tokens(row, &first[row as usize], Want::Token(Draw::GREEDY)));
    let decode = [0, 1].map(|sequence| Work::decode(sequence, Draw::GREEDY));
    let both_steps = |engine: &mut dyn Engine| {
        let tickets = [engine.submit(&begin).expect("a step"), engine.submit(&decode).expect("a step")];
        tickets.map(|ticket| engine.collect(ticket).expect("outcomes"))
    };
    let (found, expected) = (both_steps(spoilt), both_steps(whole));
    for (position, (found, expected)) in (1..).zip(found.iter().zip(&expected)) {
        assert_eq!(found[0], Outcome::NotANumber { position });
        assert_eq!(found[1], expected[1]);
    }
}

fn free(engine: &dyn Engine) -> usize {
    engine.capacity().pages_free
}
