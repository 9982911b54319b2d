//! Invalid requests to any engine: each is refused for the right reason, and changes nothing.

use gptoss_reference::{Check, Limit};
use phase1_loading::GptOssConfig;
use phase2_forward::{Adjustment, BadRequest, Draw, Engine, EngineError, MAX_LOGPROBS, SequenceId, Ticket, Want, Work};

/// A ticket that no step of a test has.
const UNKNOWN_TICKET: Ticket = Ticket(1_000_000);

/// Sends invalid steps, lengths and tickets to an engine without sequences. The size of its vocabulary must not be a multiple of 32, so
/// that the last word of a mask has unused bits. Returns the messages of the refusals, except those for tickets collected too early or
/// twice.
///
/// # Panics
/// If a request is not refused, is refused for another reason, or changes something.
pub fn refuse_all(engine: &mut dyn Engine) -> Vec<String> {
    let pages = engine.capacity().pages_free;
    let mut refusals = bad_steps(engine);
    refusals.extend(bad_lengths(engine));
    refusals.extend(bad_tickets(engine));
    assert_eq!(engine.capacity().pages_free, pages, "pages were lost");
    refusals.iter().map(BadRequest::to_string).collect()
}

/// Steps that every engine refuses.
fn bad_steps(engine: &mut dyn Engine) -> Vec<BadRequest> {
    let GptOssConfig { vocab, context_length: context, .. } = *engine.config();
    let most = engine.capacity().tokens_per_step;
    let outside = vocab as u32;
    let (long, beyond) = (vec![0; context], [4, outside]);
    let words = vocab.div_ceil(32);
    let (short, none) = (vec![u32::MAX; words - 1], vec![0; words]);
    // A mask bit beyond the vocabulary allows no token.
    assert_ne!(vocab % 32, 0, "the last word of a mask must have unused bits");
    let mut spare = none.clone();
    spare[vocab / 32] = 1 << (vocab % 32);
    let adjusted = [Adjustment { token: outside, bias: 0.0, repetition_penalty: 1.0, penalty: 0.0 }];
    let draw = |draw| Work::tokens(0, &[4], Want::Token(draw));
    let masked = |mask| draw(Draw { allowed: Some(mask), ..Draw::GREEDY });

    feed(engine, 0, &[1, 2, 3]);
    let mut cases = vec![
        (vec![], BadRequest::NoWork),
        (vec![last(0, &[4]), last(1, &[])], BadRequest::NoTokens(1)),
        (vec![last(0, &beyond)], BadRequest::TokenOutsideVocabulary { token: outside, vocab }),
        (vec![last(0, &[4]), last(0, &[5])], BadRequest::SequenceTwice(0)),
        (vec![last(0, &long)], BadRequest::ContextExceeded { sequence: 0, length: context + 3, context }),
        (vec![last(1, &[4]), Work::decode(0, Draw::GREEDY)], BadRequest::NothingDrawn(0)),
        (vec![last(0, &[4]), Work::decode(9, Draw::GREEDY)], BadRequest::NothingDrawn(9)),
        (vec![masked(&short)], BadRequest::MaskLength { words: words - 1, vocab, expected: words }),
        (vec![masked(&none)], BadRequest::NothingAllowed(0)),
        (vec![masked(&spare)], BadRequest::NothingAllowed(0)),
        (
            vec![draw(Draw { adjustments: &adjusted, ..Draw::GREEDY })],
            BadRequest::TokenOutsideVocabulary { token: outside, vocab },
        ),
        (
            vec![draw(Draw { logprobs: Some(MAX_LOGPROBS + 1), ..Draw::GREEDY })],
            BadRequest::TooManyLogprobs(MAX_LOGPROBS + 1),
        ),
    ];
    if most < context {
        // In a new sequence, so that the context is long enough.
        cases.push((vec![last(1, &long[..=most])], BadRequest::StepTooLong { tokens: most + 1, most }));
    }
    let pages = engine.capacity().pages_free;
    let mut refusals = Vec::new();
    for (work, expected) in cases {
        let found = refusal(engine.step(&work), expected);
        assert_eq!((engine.length(0), engine.length(1), engine.length(9)), (3, 0, 0), "{found}");
        assert_eq!(engine.capacity().pages_free, pages, "{found}");
        refusals.push(found);
    }

    feed(engine, 2, &[1, 2, 3]);
    let [found, expected] = [0, 2].map(|sequence| engine.last_logits(sequence, &[4]).expect("logits"));
    let check = Check::values("refusals", "logits", &expected, &found, Limit::F32);
    assert!(check.passed(), "a refused step has changed a sequence: {check:?}");
    engine.release(0);
    engine.release(2);
    refusals
}

