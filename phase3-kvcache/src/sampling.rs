//! Chooses the next token from one row of logits, on the host.
//!
//! The steps run in a fixed order: logit bias, repetition penalty, presence and
//! frequency penalty; then argmax at temperature 0, otherwise temperature, top-k,
//! top-p, min-p, softmax and a draw. This module never sees text or a device.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::f64::consts::{LN_2, LOG2_E};

use phase2_forward::Choice;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

/// How to turn logits into a token. The default is greedy, with everything else off.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// `p_i ∝ exp(l_i / temperature)` (Ackley, Hinton & Sejnowski, 1985); 0 takes the argmax.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens (Fan et al., 2018, arXiv:1805.04833); 0 is off.
    pub top_k: usize,
    /// Nucleus: keeps the fewest most likely tokens with `Σ p_i ≥ top_p`, where `p` is
    /// normalised over the top-k survivors (Holtzman et al., 2020, arXiv:1904.09751);
    /// 1 is off.
    pub top_p: f32,
    /// Keeps the tokens with `p_i ≥ min_p · max_j p_j` (Nguyen et al., 2024,
    /// arXiv:2407.01082); 0 is off.
    pub min_p: f32,
    /// For every token of the prompt and of the generated text, divides `l_i` if it is
    /// positive and multiplies it otherwise (CTRL, Keskar et al., 2019, arXiv:1909.05858,
    /// with the sign rule of Hugging Face); 1 is off.
    pub repetition_penalty: f32,
    /// `l_i - [c_i > 0] · presence_penalty`, with `c_i` the times that token `i` was
    /// generated, prompt excluded (OpenAI API reference); 0 is off.
    pub presence_penalty: f32,
    /// `l_i - c_i · frequency_penalty`, with the same `c_i` (OpenAI API reference); 0 is off.
    pub frequency_penalty: f32,
    /// `l_i + bias` for each `(i, bias)`, a repeated token adding up (OpenAI API
    /// reference); a bias of -inf bans the token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the ChaCha8 stream behind the draws; greedy choices consume nothing of it.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// A parameter that no sampler can be built from.
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
    /// The part that an engine can do by itself; `None` if the choice depends on earlier tokens or favours some.
    pub fn choice(&self) -> Option<Choice> {
        let alone = self.repetition_penalty == 1.0
            && self.presence_penalty == 0.0
            && self.frequency_penalty == 0.0
            && self.logit_bias.is_empty();
        let &SamplingParams { temperature, top_k, top_p, min_p, .. } = self;
        alone.then_some(Choice { temperature, top_k, top_p, min_p })
    }

    /// Checks every parameter against its range, and biased tokens against `vocab`.
    pub fn validate(&self, vocab: usize) -> Result<(), SamplingError> {
        let temperature_ok = self.temperature.is_finite() && self.temperature >= 0.0;
        let repetition_ok = self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0;
        let unit = 0.0..=1.0;
        #[rustfmt::skip]
        let checks = [
            ("temperature", self.temperature, temperature_ok, "finite and at least 0"),
            ("top_p", self.top_p, unit.contains(&self.top_p), "from 0 to 1"),
            ("min_p", self.min_p, unit.contains(&self.min_p), "from 0 to 1"),
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
}

/// Draws the tokens of one sequence. The same parameters, prompt and logits give the
/// same tokens on every platform: nothing here depends on the system's math library.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    vocab: usize,
    rng: ChaCha8Rng,
    /// Every token so far, with the times it was generated (0: in the prompt only).
    seen: HashMap<u32, u32>,
    /// By token its probability relative to the most likely one's, which is exactly 1; 0 if it is not to be drawn. Reused.
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler for rows of `vocab` logits, or the first parameter out of its range.
    pub fn new(params: SamplingParams, vocab: usize) -> Result<Self, SamplingError> {
        params.validate(vocab)?;
        Ok(Self {
            vocab,
            rng: ChaCha8Rng::seed_from_u64(params.seed),
            seen: HashMap::new(),
            weights: Vec::new(),
            params,
        })
    }

    /// Makes prompt tokens count for the repetition penalty, but not for the presence and
    /// frequency penalties, as vLLM does. Panics on a token outside the vocabulary.
    pub fn observe_prompt(&mut self, tokens: &[u32]) {
        for &token in tokens {
            assert!((token as usize) < self.vocab, "prompt token {token} is outside the vocabulary of {}", self.vocab);
            self.seen.entry(token).or_insert(0);
        }
    }

    /// Chooses a token from `logits: [vocab]` and counts it as generated. Leaves the biased
    /// and penalised logits behind in `logits`.
    ///
    /// A NaN logit never wins. If no logit is above -inf, the result is the lowest token
    /// at -inf, or token 0 if all are NaN. Panics if `logits` is not `vocab` long.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        assert_eq!(logits.len(), self.vocab, "one logit per token");
        self.bias_and_penalise(logits);
        let token = if self.params.temperature == 0.0 { argmax(logits) } else { self.draw(logits) };
        *self.seen.entry(token).or_insert(0) += 1;
        token
    }

    /// The numbers behind the draws to come. Taking them leaves the sampler as it is.
    pub fn draws(&self) -> impl FnMut() -> f64 + use<> {
        let mut rng = self.rng.clone();
        move || rng.random()
    }

    /// Counts a token that an engine chose with the next of [`Sampler::draws`], as [`Sampler::sample`] would have.
    pub fn accept(&mut self, token: u32) {
        if self.params.temperature > 0.0 {
            let _: f64 = self.rng.random();
        }
        *self.seen.entry(token).or_insert(0) += 1;
    }

    fn bias_and_penalise(&self, logits: &mut [f32]) {
        let params = &self.params;
        for &(token, bias) in &params.logit_bias {
            logits[token as usize] += bias;
        }
        for (&token, &generated) in &self.seen {
            let logit = &mut logits[token as usize];
            if *logit > 0.0 {
                *logit /= params.repetition_penalty;
            } else {
                *logit *= params.repetition_penalty;
            }
            if generated > 0 {
                *logit -= params.presence_penalty + generated as f32 * params.frequency_penalty;
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        let weights = &mut self.weights;
        let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, &logit| largest.max(logit));
        weigh(logits, largest, temperature, weights);
        let buckets_a_logit = BUCKETS_AN_E / f64::from(temperature);
        let mut ranking = Ranking { logits, largest, buckets_a_logit, weights };
        if top_k > 0 {
            ranking.keep_first(|count, _| count >= top_k);
        }
        if top_p < 1.0 {
            let needed = f64::from(top_p) * ranking.weights.iter().sum::<f64>();
            ranking.keep_first(|_, mass| mass >= needed);
        }
        if min_p > 0.0 {
            // The largest weight is 1, so min-p compares weights without normalising them.
            weights.iter_mut().filter(|weight| **weight < f64::from(min_p)).for_each(|weight| *weight = 0.0);
        }

        let total: f64 = weights.iter().sum();
        let drawn = self.rng.random::<f64>() * total;
        let mut cumulative = 0.0;
        // In the vocabulary's order: an engine that draws by itself need not sort.
        let hit = weights.iter().position(|weight| {
            cumulative += weight;
            drawn < cumulative
        });
        // Only a row without candidates has no hit: its answer is the greedy one.
        hit.map_or_else(|| argmax(logits), |token| token as u32)
    }
}

