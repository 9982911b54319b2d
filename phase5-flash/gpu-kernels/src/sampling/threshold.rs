//! Top-k and top-p: finds the last token, in order of rank, that each keeps, by radix select.
//!
//! Both filters keep the first tokens in order of rank: by falling logit and, among equal logits, by token. A rank has eight digits of four
//! bits. The search finds the rank of the last token digit by digit, from the highest: for each of the 16 values of a digit, cubes sum the
//! number of tokens, or their weights; the value at which the sum reaches the limit is the next digit. Among tokens with equal ranks, sums
//! in the order of the vocabulary find the stripe (a cube's part of the vocabulary), then the piece (a unit's part of the stripe), and then
//! the token. A search takes nine launches.

use cubecl::prelude::*;

use super::argmax::STRIPES;
use super::candidates::{
    Candidates, DIGIT_BITS, DIGITS, DrawArgs, DrawArgsLaunch, LEAST, MAX_TOKENS, ROUNDS, SHARE, Search,
    THRESHOLD_WORDS, UNITS,
};
use super::rank::rank;
use crate::device::Device;

/// Number of groups of units. Each unit of a group sums the weights of one of the 16 digit values.
const GROUPS: u32 = UNITS / DIGITS;

/// Finds the last token that each of `inputs` rows keeps, and stores it among the thresholds. `args` creates the arguments of a launch; the
/// lengths of its buffers must have been checked.
pub(super) fn search(device: &Device, args: impl Fn() -> DrawArgsLaunch, inputs: u32, search: Search) {
    let units = CubeDim::new_1d(UNITS);
    // SAFETY: lengths were checked; tokens are bounded by the vocabulary, and the rest follows from the shape.
    unsafe {
        for round in 0..ROUNDS {
            let cubes = CubeCount::Static(STRIPES, inputs, 1);
            add_up_digits::launch_unchecked(device.client(), cubes, units, args(), Search { round, ..search });
        }
        let cubes = CubeCount::Static(inputs, 1, 1);
        find_last::launch_unchecked(device.client(), cubes, units, args(), Search { round: ROUNDS, ..search });
    }
}

