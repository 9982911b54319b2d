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

/// A token that may still be drawn. Its logit is neither NaN nor -inf.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    /// Probability relative to the most likely token, whose weight is exactly 1.
    weight: f64,
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
    /// Reused between tokens.
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for rows of `vocab` logits, or the first parameter out of its range.
    pub fn new(params: SamplingParams, vocab: usize) -> Result<Self, SamplingError> {
        params.validate(vocab)?;
        Ok(Self {
            vocab,
            rng: ChaCha8Rng::seed_from_u64(params.seed),
            seen: HashMap::new(),
            candidates: Vec::new(),
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
        let params = &self.params;
        let candidates = &mut self.candidates;
        candidates.clear();
        for (token, &logit) in (0..).zip(logits) {
            // False for NaN, too.
            if logit > f32::NEG_INFINITY {
                let weight = 0.0;
                candidates.push(Candidate { token, logit, weight });
            }
        }

        // Temperature keeps the ranks, so top-k comes first and saves exponentials.
        if (1..candidates.len()).contains(&params.top_k) {
            rank_prefix(candidates, params.top_k);
            candidates.truncate(params.top_k);
        }
        let max = candidates.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit));
        for candidate in candidates.iter_mut() {
            // inf - inf is NaN, which `min` turns into 0: infinite logits tie.
            let below_max = (f64::from(candidate.logit) - f64::from(max)).min(0.0);
            candidate.weight = exp(below_max / f64::from(params.temperature));
        }
        if params.top_p < 1.0 {
            keep_nucleus(candidates, f64::from(params.top_p));
        }
        // The largest weight is 1, so min-p compares weights without normalising them.
        candidates.retain(|c| c.weight >= f64::from(params.min_p));
        // In the vocabulary's order, whatever the filters did to it: an engine that draws by itself need not sort.
        candidates.sort_unstable_by_key(|c| c.token);

        let total: f64 = candidates.iter().map(|c| c.weight).sum();
        let drawn = self.rng.random::<f64>() * total;
        let mut cumulative = 0.0;
        let hit = candidates.iter().find(|c| {
            cumulative += c.weight;
            drawn < cumulative
        });
        // Only a row without candidates has no hit: its answer is the greedy one.
        hit.map_or_else(|| argmax(logits), |c| c.token)
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

/// Likeliest first, the lower token winning a tie: a strict order, so that no survivor
/// depends on how an unstable sort moves equals.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    let by_logit = b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal);
    by_logit.then(a.token.cmp(&b.token))
}

/// Moves the `count` first candidates by rank to the front, in order, without sorting the
/// rest.
fn rank_prefix(candidates: &mut [Candidate], count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, by_rank);
    }
    let count = count.min(candidates.len());
    candidates[..count].sort_unstable_by(by_rank);
}

/// Truncates to the shortest prefix by rank that holds `top_p` of the weight, and one
/// candidate at least. Ranks in growing steps, as a nucleus is mostly a few tokens.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let needed = top_p * candidates.iter().map(|c| c.weight).sum::<f64>();
    let mut mass = 0.0;
    let mut ranked = 0;
    let mut step = 256;
    while ranked < candidates.len() {
        rank_prefix(&mut candidates[ranked..], step);
        let end = candidates.len().min(ranked + step);
        for i in ranked..end {
            mass += candidates[i].weight;
            if mass >= needed {
                candidates.truncate(i + 1);
                return;
            }
        }
        ranked = end;
        step *= 4;
    }
}

/// `e^x` for `x ≤ 0`, to 1e-13 relative; 0 below the smallest normal number. In place of
/// [`f64::exp`], whose last bits differ between platforms.
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
    // e^x = 2^y = 2^k · e^r, with k = round(y) and |r| ≤ ln 2 / 2.
    let y = x * LOG2_E;
    if y < -1022.0 {
        return 0.0;
    }
    let k = (y - 0.5) as i64;
    let r = (y - k as f64) * LN_2;
    let e_r = COEFFICIENTS.iter().rev().fold(0.0, |sum, c| sum * r + c);
    let two_k = f64::from_bits(((1023 + k) as u64) << 52);
    two_k * e_r
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
