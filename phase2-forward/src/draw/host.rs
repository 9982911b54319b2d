//! Draws tokens on the host.

use super::logprobs::Logprobs;
use super::random::draw_number;
use super::weights::Weights;
use super::{Draw, DrawnToken, Sampling};

/// Draws tokens from logits on the host. Reuses its buffers.
#[derive(Clone, Debug, Default)]
pub struct HostDraw {
    weights: Weights,
}

impl HostDraw {
    /// Draws the token at `position` of a sequence from the logits `[vocab]` of the token before it; `None` if a logit is NaN.
    /// Otherwise `logits` is adjusted and masked on return.
    ///
    /// If no adjusted logit of an allowed token is above -inf, the result is the lowest allowed token.
    pub fn draw(&mut self, logits: &mut [f32], position: usize, draw: &Draw<'_>) -> Option<DrawnToken> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return None;
        }
        let top = draw.logprobs.map(|count| Logprobs::of(logits, count));
        let raw = draw.logprobs.map(|_| logits.to_vec());
        draw.restrict(logits);
        let id = match draw.is_greedy() {
            true => argmax(logits),
            false => self.draw_number(logits, &draw.sampling, draw_number(draw.seed, position)),
        };
        // If all logits are -inf, the draw above had no candidate.
        let id = match logits[id as usize] == f32::NEG_INFINITY {
            true => (0..logits.len()).find(|&token| draw.allows(token)).unwrap_or(0) as u32,
            false => id,
        };
        let logprobs = top.zip(raw).map(|(top, raw)| top.for_token(raw[id as usize]));
        Some(DrawnToken { id, logprobs })
    }

    /// The token that `number` in [0, 1) draws from logits as they are (no adjustments, no mask), at a temperature above 0.
    pub fn draw_number(&mut self, logits: &[f32], sampling: &Sampling, number: f32) -> u32 {
        self.weights.draw(logits, sampling, number).unwrap_or_else(|| argmax(logits))
    }
}

/// The lowest token with the largest logit; 0 for an empty row.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = (0..).zip(logits).reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(token, _)| token)
}
