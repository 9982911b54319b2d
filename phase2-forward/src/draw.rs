//! How a token is drawn from logits: the definition for all engines, on the host and on devices.
//!
//! Steps, in this order: log probabilities of the model's own distribution; adjustments; the mask; then, at temperature 0, the largest
//! logit, otherwise temperature, top-k, top-p, min-p, and one random number. That number depends only on the seed and the position, so a
//! seed gives the same text whatever else runs in the batch and however the prompt was cut into chunks.

mod host;
mod logprobs;
mod random;
mod weights;

pub use host::{HostDraw, argmax};
pub use logprobs::{Logprobs, MAX_LOGPROBS};
pub use random::draw_number;

/// Temperature and filters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// `p_i ∝ exp(l_i / temperature)` (Ackley, Hinton & Sejnowski, 1985); 0 takes the largest logit, and of equal
    /// logits the lowest token.
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
    /// Takes the largest logit, and of equal logits the lowest token.
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
    /// At most one per token.
    pub adjustments: &'a [Adjustment],
    /// How many of the most likely tokens are reported with their log probabilities; `None` reports none, not even the drawn one's.
    pub logprobs: Option<usize>,
}

impl Draw<'_> {
    /// Takes the largest logit, and of equal logits the lowest token; no mask, adjustments or log probabilities.
    pub const GREEDY: Draw<'static> =
        Draw { sampling: Sampling::GREEDY, seed: 0, allowed: None, adjustments: &[], logprobs: None };

    /// Whether the draw takes the token with the largest logit, without a random number.
    pub fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0 || self.sampling.top_k == 1
    }

    /// Whether the mask allows a token.
    pub fn allows(&self, token: usize) -> bool {
        self.allowed.is_none_or(|words| words[token / 32] >> (token % 32) & 1 == 1)
    }

    /// Applies the adjustments and the mask to logits.
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

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnToken {
    pub id: u32,
    pub logprobs: Option<Logprobs>,
}
