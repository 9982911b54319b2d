//! Feeds a prompt in steps of bounded size.

use phase2_forward::{Engine, EngineError, Outcome, SequenceId, Want, Work};

/// Prompt tokens per step by default. It bounds the memory of attention scores.
pub const PREFILL_CHUNK: usize = 512;

/// Prompt tokens per step of an engine: [`PREFILL_CHUNK`], or the engine's limit if that is lower.
pub fn prefill_chunk(engine: &dyn Engine) -> usize {
    PREFILL_CHUNK.min(engine.capacity().tokens_per_step)
}

/// Feeds tokens to a sequence, [`prefill_chunk`] per step, and returns the requested result of the last step; `None` without tokens.
///
/// # Errors
/// As [`Engine::step`]. Chunks before the failed one stay in the sequence.
pub fn prefill(
    engine: &mut dyn Engine,
    sequence: SequenceId,
    tokens: &[u32],
    want: Want<'_>,
) -> Result<Option<Outcome>, EngineError> {
    let chunks = tokens.chunks(prefill_chunk(engine));
    let count = chunks.len();
    let mut outcome = None;
    for (number, tokens) in (1..).zip(chunks) {
        let want = if number == count { want } else { Want::Nothing };
        outcome = engine.step(&[Work::tokens(sequence, tokens, want)])?.pop();
    }
    Ok(outcome)
}
