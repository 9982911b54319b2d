//! The checks that every engine makes on a step before computing it.

use phase1_loading::GptOssConfig;

use crate::draw::{Draw, MAX_LOGPROBS};
use crate::engine::{BadRequest, Engine, Input, SequenceId, Want, Work};

/// Checks a step before any of it is computed.
///
/// # Errors
/// The first problem of the step.
pub fn check_work(engine: &dyn Engine, work: &[Work<'_>]) -> Result<(), BadRequest> {
    let GptOssConfig { vocab, context_length: context, .. } = *engine.config();
    if work.is_empty() {
        return Err(BadRequest::NoWork);
    }
    let mut total = 0usize;
    for (index, item) in work.iter().enumerate() {
        let sequence = item.sequence;
        if work[..index].iter().any(|earlier| earlier.sequence == sequence) {
            return Err(BadRequest::SequenceTwice(sequence));
        }
        let count = match item.input {
            Input::Tokens([]) => return Err(BadRequest::NoTokens(sequence)),
            Input::Tokens(tokens) => {
                if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab) {
                    return Err(BadRequest::TokenOutsideVocabulary { token, vocab });
                }
                tokens.len()
            }
            Input::Drawn => 1,
        };
        let length = engine.length(sequence) + count;
        if length > context {
            return Err(BadRequest::ContextExceeded { sequence, length, context });
        }
        if let Want::Token(draw) = &item.want {
            check_draw(draw, sequence, vocab)?;
        }
        total += count;
    }
    let most = engine.capacity().tokens_per_step;
    match total > most {
        true => Err(BadRequest::StepTooLong { tokens: total, most }),
        false => Ok(()),
    }
}

/// # Errors
/// The mask has the wrong length or allows no token, a token is outside the vocabulary, or too many log probabilities are requested.
fn check_draw(draw: &Draw<'_>, sequence: SequenceId, vocab: usize) -> Result<(), BadRequest> {
    if let Some(words) = draw.allowed {
        let expected = vocab.div_ceil(32);
        if words.len() != expected {
            return Err(BadRequest::MaskLength { words: words.len(), vocab, expected });
        }
        if !(0..vocab).any(|token| draw.allows(token)) {
            return Err(BadRequest::NothingAllowed(sequence));
        }
    }
    if let Some(adjustment) = draw.adjustments.iter().find(|adjustment| adjustment.token as usize >= vocab) {
        return Err(BadRequest::TokenOutsideVocabulary { token: adjustment.token, vocab });
    }
    match draw.logprobs {
        Some(count) if count > MAX_LOGPROBS => Err(BadRequest::TooManyLogprobs(count)),
        _ => Ok(()),
    }
}
