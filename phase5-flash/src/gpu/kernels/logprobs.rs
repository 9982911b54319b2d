//! Log probabilities of the model's own distribution: the logarithm of the sum of exponentials, the drawn token's logit, and the
//! largest logits with their tokens.
//!
//! Two launches: every cube of the first takes a stripe of the vocabulary and finds its largest logits one after another; a cube per row
//! of the second merges the stripes.

use cubecl::prelude::*;
use phase2_forward::{Logprobs, MAX_LOGPROBS};

use super::greedy::{STRIPES, best_of_cube};
use super::reduce::cube_sum;
use crate::gpu::device::{Buffer, Gpu};

const UNITS: u32 = 256;
const TOP: u32 = MAX_LOGPROBS as u32;
/// Words of a row's stripes: the largest logits and their tokens, and the sum of exponentials less the largest.
pub(crate) const STRIPE_TOP_WORDS: usize = (STRIPES * (2 * TOP + 1)) as usize;
/// Words of a row's result: log Σ exp, the drawn token's logit, then logits and tokens.
pub(crate) const LOGPROB_WORDS: usize = 2 + 2 * MAX_LOGPROBS;
/// Below every logit.
const LEAST: f32 = -3.0e38;

/// The log probabilities of some rows.
pub(crate) struct TopLogits<'a> {
    /// `[inputs, vocab]`, as the model gave them.
    pub logits: &'a Buffer,
    pub vocab: usize,
    /// The drawn tokens, `[inputs]`.
    pub tokens: &'a Buffer,
    /// [`STRIPE_TOP_WORDS`] per row.
    pub stripes: &'a Buffer,
    /// [`LOGPROB_WORDS`] per row.
    pub out: &'a Buffer,
    pub inputs: usize,
}

/// A row's result from the device, with its `count` most likely tokens.
pub(crate) fn read_logprobs(words: &[u32], count: usize) -> Logprobs {
    let [log_sum, drawn] = [words[0], words[1]].map(f32::from_bits);
    let top = words[2..].as_chunks::<2>().0.iter().take(count);
    // A vocabulary of fewer tokens has none behind its last.
    let top = top.filter(|[_, token]| *token != u32::MAX).map(|&[logit, token]| (token, f32::from_bits(logit)));
    Logprobs::from_parts(log_sum, drawn, top)
}

impl TopLogits<'_> {
    pub fn launch(&self, gpu: &Gpu) {
        let inputs = self.inputs;
        assert!(self.logits.len >= inputs * self.vocab && self.tokens.len >= inputs, "logits and a token of every row");
        assert!(
            self.stripes.len >= inputs * STRIPE_TOP_WORDS && self.out.len >= inputs * LOGPROB_WORDS,
            "room for rows"
        );
        let units = UNITS.next_multiple_of(gpu.plane);
        let planes = units.div_ceil(gpu.least_plane);
        // SAFETY: tokens are bounded by the vocabulary; the other buffers have their words for every row.
        unsafe {
            top_of_stripe::launch_unchecked(
                &gpu.client,
                CubeCount::Static(STRIPES, inputs as u32, 1),
                CubeDim::new_1d(units),
                self.logits.arg(),
                self.stripes.arg(),
                self.vocab as u32,
                planes,
            );
            top_of_row::launch_unchecked(
                &gpu.client,
                CubeCount::Static(inputs as u32, 1, 1),
                CubeDim::new_1d(units),
                self.logits.arg(),
                self.tokens.arg(),
                self.stripes.arg(),
                self.out.arg(),
                self.vocab as u32,
                planes,
            );
        }
    }
}

/// Whether (`logit`, `token`) comes behind (`before`, `token_before`) in the order of falling logits.
#[cube]
fn is_behind(logit: f32, token: u32, before: f32, token_before: u32) -> bool {
    logit < before || (logit == before && token > token_before)
}

