//! Sampling parameters of a generated text, and how each of its tokens is drawn with them.
//!
//! Temperature, filters and seed are the same for every token. Biases and penalties become adjustments of single logits that depend on the
//! tokens so far.

use std::collections::BTreeMap;

use phase2_forward::{Adjustment, Draw, Sampling};
use thiserror::Error;

/// How to turn logits into tokens. The default is greedy, with everything else off.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    pub sampling: Sampling,
    /// For every token `i` of the prompt and of the generated text, divides its logit `l_i` by
    /// this number if `l_i` is positive, and multiplies it otherwise (CTRL, Keskar et al., 2019,
    /// arXiv:1909.05858, with the sign rule of Hugging Face); 1 is off.
    pub repetition_penalty: f32,
    /// `l_i - [c_i > 0] · presence_penalty`, with `c_i` the times that token `i` was
    /// generated, prompt excluded (OpenAI API reference); 0 is off.
    pub presence_penalty: f32,
    /// `l_i - c_i · frequency_penalty`, with the same `c_i` (OpenAI API reference); 0 is off.
    pub frequency_penalty: f32,
    /// `l_i + bias` for each `(i, bias)`; biases of the same token are added (OpenAI API reference). A bias of -inf bans the token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers; greedy decoding uses none.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            sampling: Sampling::GREEDY,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// An invalid sampling parameter.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum SamplingError {
    #[error("{parameter} is {value}, but must be {accepted}")]
    OutOfRange { parameter: &'static str, value: f32, accepted: &'static str },
    #[error("logit_bias of token {token} is {bias}, but must be finite or -inf")]
    Bias { token: u32, bias: f32 },
    #[error("logit_bias names token {token}, but must name tokens below the vocabulary of {vocab}")]
    BiasToken { token: u32, vocab: usize },
}

impl SamplingParams {
    /// Checks every parameter that has a limited range, and biased tokens against `vocab`.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn validate(&self, vocab: usize) -> Result<(), SamplingError> {
        let Sampling { temperature, top_p, min_p, .. } = self.sampling;
        let temperature_ok = temperature.is_finite() && temperature >= 0.0;
        let repetition_ok = self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0;
        let unit = 0.0..=1.0;
        #[rustfmt::skip]
        let checks = [
            ("temperature", temperature, temperature_ok, "finite and at least 0"),
            ("top_p", top_p, unit.contains(&top_p), "from 0 to 1"),
            ("min_p", min_p, unit.contains(&min_p), "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, repetition_ok, "finite and above 0"),
            ("presence_penalty", self.presence_penalty, self.presence_penalty.is_finite(), "finite"),
            ("frequency_penalty", self.frequency_penalty, self.frequency_penalty.is_finite(), "finite"),
        ];
        for (parameter, value, ok, accepted) in checks {
            if !ok {
                return Err(SamplingError::OutOfRange { parameter, value, accepted });
            }
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocab {
                return Err(SamplingError::BiasToken { token, vocab });
            }
            if bias.is_nan() || bias == f32::INFINITY {
                return Err(SamplingError::Bias { token, bias });
            }
        }
        Ok(())
    }

    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Produces the [`Draw`] of each token of one text.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    vocab: usize,
    /// Summed biases, by token.
    biases: BTreeMap<u32, f32>,
    /// Every token so far, with how often it was generated (0 if only in the prompt). Empty without penalties.
    seen: BTreeMap<u32, u32>,
    adjustments: Vec<Adjustment>,
}

impl Sampler {
    /// A sampler for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn new(params: SamplingParams, vocab: usize) -> Result<Self, SamplingError> {
        params.validate(vocab)?;
        let mut biases = BTreeMap::new();
        for &(token, bias) in &params.logit_bias {
            *biases.entry(token).or_insert(0.0) += bias;
        }
        Ok(Self { params, vocab, biases, seen: BTreeMap::new(), adjustments: Vec::new() })
    }

    /// Counts the prompt's tokens for the repetition penalty, but not for the presence and frequency penalties, as vLLM does. Panics on a
    /// token outside the vocabulary.
    pub fn observe_prompt(&mut self, tokens: &[u32]) {
        for &token in tokens {
            assert!((token as usize) < self.vocab, "prompt token {token} is outside the vocabulary of {}", self.vocab);
            if self.params.has_penalties() {
                self.seen.entry(token).or_insert(0);
            }
        }
    }

    /// Counts a generated token.
    pub fn accept(&mut self, token: u32) {
        if self.params.has_penalties() {
            *self.seen.entry(token).or_insert(0) += 1;
        }
    }

    /// Whether each draw depends on the token before it, so that the next step cannot be submitted before that token is known.
    pub fn depends_on_tokens(&self) -> bool {
        self.params.has_penalties()
    }

    /// The draw of the next token.
    pub fn next_draw(&mut self) -> Draw<'_> {
        let params = &self.params;
        self.adjustments.clear();
        let seen_or_biased = self.seen.keys().chain(self.biases.keys().filter(|&token| !self.seen.contains_key(token)));
        self.adjustments.extend(seen_or_biased.map(|&token| {
            let generated = self.seen.get(&token).copied();
            Adjustment {
                token,
                bias: self.biases.get(&token).copied().unwrap_or(0.0),
                repetition_penalty: if generated.is_some() { params.repetition_penalty } else { 1.0 },
                penalty: match generated {
                    Some(count) if count > 0 => params.presence_penalty + count as f32 * params.frequency_penalty,
                    _ => 0.0,
                },
            }
        }));
        Draw {
            sampling: params.sampling,
            seed: params.seed,
            allowed: None,
            adjustments: &self.adjustments,
            logprobs: None,
        }
    }
}
