//! The likeliest token, chosen on the device and written where the next step looks for its row.
//!
//! Two launches: every cube of the first takes a stripe of the vocabulary, one cube of the second the best of the stripes.

use cubecl::prelude::*;

use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::rows::ROW_WORDS;

const UNITS: u32 = 256;
/// Parts of the vocabulary that cubes share out.
pub(super) const STRIPES: u32 = 128;
/// Below every logit.
const LEAST: f32 = -3.0e38;

/// Room for the best values and tokens of a row's stripes.
pub(crate) const STRIPE_WORDS: usize = 2 * STRIPES as usize;

/// Stands for the token of logits that are not numbers.
pub(crate) const NO_TOKEN: u32 = u32::MAX;

/// The logits of some rows, and where the tokens chosen from them go.
pub(crate) struct Successors<'a> {
    /// `[inputs, vocab]`
    pub logits: &'a Buffer,
    pub vocab: usize,
    /// [`STRIPE_WORDS`] a row.
    pub stripes: &'a Buffer,
    /// What describes a row: its token is replaced and its position goes up by one.
    pub rows: &'a Buffer,
    /// By slot the token that was drawn last.
    pub drawn: &'a Buffer,
    /// `[inputs]`, [`NO_TOKEN`] where a logit is not a number.
    pub tokens: &'a Buffer,
    pub inputs: usize,
}

impl Successors<'_> {
    /// Chooses the first of the largest logits of every row.
    pub fn launch_greedy(&self, gpu: &Gpu) {
        self.launch_stripes(gpu);
        let (units, planes) = cube(gpu);
        // SAFETY: stripes, rows and tokens have their words for every row.
        unsafe {
            best_of_all::launch_unchecked(
                &gpu.client,
                CubeCount::Static(self.inputs as u32, 1, 1),
                CubeDim::new_1d(units),
                self.stripes.arg(),
                self.rows.arg(),
                self.drawn.arg(),
                self.tokens.arg(),
                planes,
            );
        }
    }

    /// Puts the best (value, token) of every stripe of every row into `stripes`: (3·10³⁸, no token) for one with a logit that
    /// is not a number.
    pub fn launch_stripes(&self, gpu: &Gpu) {
        let (units, planes) = cube(gpu);
        // SAFETY: the vocabulary is bounded in the kernel; stripes have their words for every row.
        unsafe {
            best_of_stripe::launch_unchecked(
                &gpu.client,
                CubeCount::Static(STRIPES, self.inputs as u32, 1),
                CubeDim::new_1d(units),
                self.logits.arg(),
                self.stripes.arg(),
                self.vocab as u32,
                planes,
            );
        }
    }
}

/// Units of a cube, and the most planes that they make up.
fn cube(gpu: &Gpu) -> (u32, u32) {
    let units = UNITS.next_multiple_of(gpu.plane);
    (units, units.div_ceil(gpu.least_plane))
}

#[cube(launch_unchecked)]
fn best_of_stripe(logits: &[f32], stripes: &mut [u32], vocab: u32, #[comptime] planes: u32) {
    let stripe = vocab.div_ceil(STRIPES);
    let start = CUBE_POS_X * stripe;
    let end = min(start + stripe, vocab);
    let mut best = f32::new(LEAST);
    let mut token = u32::MAX.runtime();
    let mut strange = 0u32;
    let mut i = start + UNIT_POS;
    while i < end {
        let logit = logits[(CUBE_POS_Y * vocab + i) as usize];
        // A number that is not one has all exponent bits set and a mantissa.
        if (u32::reinterpret(logit) & 0x7fff_ffffu32) > 0x7f80_0000u32 {
            strange = 1u32;
        }
        if logit > best || (logit == best && i < token) {
            best = logit;
            token = i;
        }
        i += CUBE_DIM;
    }
    let (best, token) = best_of_cube(best, token, strange, planes);
    if UNIT_POS == 0 {
        let at = (CUBE_POS_Y * STRIPES + CUBE_POS_X) * 2;
        stripes[at as usize] = u32::reinterpret(best);
        stripes[(at + 1) as usize] = token;
    }
}

#[cube(launch_unchecked)]
fn best_of_all(stripes: &[u32], rows: &mut [u32], drawn: &mut [u32], tokens: &mut [u32], #[comptime] planes: u32) {
    let (_best, token) = best_of_row(stripes, CUBE_POS_X, planes);
    if UNIT_POS == 0 {
        advance(rows, drawn, tokens, CUBE_POS_X, token);
    }
}

