//! Draws a token: filters the probabilities, then takes the first token at which their cumulative sum exceeds the random number.
//!
//! This module does not use the system's math library, so that equal logits give the same token on every platform.

use std::cmp::Ordering;
use std::f64::consts::{LN_2, LOG2_E};

use super::Sampling;

/// Each token's probability relative to the most likely one's, which is exactly 1; 0 for a token that must not be drawn. The buffer is
/// reused.
#[derive(Clone, Debug, Default)]
pub(super) struct Weights(Vec<f64>);

impl Weights {
    /// The first token, in the order of the vocabulary, at which the cumulative sum of the filtered probabilities exceeds `number` in [0,
    /// 1); `None` if no logit is above -inf.
    pub fn draw(&mut self, logits: &[f32], sampling: &Sampling, number: f32) -> Option<u32> {
        let &Sampling { temperature, top_k, top_p, min_p } = sampling;
        let weights = &mut self.0;
        let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, &logit| largest.max(logit));
        weigh(logits, largest, temperature, weights);
        let buckets_per_logit = BUCKETS_PER_E / f64::from(temperature);
        let mut ranking = Ranking { logits, largest, buckets_per_logit, weights };
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
        let drawn = f64::from(number) * weights.iter().sum::<f64>();
        let mut cumulative = 0.0;
        let hit = weights.iter().position(|weight| {
            cumulative += weight;
            drawn < cumulative
        });
        hit.map(|token| token as u32)
    }
}

/// `weights[t] = exp((logits[t] - largest) / temperature)`, 0 for NaN and -inf.
fn weigh(logits: &[f32], largest: f32, temperature: f32, weights: &mut Vec<f64>) {
    weights.clear();
    weights.extend(logits.iter().map(|&logit| {
        // inf - inf is NaN, which `min` turns into 0: all logits of +inf have the weight 1.
        let below = (f64::from(logit) - f64::from(largest)).min(0.0);
        let weight = exp(below / f64::from(temperature));
        if logit > f32::NEG_INFINITY { weight } else { 0.0 }
    }));
}

/// The tokens that may be drawn, ordered by probability, most likely first, and of equals the lower token first.
struct Ranking<'a> {
    logits: &'a [f32],
    largest: f32,
    buckets_per_logit: f64,
    weights: &'a mut [f64],
}

/// Number of buckets into which a ranking distributes the tokens by weight.
const BUCKETS: usize = 4096;
/// Number of buckets between two weights that differ by a factor of e.
const BUCKETS_PER_E: f64 = 128.0;

impl Ranking<'_> {
    fn bucket(&self, token: usize) -> usize {
        let below = f64::from(self.largest) - f64::from(self.logits[token]);
        ((below * self.buckets_per_logit) as usize).min(BUCKETS - 1)
    }

    /// Keeps the shortest prefix, of at least one token, whose number and total weight satisfy `enough`. Only the bucket in
    /// which the prefix ends is sorted: all tokens of the buckets before it are kept, and all tokens of the buckets after it are dropped.
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

/// `e^x` for `x ≤ 0`, with a relative error below 1e-13; 0 below the smallest normal number. Used instead of [`f64::exp`], whose last bits
/// differ between platforms. Has no branches, so that compilers vectorize it.
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
    /// Near 1.5 · 2^52 consecutive floats differ by 1, so adding this constant leaves a rounded integer in the lowest bits.
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
