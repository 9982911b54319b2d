//! Computes the data for log probabilities of the model's own distribution: log Σ exp(logit), the drawn token's logit, and the largest
//! logits with their tokens.
//!
//! Two launches: each cube of the first finds the largest logits of a stripe of the vocabulary, one after another; one cube per row of the
//! second merges the stripes. Logits are compared by [rank](super::rank).

use cubecl::prelude::*;

use super::argmax::{STRIPES, best_of_cube};
use super::rank::{NAN_RANK, NO_CANDIDATE, logit_of, rank_or_nan};
use crate::device::{Buffer, Device};
use crate::reduce::cube_sum;

const UNITS: u32 = 256;
/// The largest number of logits that are found per row.
pub const MAX_TOP_LOGITS: usize = 20;
const TOP: u32 = MAX_TOP_LOGITS as u32;
/// Words per stripe: its largest logits and their tokens, and the sum of exponentials relative to the largest.
const STRIPE_WORDS: u32 = 2 * TOP + 1;
/// Words for the stripes of a row.
pub const STRIPE_TOP_WORDS: usize = (STRIPES * STRIPE_WORDS) as usize;
/// Words of the result of a row.
pub const TOP_LOGITS_WORDS: usize = 2 + 2 * MAX_TOP_LOGITS;
/// Stands for the largest logit of a stripe in which all are −∞, so that subtracting it from a logit does not give NaN.
const LEAST: f32 = -3.0e38;

/// Finds the largest logits of several rows.
pub struct TopLogits<'a> {
    /// `[inputs, vocab]`, as the model computed them.
    pub logits: &'a Buffer,
    pub vocab: usize,
    /// The drawn tokens, `[inputs]`.
    pub tokens: &'a Buffer,
    /// [`STRIPE_TOP_WORDS`] per row.
    pub stripes: &'a Buffer,
    /// [`TOP_LOGITS_WORDS`] per row.
    pub out: &'a Buffer,
    pub inputs: usize,
}

/// The result of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowTop {
    /// log Σ exp(logit)
    pub log_sum: f32,
    /// The drawn token's logit.
    pub drawn: f32,
    /// Tokens and their logits, the largest logit first; of equal logits, the lower token first.
    pub top: Vec<(u32, f32)>,
}

impl RowTop {
    /// Reads a row's [`TOP_LOGITS_WORDS`], with at most `count` of the largest logits.
    pub fn read(words: &[u32], count: usize) -> RowTop {
        let [log_sum, drawn] = [words[0], words[1]].map(f32::from_bits);
        let top = words[2..].as_chunks::<2>().0.iter().take(count);
        // There may be fewer tokens with logits above −∞ than the result has places.
        let top = top.filter(|[_, token]| *token != u32::MAX).map(|&[logit, token]| (token, f32::from_bits(logit)));
        RowTop { log_sum, drawn, top: top.collect() }
    }
}

impl TopLogits<'_> {
    /// # Panics
    /// If `vocab` is 0 or a buffer is too short.
    pub fn launch(&self, device: &Device) {
        let TopLogits { vocab, inputs, .. } = *self;
        assert!(vocab > 0, "no logits");
        self.logits.expect("the logits", inputs * vocab);
        self.tokens.expect("the drawn tokens", inputs);
        self.stripes.expect("the stripes' largest logits", inputs * STRIPE_TOP_WORDS);
        self.out.expect("the largest logits", inputs * TOP_LOGITS_WORDS);
        let units = device.whole_planes(UNITS);
        let planes = device.most_planes(units);
        // SAFETY: lengths are checked; tokens are bounded by the vocabulary.
        unsafe {
            top_of_stripe::launch_unchecked(
                device.client(),
                CubeCount::Static(STRIPES, inputs as u32, 1),
                CubeDim::new_1d(units),
                self.logits.arg(),
                self.stripes.arg(),
                vocab as u32,
                planes,
            );
            top_of_row::launch_unchecked(
                device.client(),
                CubeCount::Static(inputs as u32, 1, 1),
                CubeDim::new_1d(units),
                self.logits.arg(),
                self.tokens.arg(),
                self.stripes.arg(),
                self.out.arg(),
                vocab as u32,
                planes,
            );
        }
    }
}

/// Whether (`rank`, `token`) comes after (`before`, `token_before`) in the order of falling ranks.
#[cube]
fn is_behind(rank: u32, token: u32, before: u32, token_before: u32) -> bool {
    rank < before || (rank == before && token > token_before)
}

/// The logit of `rank`, but at least [`LEAST`], which is thus the result for [`NO_CANDIDATE`].
#[cube]
fn logit_or_least(rank: u32) -> f32 {
    max(logit_of(rank), f32::new(LEAST))
}

