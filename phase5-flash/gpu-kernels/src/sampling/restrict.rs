//! Restricts logits for a draw: adjusts some of them, and bans tokens by a mask. Writes a copy; the model's own logits are kept.

use cubecl::prelude::*;

use crate::device::{Buffer, Device, cube_grid};

const UNITS: u32 = 256;
/// 32-bit words per adjustment.
const ADJUSTMENT_WORDS: usize = 5;
/// Stands for the mask of a row without one.
pub const NO_MASK: u32 = u32::MAX;
/// The bits of −∞, for which shader languages have no literal.
const MINUS_INFINITY: u32 = 0xff80_0000;

/// A change of one logit of one row: `bias` is added, then a positive logit is divided by `repetition_penalty` and any other multiplied by
/// it, then `penalty` is subtracted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitAdjustment {
    pub row: u32,
    pub token: u32,
    pub bias: f32,
    pub repetition_penalty: f32,
    pub penalty: f32,
}

/// Adjustments, at most one per logit, in the format of [`Restrict`]: their number, then their words.
pub fn adjustment_words(adjustments: &[LogitAdjustment]) -> Vec<u32> {
    let words = |&LogitAdjustment { row, token, bias, repetition_penalty, penalty }: &LogitAdjustment| {
        [row, token, bias.to_bits(), repetition_penalty.to_bits(), penalty.to_bits()]
    };
    let count = adjustments.len() as u32;
    [count].into_iter().chain(adjustments.iter().flat_map(words)).collect()
}

/// Words of a mask over the vocabulary: bit t % 32 of word t / 32 says whether token t may be drawn.
pub const fn mask_words(vocab: usize) -> usize {
    vocab.div_ceil(32)
}

/// Restricts the logits of some rows.
pub struct Restrict<'a> {
    /// `[inputs, vocab]`
    pub logits: &'a Buffer,
    /// The restricted copy, `[inputs, vocab]`
    pub out: &'a Buffer,
    pub vocab: usize,
    /// The number of each row's mask, or [`NO_MASK`].
    pub mask_of: &'a Buffer,
    /// [`mask_words`] for each mask.
    pub masks: &'a Buffer,
    /// From [`adjustment_words`].
    pub adjustments: &'a Buffer,
    pub inputs: usize,
}

impl Restrict<'_> {
    /// The masks, rows and tokens that the buffers name must exist: this is not checked.
    ///
    /// # Panics
    /// If a buffer is too short for the rows, for one mask, or for the word with the number of adjustments.
    pub fn launch(&self, device: &Device) {
        let (inputs, vocab) = (self.inputs, self.vocab as u32);
        self.logits.expect("the logits", inputs * self.vocab);
        self.out.expect("the restricted logits", inputs * self.vocab);
        self.mask_of.expect("the numbers of masks", inputs);
        self.masks.expect("the masks", mask_words(self.vocab));
        self.adjustments.expect("the adjustments", 1);
        let most = ((self.adjustments.len() - 1) / ADJUSTMENT_WORDS) as u32;
        let (x, z) = cube_grid(vocab.div_ceil(UNITS));
        // SAFETY: lengths are checked; tokens are bounded by the vocabulary, adjustments by their number and the size of the buffer. The
        // caller promises that the masks, rows and tokens named by words exist.
        unsafe {
            mask::launch_unchecked(
                device.client(),
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
                device.client(),
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
        // A bias of −∞ bans the token. If the logit is +∞, their sum would be NaN, so −∞ is written instead.
        let is_banned = adjustments[(first + 2) as usize] == banned;
        out[at] = f32::reinterpret(select(is_banned, banned, u32::reinterpret(scaled - penalty)));
    }
}

#[cfg(test)]
mod tests {
    use phase2_forward::{Adjustment, Draw};

    use super::*;
    use crate::testing::{Random, device, poisoned};

    #[test]
    fn restricted_logits_equal_the_hosts() {
        let (device, mut random) = (device(), Random::fresh());
        for (vocab, inputs) in [(5, 1), (299, 4), (70_001, 3)] {
            let logits = random.values(vocab * inputs, 5.0);
            let mask = |random: &mut Random| (0..mask_words(vocab)).map(|_| random.below(1 << 32) as u32).collect();
            let masks: Vec<Option<Vec<u32>>> =
                (0..inputs).map(|row| (row % 2 == 0).then(|| mask(&mut random))).collect();
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
            let of_row = |(row, of): (usize, &Vec<Adjustment>)| {
                let one = move |&Adjustment { token, bias, repetition_penalty, penalty }: &Adjustment| {
                    LogitAdjustment { row: row as u32, token, bias, repetition_penalty, penalty }
                };
                of.iter().map(one).collect::<Vec<_>>()
            };
            let words = adjustment_words(&adjustments.iter().enumerate().flat_map(of_row).collect::<Vec<_>>());
            let mask_of = (0..inputs as u32).map(|row| if row % 2 == 0 { row / 2 } else { NO_MASK }).collect();
            let out = poisoned(&device, vocab * inputs);
            Restrict {
                logits: &device.upload_f32(&logits),
                out: &out,
                vocab,
                mask_of: &device.upload(mask_of),
                masks: &device.upload(masks.iter().flatten().flatten().copied().collect()),
                adjustments: &device.upload(words),
                inputs,
            }
            .launch(&device);
            let found = device.read_f32(&out).expect("reads");
            for (row, (mask, adjustments)) in masks.iter().zip(&adjustments).enumerate() {
                let mut expected = logits[row * vocab..][..vocab].to_vec();
                Draw { allowed: mask.as_deref(), adjustments, ..Draw::GREEDY }.restrict(&mut expected);
                for (token, (&found, &expected)) in found[row * vocab..].iter().zip(&expected).enumerate() {
                    let close = found == expected || (found - expected).abs() <= 1e-6 * expected.abs();
                    assert!(close, "{vocab}, row {row}, token {token}: {found}, expected {expected} {random:?}");
                }
            }
        }
    }
}