/// The lowest token with the largest logit, NaN aside; 0 if there is none.
fn argmax(logits: &[f32]) -> u32 {
    (0..)
        .zip(logits)
        .filter(|(_, logit)| !logit.is_nan())
        .reduce(|best, next| if next.1 > best.1 { next } else { best })
        .map_or(0, |(token, _)| token)
}

/// `weights[t] = exp((logits[t] - largest) / temperature)`, 0 for NaN and -inf.
fn weigh(logits: &[f32], largest: f32, temperature: f32, weights: &mut Vec<f64>) {
    weights.clear();
    weights.extend(logits.iter().map(|&logit| {
        // inf - inf is NaN, which `min` turns into 0: infinite logits tie.
        let below = (f64::from(logit) - f64::from(largest)).min(0.0);
        let weight = exp(below / f64::from(temperature));
        if logit > f32::NEG_INFINITY { weight } else { 0.0 }
    }));
}

/// Tokens that may be drawn, likeliest first, the lower token winning a tie.
struct Ranking<'a> {
    logits: &'a [f32],
    largest: f32,
    buckets_a_logit: f64,
    weights: &'a mut [f64],
}

/// Buckets that a ranking has, and for each factor e of the weight.
const BUCKETS: usize = 4096;
const BUCKETS_AN_E: f64 = 128.0;

