//! Logits as a draw may use them: some tokens banned by a mask, some logits adjusted. The model's own logits stay as they are.

use cubecl::prelude::*;
use phase2_forward::{Adjustment, Draw};

use super::project::spread;
use crate::gpu::device::{Buffer, Gpu};

const UNITS: u32 = 256;
/// Words of an adjustment: row, token, and the bits of bias, repetition penalty and penalty.
pub(crate) const ADJUSTMENT_WORDS: usize = 5;
/// Stands for the mask of a row that has none.
pub(crate) const NO_MASK: u32 = u32::MAX;
/// The bits of −∞, which shader languages have no literal for.
const MINUS_INFINITY: u32 = 0xff80_0000;

/// Restricts the logits of some rows.
pub(crate) struct Restrict<'a> {
    /// `[inputs, vocab]`
    pub logits: &'a Buffer,
    /// The same, restricted.
    pub out: &'a Buffer,
    pub vocab: usize,
    /// By row the number of its mask, or [`NO_MASK`].
    pub mask_of: &'a Buffer,
    /// `[masks, vocab / 32]` words.
    pub masks: &'a Buffer,
    /// A count, then as many adjustments of [`ADJUSTMENT_WORDS`] words.
    pub adjustments: &'a Buffer,
    pub inputs: usize,
}

/// What the draws of some rows restrict, as [`Restrict`] reads it.
pub(crate) struct Restrictions {
    pub mask_of: Vec<u32>,
    pub masks: Vec<u32>,
    pub adjustments: Vec<u32>,
}

impl Restrictions {
    /// `None` if no draw restricts anything.
    pub fn of(draws: &[&Draw<'_>]) -> Option<Restrictions> {
        if draws.iter().all(|draw| draw.allowed.is_none() && draw.adjustments.is_empty()) {
            return None;
        }
        let mut masks = 0;
        let mut mask_of = |draw: &&Draw<'_>| match draw.allowed {
            Some(_) => {
                masks += 1;
                masks - 1
            }
            None => NO_MASK,
        };
        let words = |(row, adjustment): (usize, &Adjustment)| {
            let &Adjustment { token, bias, repetition_penalty, penalty } = adjustment;
            [row as u32, token, bias.to_bits(), repetition_penalty.to_bits(), penalty.to_bits()]
        };
        let all = draws.iter().enumerate().flat_map(|(row, draw)| draw.adjustments.iter().map(move |one| (row, one)));
        let adjustments: Vec<u32> = all.flat_map(words).collect();
        Some(Restrictions {
            mask_of: draws.iter().map(&mut mask_of).collect(),
            masks: draws.iter().filter_map(|draw| draw.allowed).flatten().copied().collect(),
            adjustments: [vec![(adjustments.len() / ADJUSTMENT_WORDS) as u32], adjustments].concat(),
        })
    }
}

impl Restrict<'_> {
    pub fn launch(&self, gpu: &Gpu) {
        let (inputs, vocab) = (self.inputs, self.vocab as u32);
        assert!(self.logits.len >= inputs * self.vocab && self.out.len >= inputs * self.vocab, "logits of every row");
        assert!(self.mask_of.len >= inputs && self.adjustments.len > 0, "a mask number for every row, and a count");
        let most = ((self.adjustments.len - 1) / ADJUSTMENT_WORDS) as u32;
        let (x, z) = spread(vocab.div_ceil(UNITS));
        // SAFETY: tokens are bounded by the vocabulary, adjustments by their count and by what the buffer holds.
        unsafe {
            mask::launch_unchecked(
                &gpu.client,
                CubeCount::Static(x, inputs as u32, z),
                CubeDim::new_1d(UNITS),
                self.logits.arg(),
                self.mask_of.arg(),
                self.masks.arg(),
                self.out.arg(),
                vocab,
                MINUS_INFINITY,
            );
            adjust::launch_unchecked(
                &gpu.client,
                CubeCount::Static(most.div_ceil(UNITS).max(1), 1, 1),
                CubeDim::new_1d(UNITS),
                self.adjustments.arg(),
                self.out.arg(),
                vocab,
                most,
                MINUS_INFINITY,
            );
        }
    }
}