/// Sums the tokens of a stripe by their next digit, if their higher digits are those at which the limit was reached.
#[cube(launch_unchecked)]
fn add_up_digits(mut args: DrawArgs, #[comptime] search: Search) {
    let mut values = Shared::<[f32]>::new_slice(comptime![UNITS as usize]);
    let mut digits_of = Shared::<[u32]>::new_slice(comptime![UNITS as usize]);
    let row = CUBE_POS_Y;
    let stripe = CUBE_POS_X;
    let mut candidates = Candidates::of(&args, row, search);
    let shift = comptime![32 - DIGIT_BITS * (search.round + 1)];
    if comptime![search.round > 0] {
        let (prefix, limit) = next_digit(&args, row, &mut values, search);
        if stripe == 0 && UNIT_POS == 0 {
            let at = row * comptime![THRESHOLD_WORDS as u32] + comptime![search.state_index(search.round - 1)];
            args.thresholds[at as usize] = prefix;
            args.thresholds[(at + 1) as usize] = u32::reinterpret(limit);
        }
        candidates.lowest = prefix << comptime![shift + DIGIT_BITS];
        candidates.highest = candidates.lowest + comptime![(1u32 << (shift + DIGIT_BITS)) - 1];
    }

    let vocab = args.vocab;
    let length = vocab.div_ceil(STRIPES);
    let end = min((stripe + 1) * length, vocab);
    let digit = UNIT_POS % DIGITS;
    let group = UNIT_POS / DIGITS;
    let mut sum = 0.0f32;
    let mut first = stripe * length;
    while first < end {
        let token = first + UNIT_POS;
        let mut value = 0.0f32;
        let mut digit_of_token = 0u32;
        if token < end {
            let logit = args.logits[(row * vocab + token) as usize];
            value = candidates.weight(logit, token, search.by_mass);
            digit_of_token = (rank(logit) >> shift) % DIGITS;
        }
        values[UNIT_POS as usize] = value;
        digits_of[UNIT_POS as usize] = digit_of_token;
        sync_cube();
        for i in 0..DIGITS {
            let at = (group * DIGITS + i) as usize;
            sum += select(digits_of[at] == digit, values[at], 0.0f32);
        }
        sync_cube();
        first += UNITS;
    }
    values[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS < DIGITS {
        let at = ((row * ROUNDS + search.round) * STRIPES + stripe) * DIGITS + UNIT_POS;
        args.histogram[at as usize] = sum_of_groups(&mut values);
    }
}

/// The sum over all groups of units for the calling unit's digit.
#[cube]
fn sum_of_groups(values: &mut Shared<[f32]>) -> f32 {
    let mut sum = 0.0f32;
    for group in 0..GROUPS {
        sum += values[(group * DIGITS + UNIT_POS) as usize];
    }
    sum
}

/// Radix select: finds the digit of the round before `search.round` at which the cumulative weight, from the largest digit down, crosses
/// the limit. Returns the rank's digits up to that one, and the rest of the limit for lower digits.
#[cube]
fn next_digit(args: &DrawArgs, row: u32, values: &mut Shared<[f32]>, #[comptime] search: Search) -> (u32, f32) {
    let round = comptime![search.round - 1];
    let stripes_per_group = comptime![STRIPES / GROUPS];
    let mut totals = Shared::<[f32]>::new_slice(comptime![DIGITS as usize]);
    let first = (row * ROUNDS + round) * STRIPES + UNIT_POS / DIGITS * stripes_per_group;
    let mut sum = 0.0f32;
    for i in 0..stripes_per_group {
        sum += args.histogram[((first + i) * DIGITS + UNIT_POS % DIGITS) as usize];
    }
    values[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS < DIGITS {
        totals[UNIT_POS as usize] = sum_of_groups(values);
    }
    sync_cube();

    let mut prefix = 0u32;
    let limit = if comptime![round > 0] {
        let at = row * comptime![THRESHOLD_WORDS as u32] + comptime![search.state_index(round - 1)];
        prefix = args.thresholds[at as usize];
        f32::reinterpret(args.thresholds[(at + 1) as usize])
    } else if comptime![search.by_mass] {
        let mut all = 0.0f32;
        for digit in 0..DIGITS {
            all += totals[digit as usize];
        }
        max(args.setting(row, SHARE) * all, f32::new(LEAST))
    } else {
        args.setting(row, MAX_TOKENS)
    };
    // The largest logits have the largest digits.
    let mut found = 0u32;
    let mut above = 0.0f32;
    let mut before = 0.0f32;
    for i in 0..DIGITS {
        let digit = DIGITS - 1 - i;
        let total = totals[digit as usize];
        if total > 0.0f32 && before < limit {
            found = digit;
            above = before;
        }
        before += total;
    }
    (prefix * DIGITS + found, max(limit - above, f32::new(LEAST)))
}

/// Finds the last token that the search keeps: all digits of its rank are known, and equal ranks are now distinguished by token.
#[cube(launch_unchecked)]
fn find_last(mut args: DrawArgs, #[comptime] search: Search) {
    let mut values = Shared::<[f32]>::new_slice(comptime![UNITS as usize]);
    let row = CUBE_POS_X;
    let mut candidates = Candidates::of(&args, row, search);
    let (rank, limit) = next_digit(&args, row, &mut values, search);
    candidates.lowest = rank;
    candidates.highest = rank;
    sync_cube();
    if UNIT_POS < STRIPES {
        let at = ((row * ROUNDS + comptime![ROUNDS - 1]) * STRIPES + UNIT_POS) * DIGITS + rank % DIGITS;
        values[UNIT_POS as usize] = args.histogram[at as usize];
    }
    sync_cube();
    let token = candidates.token_at(&args, row, limit, &mut values, search.by_mass);
    if UNIT_POS == 0 {
        let at = row * comptime![THRESHOLD_WORDS as u32] + comptime![search.state_index(ROUNDS - 1)];
        args.thresholds[at as usize] = rank;
        args.thresholds[(at + 1) as usize] = token;
    }
}
