//! How a token is drawn from logits. This is the definition that every engine follows, on the host or on a device.
//!
//! In this order: log probabilities of the model's own distribution; adjustments; the mask; then the largest logit at temperature 0,
//! otherwise temperature, top-k, top-p, min-p, and one random number. The number depends on the seed and the position alone: the
//! same seed draws the same way whatever else runs in the batch, and however the prompt was cut into chunks.

mod logprobs;
mod random;
mod weights;

pub use logprobs::{Logprobs, MAX_LOGPROBS};
pub use random::draw_number;

use crate::engine::{BadRequest, SequenceId};
use weights::Weights;

/// Temperature and filters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// `p_i ∝ exp(l_i / temperature)` (Ackley, Hinton & Sejnowski, 1985); 0 takes the first of the largest logits.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens (Fan et al., 2018, arXiv:1805.04833); 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens with `Σ p_i ≥ top_p`, where `p` is normalised over the top-k survivors (Holtzman et al.,
    /// 2020, arXiv:1904.09751); 1 keeps all.
    pub top_p: f32,
    /// Keeps the tokens with `p_i ≥ min_p · max_j p_j` (Nguyen et al., 2024, arXiv:2407.01082); 0 keeps all.
    pub min_p: f32,
}

impl Sampling {
    /// The first of the largest logits.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
}

/// A change to one token's logit before it is sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjustment {
    pub token: u32,
    /// Added first; -inf bans the token.
    pub bias: f32,
    /// Then divides a positive logit and multiplies any other (CTRL, Keskar et al., 2019, arXiv:1909.05858, with the sign rule of
    /// Hugging Face); 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted last.
    pub penalty: f32,
}

impl Adjustment {
    /// The adjusted logit.
    pub fn apply(&self, logit: f32) -> f32 {
        if self.bias == f32::NEG_INFINITY {
            return f32::NEG_INFINITY;
        }
        let biased = logit + self.bias;
        let scaled = if biased > 0.0 { biased / self.repetition_penalty } else { biased * self.repetition_penalty };
        scaled - self.penalty
    }
}

/// How one token is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    pub sampling: Sampling,
    pub seed: u64,
    /// Bit t % 32 of word t / 32 says whether token t may be drawn; `None` allows all.
    pub allowed: Option<&'a [u32]>,
    /// At most one for each token.
    pub adjustments: &'a [Adjustment],
    /// How many of the most likely tokens are reported with their log probabilities; `None` reports none, not even the drawn one's.
    pub logprobs: Option<usize>,
}

impl Draw<'_> {
    /// The first of the largest logits, and nothing else.
    pub const GREEDY: Draw<'static> =
        Draw { sampling: Sampling::GREEDY, seed: 0, allowed: None, adjustments: &[], logprobs: None };

    /// Whether the drawn token is the first of the largest logits.
    pub fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0 || self.sampling.top_k == 1
    }

    /// Whether a token may be drawn.
    pub fn allows(&self, token: usize) -> bool {
        self.allowed.is_none_or(|words| words[token / 32] >> (token % 32) & 1 == 1)
    }

    /// # Errors
    /// A mask of another length or without a token, a token outside the vocabulary, or too many log probabilities.
    pub(crate) fn check(&self, sequence: SequenceId, vocab: usize) -> Result<(), BadRequest> {
        if let Some(words) = self.allowed {
            let expected = vocab.div_ceil(32);
            if words.len() != expected {
                return Err(BadRequest::MaskLength { words: words.len(), vocab, expected });
            }
            if !(0..vocab).any(|token| self.allows(token)) {
                return Err(BadRequest::NothingAllowed(sequence));
            }
        }
        if let Some(adjustment) = self.adjustments.iter().find(|adjustment| adjustment.token as usize >= vocab) {
            return Err(BadRequest::TokenOutsideVocabulary { token: adjustment.token, vocab });
        }
        match self.logprobs {
            Some(count) if count > MAX_LOGPROBS => Err(BadRequest::TooManyLogprobs(count)),
            _ => Ok(()),
        }
    }

    /// Changes logits as the adjustments and the mask say.
    pub fn restrict(&self, logits: &mut [f32]) {
        for adjustment in self.adjustments {
            let logit = &mut logits[adjustment.token as usize];
            *logit = adjustment.apply(*logit);
        }
        if self.allowed.is_some() {
            let banned = logits.iter_mut().enumerate().filter(|(token, _)| !self.allows(*token));
            banned.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        }
    }
}

/// A token that was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnToken {
    pub id: u32,
    pub logprobs: Option<Logprobs>,
}

/// Draws tokens on the host. Keeps its buffers from draw to draw.
#[derive(Clone, Debug, Default)]
pub struct HostDraw {
    weights: Weights,
}

impl HostDraw {
    /// The token at `position` of a sequence, from the logits `[vocab]` after the token before it; `None` if one of them is NaN.
    /// Leaves the adjusted and masked logits behind.
    ///
    /// If no logit is above -inf, it is the lowest token that is allowed.
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
        // A row without candidates has no largest logit.
        let id = match logits[id as usize] == f32::NEG_INFINITY {
            true => (0..logits.len()).find(|&token| draw.allows(token)).unwrap_or(0) as u32,
            false => id,
        };
        let logprobs = top.zip(raw).map(|(top, raw)| top.for_token(raw[id as usize]));
        Some(DrawnToken { id, logprobs })
    }
}

impl HostDraw {
    /// The token that `number` from [0, 1) draws from logits as they are, at a temperature above 0.
    pub fn draw_number(&mut self, logits: &[f32], sampling: &Sampling, number: f32) -> u32 {
        self.weights.draw(logits, sampling, number)
    }
}

/// The lowest token with the largest logit; 0 for an empty row.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = (0..).zip(logits).reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(token, _)| token)
}
