//! The likeliest token, chosen on the device and written where the next step looks for its row.
//!
//! Two launches: every cube of the first takes a stripe of the vocabulary, one cube of the second the best of the stripes.

use cubecl::prelude::*;

use crate::gpu::device::{Buffer, Gpu};

const UNITS: u32 = 256;
const STRIPES: u32 = 128;
/// Below every logit.
const LEAST: f32 = -3.0e38;

/// Room for the stripes' best values and tokens.
pub(crate) const STRIPE_WORDS: usize = 2 * STRIPES as usize;

/// Stands for the token of logits that are not numbers.
pub(crate) const NO_TOKEN: u32 = u32::MAX;

/// Puts the first of the largest logits into `chosen[0]`, [`NO_TOKEN`] if one is not a number, and into the first row, whose
/// position moves on by one.
pub(crate) fn greedy(gpu: &Gpu, logits: &Buffer, vocab: usize, stripes: &Buffer, rows: &Buffer, chosen: &Buffer) {
    let units = UNITS.next_multiple_of(gpu.plane);
    let planes = units.div_ceil(gpu.least_plane);
    // SAFETY: the vocabulary is bounded in the kernel; stripes and rows have their words.
    unsafe {
        best_of_stripe::launch_unchecked(
            &gpu.client,
            CubeCount::Static(STRIPES, 1, 1),
            CubeDim::new_1d(units),
            logits.arg(),
            stripes.arg(),
            vocab as u32,
            planes,
        );
        best_of_all::launch_unchecked(
            &gpu.client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(units),
            stripes.arg(),
            rows.arg(),
            chosen.arg(),
            planes,
        );
    }
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
        let logit = logits[i as usize];
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
        stripes[(CUBE_POS_X * 2) as usize] = u32::reinterpret(best);
        stripes[(CUBE_POS_X * 2 + 1) as usize] = token;
    }
}

#[cube(launch_unchecked)]
fn best_of_all(stripes: &[u32], rows: &mut [u32], chosen: &mut [u32], #[comptime] planes: u32) {
    let mut best = f32::new(LEAST);
    let mut token = u32::MAX.runtime();
    let mut strange = 0u32;
    let mut i = UNIT_POS;
    while i < STRIPES {
        let value = f32::reinterpret(stripes[(i * 2) as usize]);
        let candidate = stripes[(i * 2 + 1) as usize];
        if candidate == u32::MAX && value > 0.0f32 {
            strange = 1u32;
        }
        if value > best || (value == best && candidate < token) {
            best = value;
            token = candidate;
        }
        i += CUBE_DIM;
    }
    let (_best, token) = best_of_cube(best, token, strange, planes);
    if UNIT_POS == 0 {
        chosen[0] = token;
        // The next step must find a token of the vocabulary, whatever the logits were.
        rows[0] = select(token == u32::MAX, 0u32, token);
        rows[1] += 1;
    }
}

/// The largest value of a cube and the least token that has it; the largest of all and no token, if anything is `strange`.
#[cube]
fn best_of_cube(best: f32, token: u32, strange: u32, #[comptime] planes: u32) -> (f32, u32) {
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

    fn choose(gpu: &Gpu, logits: &[f32]) -> (Vec<u32>, Vec<u32>) {
        let [stripes, chosen] = [STRIPE_WORDS, 4].map(|len| gpu.upload(vec![77; len]));
        let rows = gpu.upload(vec![5, 41, 3, 0]);
        greedy(gpu, &gpu.upload_f32(logits), logits.len(), &stripes, &rows, &chosen);
        (gpu.read(&chosen).expect("reads"), gpu.read(&rows).expect("reads"))
    }

    #[test]
    fn takes_the_first_of_the_largest() {
        let gpu = gpu();
        let mut random = Random::fresh();
        for vocab in [1, 2, 299, 2048, 201_088] {
            for spread in [5.0, -5.0f32] {
                // Few different values, so that there are equals; all negative ones too.
                let logits: Vec<f32> =
                    (0..vocab).map(|_| random.below(50) as f32 * 0.1 + spread.min(0.0) * 2.0).collect();
                let largest = logits.iter().copied().fold(f32::MIN, f32::max);
                let expected = logits.iter().position(|&l| l == largest).expect("there is one") as u32;
                let (chosen, rows) = choose(&gpu, &logits);
                assert_eq!(chosen[0], expected, "{vocab} {random:?}");
                assert_eq!(rows, [expected, 42, 3, 0]);
            }
        }
    }

    #[test]
    fn says_so_where_there_is_none() {
        let gpu = gpu();
        for at in [0, 100, 298] {
            let mut logits = vec![1.0; 299];
            logits[at] = f32::NAN;
            let (chosen, rows) = choose(&gpu, &logits);
            assert_eq!(chosen[0], NO_TOKEN);
            assert_eq!(rows[0], 0);
        }
    }
}