/// Forks and truncations with invalid lengths, of unknown sequences, or to an existing one.
fn bad_lengths(engine: &mut dyn Engine) -> Vec<BadRequest> {
    feed(engine, 0, &[1, 2, 3]);
    feed(engine, 1, &[4]);
    let pages = engine.capacity().pages_free;
    let mut refusals = Vec::new();
    for wanted in [0, 4] {
        let cannot_go_back = || BadRequest::CannotGoBack { sequence: 0, length: 3, wanted };
        refusals.push(refusal(engine.fork(0, 2, wanted), cannot_go_back()));
        refusals.push(refusal(engine.truncate(0, wanted), cannot_go_back()));
    }
    refusals.push(refusal(engine.fork(0, 1, 2), BadRequest::SequenceExists(1)));
    refusals.push(refusal(engine.fork(0, 0, 2), BadRequest::SequenceExists(0)));
    refusals.push(refusal(engine.fork(9, 2, 1), BadRequest::UnknownSequence(9)));
    refusals.push(refusal(engine.truncate(9, 1), BadRequest::UnknownSequence(9)));
    assert_eq!([0, 1, 2, 9].map(|sequence| engine.length(sequence)), [3, 1, 0, 0]);
    assert_eq!(engine.capacity().pages_free, pages);
    engine.release(0);
    engine.release(1);
    refusals
}

/// More steps in flight than the engine allows, and steps collected twice or out of order.
fn bad_tickets(engine: &mut dyn Engine) -> Vec<BadRequest> {
    let most = engine.capacity().steps_in_flight;
    let vocab = engine.config().vocab;
    let unknown = BadRequest::UnknownTicket;
    let mut refusals = vec![refusal(engine.collect(UNKNOWN_TICKET), unknown(UNKNOWN_TICKET))];
    let mut tickets = Vec::new();
    for sequence in 0..most as SequenceId {
        tickets.push(engine.submit(&[last(sequence, &[1, 2])]).expect("a step"));
        assert_eq!(engine.length(sequence), 2, "tokens of a submitted step count");
    }
    let one_more = most as SequenceId;
    refusals.push(refusal(engine.submit(&[last(one_more, &[1])]), BadRequest::TooManySteps(most)));
    assert_eq!(engine.length(one_more), 0);
    for &later in &tickets[1..] {
        refusal(engine.collect(later), unknown(later));
    }
    // Outcomes are returned even if the sequence has been released.
    (0..one_more).for_each(|sequence| engine.release(sequence));
    for ticket in tickets {
        let logits = engine.collect(ticket).expect("the step").remove(0).logits().expect("logits");
        assert_eq!(logits.len(), vocab);
        refusal(engine.collect(ticket), unknown(ticket));
    }
    refusals
}

/// The reason for which a call was refused.
fn refusal<T>(result: Result<T, EngineError>, expected: BadRequest) -> BadRequest {
    match result {
        Err(EngineError::BadRequest(found)) => {
            assert_eq!(found, expected);
            found
        }
        Err(other) => panic!("refused for another reason than `{expected}`: {other}"),
        Ok(_) => panic!("not refused: {expected}"),
    }
}

fn feed(engine: &mut dyn Engine, sequence: SequenceId, tokens: &[u32]) {
    engine.step(&[Work::tokens(sequence, tokens, Want::Nothing)]).expect("a step");
}

fn last(sequence: SequenceId, tokens: &[u32]) -> Work<'_> {
    Work::tokens(sequence, tokens, Want::LastLogits)
}