impl Ranking<'_> {
    fn bucket(&self, token: usize) -> usize {
        let below = f64::from(self.largest) - f64::from(self.logits[token]);
        ((below * self.buckets_a_logit) as usize).min(BUCKETS - 1)
    }

    /// Leaves the fewest first tokens whose number and weight are enough, and one at least. Only the tokens of one bucket are
    /// sorted: those before it stay, those behind it go.
    fn keep_first(&mut self, enough: impl Fn(usize, f64) -> bool) {
        let mut buckets = vec![(0, 0.0); BUCKETS];
        for (token, &weight) in self.weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            let (count, mass) = &mut buckets[self.bucket(token)];
            (*count, *mass) = (*count + 1, *mass + weight);
        }
        let (mut count, mut mass) = (0, 0.0);
        let last = buckets.iter().position(|&(more, weight)| {
            let found = more > 0 && enough(count + more, mass + weight);
            if !found {
                (count, mass) = (count + more, mass + weight);
            }
            found
        });
        let Some(last) = last else { return };

        let mut undecided = Vec::new();
        for token in 0..self.weights.len() {
            match self.bucket(token).cmp(&last) {
                Ordering::Equal if self.weights[token] > 0.0 => undecided.push(token),
                Ordering::Greater => self.weights[token] = 0.0,
                _ => (),
            }
        }
        let logit = |token: usize| self.logits[token];
        undecided.sort_unstable_by(|&a, &b| logit(b).partial_cmp(&logit(a)).unwrap_or(Ordering::Equal).then(a.cmp(&b)));
        let mut done = false;
        for token in undecided {
            if done {
                self.weights[token] = 0.0;
            }
            (count, mass) = (count + 1, mass + self.weights[token]);
            done = done || enough(count, mass);
        }
    }
}

/// `e^x` for `x ≤ 0`, to 1e-13 relative; 0 below the smallest normal number. In place of [`f64::exp`], whose last bits differ
/// between platforms. Without branches, so that compilers make vectors of it.
#[inline]
fn exp(x: f64) -> f64 {
    /// `1 / n!`, the Taylor coefficients of `e^r`.
    const COEFFICIENTS: [f64; 14] = {
        let mut coefficients = [1.0; 14];
        let mut n = 1;
        while n < 14 {
            coefficients[n] = coefficients[n - 1] / n as f64;
            n += 1;
        }
        coefficients
    };
    /// Next to 1.5 · 2^52 a float's steps are ones, and its lowest bits a whole number.
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    // e^x = 2^y = 2^k · e^r, with k = round(y) and |r| ≤ ln 2 / 2.
    let y = (x * LOG2_E).max(-1100.0);
    let shifted = y + WHOLE;
    let r = (y - (shifted - WHOLE)) * LN_2;
    let e_r = COEFFICIENTS.iter().rev().fold(0.0, |sum, c| sum * r + c);
    let two_k = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if y < -1022.0 { 0.0 } else { two_k * e_r }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_agrees_with_std() {
        for x in (0..=70_800).map(|i| f64::from(i) / -100.0) {
            let error = (exp(x) - x.exp()).abs() / x.exp();
            assert!(error < 1e-13, "exp({x}) is off by {error:e} relative");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e300), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
    }
}