#[cube(launch_unchecked)]
fn mask(logits: &[f32], mask_of: &[u32], masks: &[u32], out: &mut [f32], vocab: u32, banned: u32) {
    let token = (CUBE_POS_Z * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if token < vocab {
        let row = CUBE_POS_Y;
        let at = (row * vocab + token) as usize;
        let mut bits = u32::reinterpret(logits[at]);
        let number = mask_of[row as usize];
        if number != NO_MASK {
            let word = masks[(number * vocab.div_ceil(32u32) + token / 32) as usize];
            bits = select((word >> (token % 32)) & 1 == 1u32, bits, banned);
        }
        out[at] = f32::reinterpret(bits);
    }
}

#[cube(launch_unchecked)]
fn adjust(adjustments: &[u32], out: &mut [f32], vocab: u32, most: u32, banned: u32) {
    let number = CUBE_POS_X * UNITS + UNIT_POS;
    if number < min(adjustments[0usize], most) {
        let first = number * comptime![ADJUSTMENT_WORDS as u32] + 1;
        let (row, token) = (adjustments[first as usize], adjustments[(first + 1) as usize]);
        let bias = f32::reinterpret(adjustments[(first + 2) as usize]);
        let repetition_penalty = f32::reinterpret(adjustments[(first + 3) as usize]);
        let penalty = f32::reinterpret(adjustments[(first + 4) as usize]);
        let at = (row * vocab + token) as usize;
        let biased = out[at] + bias;
        let scaled = select(biased > 0.0f32, biased / repetition_penalty, biased * repetition_penalty);
        // An infinite logit stays banned: the sum would be no number.
        let is_banned = adjustments[(first + 2) as usize] == banned;
        out[at] = f32::reinterpret(select(is_banned, banned, u32::reinterpret(scaled - penalty)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::testing::{Random, gpu, poisoned};

    #[test]
    fn logits_are_restricted_as_on_the_host() {
        let (gpu, mut random) = (gpu(), Random::fresh());
        for (vocab, inputs) in [(5, 1), (299, 4), (70_001, 3)] {
            let logits = random.values(vocab * inputs, 5.0);
            let masks: Vec<Option<Vec<u32>>> = (0..inputs)
                .map(|row| {
                    (row % 2 == 0).then(|| (0..vocab.div_ceil(32)).map(|_| random.below(1 << 32) as u32).collect())
                })
                .collect();
            let adjustments: Vec<Vec<Adjustment>> = (0..inputs)
                .map(|_| {
                    let mut tokens: Vec<u32> = (0..random.below(9)).map(|_| random.below(vocab) as u32).collect();
                    tokens.sort_unstable();
                    tokens.dedup();
                    let adjustment = |token| Adjustment {
                        token,
                        bias: [0.0, 1.5, f32::NEG_INFINITY][random.below(3)],
                        repetition_penalty: [1.0, 1.25][random.below(2)],
                        penalty: [0.0, 0.5][random.below(2)],
                    };
                    tokens.into_iter().map(adjustment).collect()
                })
                .collect();
            let draws: Vec<Draw<'_>> = (masks.iter().zip(&adjustments))
                .map(|(mask, adjustments)| Draw { allowed: mask.as_deref(), adjustments, ..Draw::GREEDY })
                .collect();
            let of: Vec<&Draw<'_>> = draws.iter().collect();
            let Restrictions { mask_of, masks, adjustments } = Restrictions::of(&of).expect("a mask");
            let out = poisoned(&gpu, vocab * inputs);
            Restrict {
                logits: &gpu.upload_f32(&logits),
                out: &out,
                vocab,
                mask_of: &gpu.upload(mask_of),
                masks: &gpu.upload(masks),
                adjustments: &gpu.upload(adjustments),
                inputs,
            }
            .launch(&gpu);
            let found = gpu.read_f32(&out).expect("reads");
            for (row, draw) in draws.iter().enumerate() {
                let mut expected = logits[row * vocab..][..vocab].to_vec();
                draw.restrict(&mut expected);
                for (token, (&found, &expected)) in found[row * vocab..].iter().zip(&expected).enumerate() {
                    let close = found == expected || (found - expected).abs() <= 1e-6 * expected.abs();
                    assert!(close, "{vocab}, row {row}, token {token}: {found}, expected {expected} {random:?}");
                }
            }
        }
        assert!(Restrictions::of(&[&Draw::GREEDY]).is_none());
    }
}