#[cube(launch_unchecked)]
fn top_of_stripe(logits: &[f32], stripes: &mut [u32], vocab: u32, #[comptime] planes: u32) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![planes as usize]);
    let length = vocab.div_ceil(STRIPES);
    let start = CUBE_POS_X * length;
    let end = min(start + length, vocab);
    let row = CUBE_POS_Y * vocab;
    let target = (CUBE_POS_Y * STRIPES + CUBE_POS_X) * comptime![2 * TOP + 1];
    let mut before = f32::new(3.0e38);
    let mut token_before = 0u32;
    let mut largest = f32::new(LEAST);
    for place in 0..TOP {
        let mut best = f32::new(LEAST);
        let mut token = u32::MAX.runtime();
        let mut i = start + UNIT_POS;
        while i < end {
            let logit = logits[(row + i) as usize];
            let left = place == 0u32 || is_behind(logit, i, before, token_before);
            if left && (logit > best || (logit == best && i < token)) {
                best = logit;
                token = i;
            }
            i += CUBE_DIM;
        }
        let (best, token) = best_of_cube(best, token, 0u32, planes);
        if place == 0u32 {
            largest = best;
        }
        if UNIT_POS == 0 {
            stripes[(target + 2 * place) as usize] = u32::reinterpret(best);
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
    let first = row * STRIPES * comptime![2 * TOP + 1];
    let target = row * comptime![LOGPROB_WORDS as u32];
    let mut before = f32::new(3.0e38);
    let mut token_before = 0u32;
    let mut largest = f32::new(LEAST);
    for place in 0..TOP {
        let mut best = f32::new(LEAST);
        let mut token = u32::MAX.runtime();
        let mut i = UNIT_POS;
        while i < comptime![STRIPES * TOP] {
            let at = first + i / TOP * comptime![2 * TOP + 1] + i % TOP * 2;
            let logit = f32::reinterpret(stripes[at as usize]);
            let candidate = stripes[(at + 1) as usize];
            let left = place == 0u32 || is_behind(logit, candidate, before, token_before);
            if candidate != u32::MAX && left && (logit > best || (logit == best && candidate < token)) {
                best = logit;
                token = candidate;
            }
            i += CUBE_DIM;
        }
        let (best, token) = best_of_cube(best, token, 0u32, planes);
        if place == 0u32 {
            largest = best;
        }
        if UNIT_POS == 0 {
            out[(target + 2 + 2 * place) as usize] = u32::reinterpret(best);
            out[(target + 3 + 2 * place) as usize] = token;
        }
        before = best;
        token_before = token;
        sync_cube();
    }
    let mut sum = 0.0f32;
    let mut stripe = UNIT_POS;
    while stripe < STRIPES {
        let at = first + stripe * comptime![2 * TOP + 1];
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
    use phase2_forward::{Draw, HostDraw};

    use super::*;
    use crate::gpu::kernels::testing::{Random, gpu, poisoned};

    #[test]
    fn log_probabilities_are_the_hosts() {
        let (gpu, mut random) = (gpu(), Random::fresh());
        for (vocab, inputs) in [(1, 1), (7, 2), (299, 5), (201_088, 2)] {
            // Few different values, so that there are equals.
            let logits: Vec<f32> = (0..vocab * inputs).map(|_| random.below(200) as f32 * 0.1 - 15.0).collect();
            let tokens: Vec<u32> = (0..inputs).map(|_| random.below(vocab) as u32).collect();
            let (stripes, out) = (poisoned(&gpu, inputs * STRIPE_TOP_WORDS), poisoned(&gpu, inputs * LOGPROB_WORDS));
            TopLogits {
                logits: &gpu.upload_f32(&logits),
                vocab,
                tokens: &gpu.upload(tokens.clone()),
                stripes: &stripes,
                out: &out,
                inputs,
            }
            .launch(&gpu);
            let words = gpu.read(&out).expect("reads");
            for row in 0..inputs {
                let own = &logits[row * vocab..][..vocab];
                let draw = Draw { logprobs: Some(MAX_LOGPROBS), ..Draw::GREEDY };
                let expected = HostDraw::default().draw(&mut own.to_vec(), 0, &draw).and_then(|drawn| drawn.logprobs);
                let expected = expected.expect("wanted");
                let found = read_logprobs(&words[row * LOGPROB_WORDS..][..LOGPROB_WORDS], MAX_LOGPROBS);
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
