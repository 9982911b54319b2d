//! Chooses the most likely token on the device, and writes it to the row of the next step.
//!
//! Two launches: each cube of the first handles a stripe of the vocabulary; one cube of the second takes the best of all stripes. Logits
//! are compared by [rank](super::rank), in which NaN is the largest, so that NaN is always detected.

use cubecl::prelude::*;

use super::rank::{NO_CANDIDATE, logit_of, rank_or_nan};
use crate::device::{Buffer, Device};
use crate::rows::ROW_WORDS;

const UNITS: u32 = 256;
/// Number of stripes of the vocabulary.
pub(super) const STRIPES: u32 = 128;

/// Words for the best ranks and tokens of a row's stripes.
pub const PARTIAL_MAX_WORDS: usize = 2 * STRIPES as usize;

/// Written instead of a token, for logits that are NaN or all −∞.
pub const NO_TOKEN: u32 = u32::MAX;

/// The logits of several rows, and the buffers for the tokens chosen from them.
#[derive(Clone, Copy)]
pub struct NextTokens<'a> {
    /// `[inputs, vocab]`
    pub logits: &'a Buffer,
    pub vocab: usize,
    /// [`PARTIAL_MAX_WORDS`] per row.
    pub partial_max: &'a Buffer,
    /// `[inputs]` [rows](crate::Row). A row's token is replaced, its position is incremented, and its last word (`TAKES_DRAWN` or 0)
    /// becomes 0.
    pub rows: &'a Buffer,
    /// The token drawn last, by slot: the small number, in [`Row::slot`](crate::Row::slot), that identifies the sequence of a row.
    pub drawn: &'a Buffer,
    /// `[inputs]`; [`NO_TOKEN`] if a logit is NaN, or all are −∞.
    pub tokens: &'a Buffer,
    pub inputs: usize,
}

impl NextTokens<'_> {
    /// Chooses the token with the largest logit of every row, and the lowest token if several logits are equal.
    ///
    /// # Panics
    /// If a buffer is too short, or the vocabulary is empty.
    pub fn launch_argmax(&self, device: &Device) {
        self.check();
        self.launch_stripes(device);
        let (units, planes) = cube(device);
        // SAFETY: lengths are checked; indices follow from the shape, and the caller promises that slots are below the length of `drawn`.
        unsafe {
            best_of_all::launch_unchecked(
                device.client(),
                CubeCount::Static(self.inputs as u32, 1, 1),
                CubeDim::new_1d(units),
                self.partial_max.arg(),
                self.rows.arg(),
                self.drawn.arg(),
                self.tokens.arg(),
                planes,
            );
        }
    }

    /// Stores the best (rank, token) of every stripe of every row in `partial_max`; for a stripe that contains NaN, stores the rank of NaN
    /// and no token. Lengths must have been checked.
    pub(super) fn launch_stripes(&self, device: &Device) {
        let (units, planes) = cube(device);
        // SAFETY: lengths were checked; tokens are bounded by the vocabulary.
        unsafe {
            best_of_stripe::launch_unchecked(
                device.client(),
                CubeCount::Static(STRIPES, self.inputs as u32, 1),
                CubeDim::new_1d(units),
                self.logits.arg(),
                self.partial_max.arg(),
                self.vocab as u32,
                planes,
            );
        }
    }

    /// # Panics
    /// If a buffer is too short, or the vocabulary is empty.
    #[track_caller]
    pub(super) fn check(&self) {
        let NextTokens { vocab, inputs, .. } = *self;
        assert!(vocab > 0, "the vocabulary is empty");
        self.logits.expect("the logits", inputs * vocab);
        self.partial_max.expect("the stripes' best tokens", inputs * PARTIAL_MAX_WORDS);
        self.rows.expect("the rows", inputs * ROW_WORDS as usize);
        self.drawn.expect("the drawn tokens", 1);
        self.tokens.expect("the chosen tokens", inputs);
    }
}

