//! Feeds a prompt in steps of bounded size.

use std::collections::VecDeque;

use phase2_forward::{Engine, EngineError, Outcome, SequenceId, Ticket, Want, Work};

/// Prompt tokens per step by default. It bounds the memory of attention scores.
pub const PREFILL_CHUNK: usize = 512;

/// Prompt tokens per step of an engine: [`PREFILL_CHUNK`], or the engine's limit if that is lower.
pub fn prefill_chunk(engine: &dyn Engine) -> usize {
    PREFILL_CHUNK.min(engine.capacity().tokens_per_step)
}

/// Feeds tokens to a sequence, [`prefill_chunk`] per step, and returns the requested result of the last step; `None` if there are no
/// tokens. As many steps are in flight as the engine allows, so that a device does not wait between steps.
///
/// # Errors
/// As [`Engine::step`]. Chunks before the failed one stay in the sequence.
pub fn prefill(
    engine: &mut dyn Engine,
    sequence: SequenceId,
    tokens: &[u32],
    want: Want<'_>,
) -> Result<Option<Outcome>, EngineError> {
    let mut in_flight = VecDeque::new();
    let outcome = feed(engine, sequence, tokens, want, &mut in_flight);
    for ticket in in_flight {
        // Steps are left only after one has failed. Its error is returned; errors of the later steps follow from it.
        let _ = engine.collect(ticket);
    }
    outcome
}

/// As [`prefill`]; after an error `in_flight` holds the steps that have not been collected.
fn feed(
    engine: &mut dyn Engine,
    sequence: SequenceId,
    tokens: &[u32],
    want: Want<'_>,
    in_flight: &mut VecDeque<Ticket>,
) -> Result<Option<Outcome>, EngineError> {
    let ahead = steps_ahead(engine);
    let chunks = tokens.chunks(prefill_chunk(engine));
    let count = chunks.len();
    let mut outcome = None;
    for (number, tokens) in (1..).zip(chunks) {
        let (want, ahead) = if number == count { (want, 0) } else { (Want::Nothing, ahead) };
        match engine.submit(&[Work::tokens(sequence, tokens, want)]) {
            Ok(ticket) => in_flight.push_back(ticket),
            Err(error) => {
                collect_all_but(0, engine, in_flight)?;
                return Err(error);
            }
        }
        outcome = collect_all_but(ahead, engine, in_flight)?;
    }
    Ok(outcome)
}

/// Number of steps that may be in flight while the next one is prepared.
pub(crate) fn steps_ahead(engine: &dyn Engine) -> usize {
    engine.capacity().steps_in_flight.saturating_sub(1)
}

/// Collects steps, oldest first, until at most `most` are in flight. Returns the outcome of the last collected step.
///
/// # Errors
/// As [`Engine::collect`].
pub(crate) fn collect_all_but(
    most: usize,
    engine: &mut dyn Engine,
    in_flight: &mut VecDeque<Ticket>,
) -> Result<Option<Outcome>, EngineError> {
    let mut outcome = None;
    while in_flight.len() > most
        && let Some(ticket) = in_flight.pop_front()
    {
        outcome = engine.collect(ticket)?.pop();
    }
    Ok(outcome)
}