/// The largest logit of a row and the first token that has it, from its stripes.
#[cube]
pub(super) fn best_of_row(stripes: &[u32], row: u32, #[comptime] planes: u32) -> (f32, u32) {
    let mut best = f32::new(LEAST);
    let mut token = u32::MAX.runtime();
    let mut strange = 0u32;
    let mut i = UNIT_POS;
    while i < STRIPES {
        let at = (row * STRIPES + i) * 2;
        let value = f32::reinterpret(stripes[at as usize]);
        let candidate = stripes[(at + 1) as usize];
        if candidate == u32::MAX && value > 0.0f32 {
            strange = 1u32;
        }
        if value > best || (value == best && candidate < token) {
            best = value;
            token = candidate;
        }
        i += CUBE_DIM;
    }
    best_of_cube(best, token, strange, planes)
}

/// Makes `token` the next one that `row` and its slot feed.
#[cube]
pub(super) fn advance(rows: &mut [u32], drawn: &mut [u32], tokens: &mut [u32], row: u32, token: u32) {
    tokens[row as usize] = token;
    // The next step must find a token of the vocabulary, whatever the logits were.
    let fed = select(token == u32::MAX, 0u32, token);
    drawn[rows[(row * ROW_WORDS + 2) as usize] as usize] = fed;
    rows[(row * ROW_WORDS) as usize] = fed;
    rows[(row * ROW_WORDS + 1) as usize] += 1;
    rows[(row * ROW_WORDS + 3) as usize] = 0u32;
}

/// The largest value of a cube and the least token that has it; the largest of all and no token, if anything is `strange`.
#[cube]
pub(super) fn best_of_cube(best: f32, token: u32, strange: u32, #[comptime] planes: u32) -> (f32, u32) {
    let mut values = Shared::<[f32]>::new_slice(comptime![planes as usize]);
    let mut tokens = Shared::<[u32]>::new_slice(comptime![planes as usize]);
    let best = select(strange == 1u32, 3.0e38f32, best);
    let token = select(strange == 1u32, u32::MAX, token);
    let largest = plane_max(best);
    let least = plane_min(select(best == largest, token, u32::MAX));
    if UNIT_POS_PLANE == 0 {
        values[PLANE_POS as usize] = largest;
        tokens[PLANE_POS as usize] = least;
    }
    sync_cube();
    let mut best = values[0];
    let mut token = tokens[0];
    for plane in 1..CUBE_DIM.div_ceil(PLANE_DIM) {
        let value = values[plane as usize];
        let candidate = tokens[plane as usize];
        if value > best || (value == best && candidate < token) {
            best = value;
            token = candidate;
        }
    }
    (best, token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::testing::{Random, gpu};

    /// The tokens chosen for rows of `vocab` logits, and the rows' words after that.
    fn choose(gpu: &Gpu, logits: &[f32], vocab: usize) -> (Vec<u32>, Vec<u32>) {
        let inputs = logits.len() / vocab;
        let [stripes, tokens] = [STRIPE_WORDS * inputs, inputs].map(|len| gpu.upload(vec![77; len]));
        let rows = gpu.upload((0..inputs as u32).flat_map(|row| [5, 41, row, 1]).collect());
        let drawn = gpu.upload(vec![77; inputs]);
        let logits = &gpu.upload_f32(logits);
        Successors { logits, vocab, stripes: &stripes, rows: &rows, drawn: &drawn, tokens: &tokens, inputs }
            .launch_greedy(gpu);
        let fed = |&token: &u32| if token == NO_TOKEN { 0 } else { token };
        let tokens_found = gpu.read(&tokens).expect("reads");
        assert!(gpu.read(&drawn).expect("reads").into_iter().take(inputs).eq(tokens_found[..inputs].iter().map(fed)));
        (tokens_found, gpu.read(&rows).expect("reads"))
    }

    #[test]
    fn takes_the_first_of_the_largest() {
        let gpu = gpu();
        let mut random = Random::fresh();
        for (vocab, inputs) in [(1, 1), (2, 3), (299, 5), (2048, 1), (201_088, 2)] {
            for spread in [5.0, -5.0f32] {
                // Few different values, so that there are equals; all negative ones too.
                let logits: Vec<f32> =
                    (0..vocab * inputs).map(|_| random.below(50) as f32 * 0.1 + spread.min(0.0) * 2.0).collect();
                let (tokens, rows) = choose(&gpu, &logits, vocab);
                for (row, logits) in logits.chunks(vocab).enumerate() {
                    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
                    let expected = logits.iter().position(|&l| l == largest).expect("there is one") as u32;
                    assert_eq!(tokens[row], expected, "{vocab} {random:?}");
                    assert_eq!(rows[4 * row..][..4], [expected, 42, row as u32, 0]);
                }
            }
        }
    }

    #[test]
    fn says_so_where_there_is_none() {
        let gpu = gpu();
        for at in [0, 100, 298] {
            let mut logits = vec![1.0; 2 * 299];
            logits[at] = f32::NAN;
            let (tokens, rows) = choose(&gpu, &logits, 299);
            assert_eq!(tokens[..2], [NO_TOKEN, 0]);
            assert_eq!(rows[0], 0);
        }
    }
}