/// Units of a cube, and the largest number of planes that they may form.
fn cube(device: &Device) -> (u32, u32) {
    let units = device.whole_planes(UNITS);
    (units, device.most_planes(units))
}

#[cube(launch_unchecked)]
fn best_of_stripe(logits: &[f32], partial_max: &mut [u32], vocab: u32, #[comptime] planes: u32) {
    let length = vocab.div_ceil(STRIPES);
    let start = CUBE_POS_X * length;
    let end = min(start + length, vocab);
    let mut best = NO_CANDIDATE.runtime();
    let mut token = u32::MAX.runtime();
    let mut i = start + UNIT_POS;
    while i < end {
        let rank = rank_or_nan(logits[(CUBE_POS_Y * vocab + i) as usize]);
        if rank > best {
            best = rank;
            token = i;
        }
        i += CUBE_DIM;
    }
    let token = select(best == u32::MAX, u32::MAX, token);
    let (best, token) = best_of_cube(best, token, planes);
    if UNIT_POS == 0 {
        let at = (CUBE_POS_Y * STRIPES + CUBE_POS_X) * 2;
        partial_max[at as usize] = best;
        partial_max[(at + 1) as usize] = token;
    }
}

#[cube(launch_unchecked)]
fn best_of_all(partial_max: &[u32], rows: &mut [u32], drawn: &mut [u32], tokens: &mut [u32], #[comptime] planes: u32) {
    let (_best, token) = best_of_row(partial_max, CUBE_POS_X, planes);
    if UNIT_POS == 0 {
        advance(rows, drawn, tokens, CUBE_POS_X, token);
    }
}

/// The largest logit of a row and the lowest token that has it, from its stripes; no token if a logit is NaN or all are −∞.
#[cube]
pub(super) fn best_of_row(partial_max: &[u32], row: u32, #[comptime] planes: u32) -> (f32, u32) {
    let mut best = NO_CANDIDATE.runtime();
    let mut token = u32::MAX.runtime();
    let mut i = UNIT_POS;
    while i < STRIPES {
        let at = (row * STRIPES + i) * 2;
        let rank = partial_max[at as usize];
        let candidate = partial_max[(at + 1) as usize];
        if rank > best || (rank == best && candidate < token) {
            best = rank;
            token = candidate;
        }
        i += CUBE_DIM;
    }
    let (best, token) = best_of_cube(best, token, planes);
    (logit_of(best), token)
}

/// Makes `token` the next input of `row` and of its slot.
#[cube]
pub(super) fn advance(rows: &mut [u32], drawn: &mut [u32], tokens: &mut [u32], row: u32, token: u32) {
    tokens[row as usize] = token;
    // The next step needs a valid token, whatever the logits were.
    let fed = select(token == u32::MAX, 0u32, token);
    drawn[rows[(row * ROW_WORDS + 2) as usize] as usize] = fed;
    rows[(row * ROW_WORDS) as usize] = fed;
    rows[(row * ROW_WORDS + 1) as usize] += 1;
    rows[(row * ROW_WORDS + 3) as usize] = 0u32;
}