#[cube(launch_unchecked)]
fn top_of_stripe(logits: &[f32], stripes: &mut [u32], vocab: u32, #[comptime] planes: u32) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![planes as usize]);
    let length = vocab.div_ceil(STRIPES);
    let start = CUBE_POS_X * length;
    let end = min(start + length, vocab);
    let row = CUBE_POS_Y * vocab;
    let target = (CUBE_POS_Y * STRIPES + CUBE_POS_X) * STRIPE_WORDS;
    // The search starts after all NaN: their rank is the largest, and no token is above this one.
    let mut before = NAN_RANK.runtime();
    let mut token_before = u32::MAX.runtime();
    let mut largest = f32::new(LEAST);
    for place in 0..TOP {
        let mut best = NO_CANDIDATE.runtime();
        let mut token = u32::MAX.runtime();
        let mut i = start + UNIT_POS;
        while i < end {
            let rank = rank_or_nan(logits[(row + i) as usize]);
            if is_behind(rank, i, before, token_before) && rank > best {
                best = rank;
                token = i;
            }
            i += CUBE_DIM;
        }
        let (best, token) = best_of_cube(best, token, planes);
        let logit = logit_or_least(best);
        if place == 0u32 {
            largest = logit;
        }
        if UNIT_POS == 0 {
            stripes[(target + 2 * place) as usize] = u32::reinterpret(logit);
            stripes[(target + 2 * place + 1) as usize] = token;
        }
        before = best;
        token_before = token;
        sync_cube();
    }
    let mut sum = 0.0f32;
    let mut i = start + UNIT_POS;
    while i < end {
        sum += (logits[(row + i) as usize] - largest).exp();
        i += CUBE_DIM;
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS == 0 {
        stripes[(target + comptime![2 * TOP]) as usize] = u32::reinterpret(sum);
    }
}

#[cube(launch_unchecked)]
fn top_of_row(logits: &[f32], tokens: &[u32], stripes: &[u32], out: &mut [u32], vocab: u32, #[comptime] planes: u32) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![planes as usize]);
    let row = CUBE_POS_X;
    let first = row * STRIPES * STRIPE_WORDS;
    let target = row * comptime![TOP_LOGITS_WORDS as u32];
    let mut before = NAN_RANK.runtime();
    let mut token_before = u32::MAX.runtime();
    let mut largest = f32::new(LEAST);
    for place in 0..TOP {
        let mut best = NO_CANDIDATE.runtime();
        let mut token = u32::MAX.runtime();
        let mut i = UNIT_POS;
        while i < comptime![STRIPES * TOP] {
            let at = first + i / TOP * STRIPE_WORDS + i % TOP * 2;
            let rank = rank_or_nan(f32::reinterpret(stripes[at as usize]));
            let candidate = stripes[(at + 1) as usize];
            let is_first = rank > best || (rank == best && candidate < token);
            if candidate != u32::MAX && is_behind(rank, candidate, before, token_before) && is_first {
                best = rank;
                token = candidate;
            }
            i += CUBE_DIM;
        }
        let (best, token) = best_of_cube(best, token, planes);
        let logit = logit_or_least(best);
        if place == 0u32 {
            largest = logit;
        }
        if UNIT_POS == 0 {
            out[(target + 2 + 2 * place) as usize] = u32::reinterpret(logit);
            out[(target + 3 + 2 * place) as usize] = token;
        }
        before = best;
        token_before = token;
        sync_cube();
    }
    let mut sum = 0.0f32;
    let mut stripe = UNIT_POS;
    while stripe < STRIPES {
        let at = first + stripe * STRIPE_WORDS;
        let of_stripe = f32::reinterpret(stripes[(at + comptime![2 * TOP]) as usize]);
        sum += of_stripe * (f32::reinterpret(stripes[at as usize]) - largest).exp();
        stripe += CUBE_DIM;
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS == 0 {
        let token = min(tokens[row as usize], vocab - 1);
        out[target as usize] = u32::reinterpret(largest + sum.ln());
        out[(target + 1) as usize] = u32::reinterpret(logits[(row * vocab + token) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use phase2_forward::{Draw, HostDraw, Logprobs, MAX_LOGPROBS};

    use super::*;
    use crate::testing::{Random, device, poisoned};

    #[test]
    fn log_probabilities_equal_the_hosts() {
        let (device, mut random) = (device(), Random::fresh());
        for (vocab, inputs) in [(1, 1), (7, 2), (299, 5), (201_088, 2)] {
            // There are few different values, so that ties occur.
            let logits: Vec<f32> = (0..vocab * inputs).map(|_| random.below(200) as f32 * 0.1 - 15.0).collect();
            let tokens: Vec<u32> = (0..inputs).map(|_| random.below(vocab) as u32).collect();
            let (stripes, out) =
                (poisoned(&device, inputs * STRIPE_TOP_WORDS), poisoned(&device, inputs * TOP_LOGITS_WORDS));
            TopLogits {
                logits: &device.upload_f32(&logits),
                vocab,
                tokens: &device.upload(tokens.clone()),
                stripes: &stripes,
                out: &out,
                inputs,
            }
            .launch(&device);
            let words = device.read(&out).expect("reads");
            for row in 0..inputs {
                let own = &logits[row * vocab..][..vocab];
                let draw = Draw { logprobs: Some(MAX_LOGPROBS), ..Draw::GREEDY };
                let expected = HostDraw::default().draw(&mut own.to_vec(), 0, &draw).and_then(|drawn| drawn.logprobs);
                let expected = expected.expect("log probabilities were requested");
                let found = RowTop::read(&words[row * TOP_LOGITS_WORDS..][..TOP_LOGITS_WORDS], MAX_LOGPROBS);
                let found = Logprobs::from_parts(found.log_sum, found.drawn, found.top);
                let ids = |logprobs: &Logprobs| logprobs.top.iter().map(|top| top.0).collect::<Vec<_>>();
                assert_eq!(ids(&found), ids(&expected), "{vocab} {random:?}");
                for (found, expected) in found.top.iter().zip(&expected.top) {
                    assert!(
                        (found.1 - expected.1).abs() < 1e-4,
                        "{vocab}: {found:?}, expected {expected:?} {random:?}"
                    );
                }
                let token = own[tokens[row] as usize] - own[expected.top[0].0 as usize] + expected.top[0].1;
                assert!((found.token - token).abs() < 1e-4, "{vocab}: {}, expected {token} {random:?}", found.token);
            }
        }
    }
}