/// The largest rank in a cube, and the lowest token that has it. All units must pass a barrier before the next call.
#[cube]
pub(super) fn best_of_cube(best: u32, token: u32, #[comptime] planes: u32) -> (u32, u32) {
    let mut ranks = Shared::<[u32]>::new_slice(comptime![planes as usize]);
    let mut tokens = Shared::<[u32]>::new_slice(comptime![planes as usize]);
    let largest = plane_max(best);
    let least = plane_min(select(best == largest, token, u32::MAX));
    if UNIT_POS_PLANE == 0 {
        ranks[PLANE_POS as usize] = largest;
        tokens[PLANE_POS as usize] = least;
    }
    sync_cube();
    let mut best = ranks[0];
    let mut token = tokens[0];
    for plane in 1..CUBE_DIM.div_ceil(PLANE_DIM) {
        let rank = ranks[plane as usize];
        let candidate = tokens[plane as usize];
        if rank > best || (rank == best && candidate < token) {
            best = rank;
            token = candidate;
        }
    }
    (best, token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, device};

    /// The tokens chosen for rows of `vocab` logits, and the words of the rows afterwards.
    fn choose(device: &Device, logits: &[f32], vocab: usize) -> (Vec<u32>, Vec<u32>) {
        let inputs = logits.len() / vocab;
        let [partial_max, tokens] = [PARTIAL_MAX_WORDS * inputs, inputs].map(|len| device.upload(vec![77; len]));
        let rows = device.upload((0..inputs as u32).flat_map(|row| [5, 41, row, 1]).collect());
        let drawn = device.upload(vec![77; inputs]);
        let logits = &device.upload_f32(logits);
        NextTokens { logits, vocab, partial_max: &partial_max, rows: &rows, drawn: &drawn, tokens: &tokens, inputs }
            .launch_argmax(device);
        let fed = |&token: &u32| if token == NO_TOKEN { 0 } else { token };
        let tokens = device.read(&tokens).expect("reads");
        let drawn = device.read(&drawn).expect("reads");
        assert!(drawn.into_iter().take(inputs).eq(tokens[..inputs].iter().map(fed)));
        (tokens, device.read(&rows).expect("reads"))
    }

    #[test]
    fn returns_first_of_the_largest() {
        let device = device();
        let mut random = Random::fresh();
        for (vocab, inputs) in [(1, 1), (2, 3), (299, 5), (2048, 1), (201_088, 2)] {
            for spread in [5.0, -5.0f32] {
                // Few different values, so that there are ties; sometimes all negative.
                let logits: Vec<f32> =
                    (0..vocab * inputs).map(|_| random.below(50) as f32 * 0.1 + spread.min(0.0) * 2.0).collect();
                let (tokens, rows) = choose(&device, &logits, vocab);
                for (row, logits) in logits.chunks(vocab).enumerate() {
                    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
                    let expected =
                        logits.iter().position(|&l| l == largest).expect("the largest is one of them") as u32;
                    assert_eq!(tokens[row], expected, "{vocab} {random:?}");
                    assert_eq!(rows[4 * row..][..4], [expected, 42, row as u32, 0], "{vocab} {random:?}");
                }
            }
        }
    }

    #[test]
    fn reports_rows_without_a_largest() {
        let device = device();
        for at in [0, 100, 298] {
            // Some cases also have +∞ before or after the NaN, in the same or in another stripe.
            for infinity in [0, 99, 101, 297, 1 << 20] {
                for nan in [f32::NAN, -f32::NAN] {
                    let mut logits = vec![1.0; 2 * 299];
                    if infinity < 299 {
                        logits[infinity] = f32::INFINITY;
                    }
                    logits[at] = nan;
                    let (tokens, rows) = choose(&device, &logits, 299);
                    assert_eq!(tokens[..2], [NO_TOKEN, 0], "NaN at {at}, infinity at {infinity}");
                    assert_eq!(rows[0], 0);
                }
            }
        }
        let (tokens, _) = choose(&device, &[f32::NEG_INFINITY; 299], 299);
        assert_eq!(tokens[0], NO_TOKEN, "nothing but −∞");
    }

    #[test]
    fn extremes_are_compared_as_numbers() {
        let device = device();
        let (inf, least) = (f32::INFINITY, f32::MIN);
        let rows = [
            [least, -inf, least, -inf],
            [-0.0, 0.0, -1.0, 0.0],
            [3.4e38, inf, inf, 3.4e38],
            [-inf, -3.3e38, least, -inf],
        ];
        let (tokens, _) = choose(&device, &rows.concat(), 4);
        assert_eq!(tokens[..4], [0, 0, 1, 1]);
    }
}
