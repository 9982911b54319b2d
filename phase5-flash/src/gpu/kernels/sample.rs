//! A token drawn on the device: temperature, top-k, top-p, min-p and a draw, as `phase2_forward::HostDraw` does them.
//!
//! Nothing is sorted. Top-k and top-p each keep the first tokens by rank, which is by falling logit and, among equals, by
//! token. Where they end is searched four bits of the logits at a time, from the highest: cubes share out the vocabulary and
//! count, or weigh, the tokens of each of 16 digits; the digit where the limit is reached is the next four bits. Among the
//! tokens with all 32 bits, and for the draw, the same search goes over stripes, pieces and tokens. Three launches draw, each of the two
//! searches takes nine more.

use cubecl::prelude::*;
use phase2_forward::{Draw, Sampling};

use super::greedy::{STRIPES, Successors, advance, best_of_row};
use super::reduce::cube_sum;
use super::threefry::number;
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::rows::ROW_WORDS;

/// A multiple of every plane size.
const UNITS: u32 = 256;
const DIGIT_BITS: u32 = 4;
const DIGITS: u32 = 1 << DIGIT_BITS;
const ROUNDS: u32 = 32 / DIGIT_BITS;
/// Units that count the same digit.
const GROUPS: u32 = UNITS / DIGITS;
/// Stands for zero where a limit must be above what nothing adds up to.
const LEAST: f32 = 1.0e-30;
/// The rank of −∞, which is no candidate.
const NO_CANDIDATE: u32 = 0x007f_ffff;

/// Words that say how a row's token is chosen.
pub(crate) const SETTING_WORDS: usize = 6;
/// Room for a row's sums over digits.
pub(crate) const DIGIT_WORDS: usize = (ROUNDS * STRIPES * DIGITS) as usize;
/// Room for how far a row's two searches came.
pub(crate) const CUT_WORDS: usize = (2 * 2 * ROUNDS) as usize;

/// What the draws of some rows read and write.
pub(crate) struct Sample<'a> {
    pub successors: Successors<'a>,
    /// [`SETTING_WORDS`] a row, from [`settings`].
    pub settings: &'a Buffer,
    /// [`DIGIT_WORDS`] a row.
    pub digits: &'a Buffer,
    /// [`CUT_WORDS`] a row.
    pub cuts: &'a Buffer,
    pub filters: Filters,
}

/// The searches that some choices need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filters {
    pub top_k: bool,
    pub top_p: bool,
}

impl Filters {
    pub fn of<'d>(draws: impl IntoIterator<Item = &'d Draw<'d>>) -> Filters {
        draws.into_iter().fold(Filters::default(), |filters, draw| Filters {
            top_k: filters.top_k || draw.sampling.top_k > 0 || draw.is_greedy(),
            top_p: filters.top_p || (draw.sampling.top_p < 1.0 && !draw.is_greedy()),
        })
    }
}

/// A draw as the kernels read it: temperature, most tokens, share of the probability, least weight, and two words of seed.
pub(crate) fn settings(draw: &Draw<'_>) -> [u32; SETTING_WORDS] {
    // The likeliest is the first by rank.
    let Sampling { temperature, top_k, top_p, min_p } = match draw.is_greedy() {
        true => Sampling { temperature: 1.0, top_k: 1, top_p: 1.0, min_p: 0.0 },
        false => draw.sampling,
    };
    let most = if top_k == 0 { f32::MAX } else { top_k as f32 };
    // Twice the whole is never reached, however the sum is rounded.
    let share = if top_p < 1.0 { top_p } else { 2.0 };
    let [temperature, most, share, min_p] = [temperature.max(LEAST), most, share, min_p].map(f32::to_bits);
    [temperature, most, share, min_p, draw.seed as u32, (draw.seed >> 32) as u32]
}

/// The tokens that a search goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Among {
    All,
    TopK,
    TopP,
}

/// A search, as its kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Search {
    among: Among,
    /// Tokens weigh their probability; otherwise all weigh the same.
    by_mass: bool,
    round: u32,
    planes: u32,
}

impl Search {
    /// The words among a row's cuts where the search leaves what it knows after `round`.
    fn place(self, round: u32) -> u32 {
        2 * (u32::from(self.by_mass) * ROUNDS + round)
    }

    /// The words that hold the cut of the tokens gone over.
    fn cut_before(self) -> u32 {
        Search { by_mass: self.among == Among::TopP, ..self }.place(ROUNDS - 1)
    }
}

impl Sample<'_> {
    pub fn launch(&self, gpu: &Gpu) {
        let Successors { logits, vocab, stripes, rows, drawn, tokens, inputs } = self.successors;
        let (vocab, inputs) = (vocab as u32, inputs as u32);
        let Filters { top_k, top_p } = self.filters;
        let planes = UNITS.div_ceil(gpu.least_plane);
        let everywhere = CubeCount::Static(STRIPES, inputs, 1);
        let once = CubeCount::Static(inputs, 1, 1);
        let units = CubeDim::new_1d(UNITS);
        self.successors.launch_stripes(gpu);
        // SAFETY: tokens are bounded by the vocabulary; the other buffers have their words for every row and stripe.
        unsafe {
            let mut among = Among::All;
            for (wanted, by_mass) in [(top_k, false), (top_p, true)] {
                if !wanted {
                    continue;
                }
                let search = |round| Search { among, by_mass, round, planes };
                for round in 0..ROUNDS {
                    sum_digits::launch_unchecked(
                        &gpu.client,
                        everywhere.clone(),
                        units,
                        logits.arg(),
                        stripes.arg(),
                        self.settings.arg(),
                        self.cuts.arg(),
                        self.digits.arg(),
                        vocab,
                        search(round),
                    );
                }
                cut::launch_unchecked(
                    &gpu.client,
                    once.clone(),
                    units,
                    logits.arg(),
                    stripes.arg(),
                    self.settings.arg(),
                    self.cuts.arg(),
                    self.digits.arg(),
                    vocab,
                    search(ROUNDS),
                );
                among = if by_mass { Among::TopP } else { Among::TopK };
            }
            let last = Search { among, by_mass: true, round: ROUNDS, planes };
            sum_stripes::launch_unchecked(
                &gpu.client,
                everywhere,
                units,
                logits.arg(),
                stripes.arg(),
                self.settings.arg(),
                self.cuts.arg(),
                self.digits.arg(),
                vocab,
                last,
            );
            draw::launch_unchecked(
                &gpu.client,
                once,
                units,
                logits.arg(),
                stripes.arg(),
                self.settings.arg(),
                self.cuts.arg(),
                self.digits.arg(),
                self.settings.arg(),
                rows.arg(),
                drawn.arg(),
                tokens.arg(),
                vocab,
                last,
            );
        }
    }
}

/// Which tokens of a row count, and how much.
#[derive(CubeType, Clone, Copy)]
struct Part {
    largest: f32,
    temperature: f32,
    least_weight: f32,
    /// The last token by rank that an earlier search keeps.
    cut_rank: u32,
    cut_token: u32,
    /// The ranks that count.
    lowest: u32,
    highest: u32,
}

/// A number that grows with the logit, and is equal for equals.
#[cube]
fn rank(logit: f32) -> u32 {
    // −0 equals 0.
    let bits = select(logit == 0.0f32, 0u32, u32::reinterpret(logit));
    select(bits >> 31u32 == 1u32, bits ^ 0xffff_ffffu32, bits | 0x8000_0000u32)
}

/// What `token` adds to a sum over the part: 1, or its probability in shares of the likeliest one's; 0 if it does not count.
#[cube]
fn weight(logit: f32, token: u32, part: &Part, #[comptime] by_mass: bool) -> f32 {
    let rank = rank(logit);
    let within = rank > part.cut_rank || (rank == part.cut_rank && token <= part.cut_token);
    let counts = within && rank > NO_CANDIDATE && rank >= part.lowest && rank <= part.highest;
    let mut weight = 1.0f32;
    if comptime![by_mass] {
        // The largest may be infinite, and is as likely as itself.
        weight = select(logit == part.largest, 1.0f32, ((logit - part.largest) / part.temperature).exp());
    }
    select(counts && weight >= part.least_weight, weight, 0.0f32)
}

/// All tokens of `row` that the search goes over.
#[cube]
fn part(stripes: &[u32], choices: &[f32], cuts: &[u32], row: u32, #[comptime] search: Search) -> Part {
    let mut largest = 0.0f32;
    if comptime![search.by_mass] {
        let (best, _token) = best_of_row(stripes, row, search.planes);
        largest = best;
    }
    let mut cut_rank = 0u32;
    let mut cut_token = u32::MAX.runtime();
    if comptime![search.among != Among::All] {
        let at = row * comptime![CUT_WORDS as u32] + comptime![search.cut_before()];
        cut_rank = cuts[at as usize];
        cut_token = cuts[(at + 1) as usize];
    }
    let temperature = choices[(row * comptime![SETTING_WORDS as u32]) as usize];
    Part { largest, temperature, least_weight: 0.0f32, cut_rank, cut_token, lowest: 0u32, highest: u32::MAX.runtime() }
}

/// Adds up the tokens of a stripe by their next digit, where the digits before are those where the limit was reached.
#[cube(launch_unchecked)]
fn sum_digits(
    logits: &[f32],
    stripes: &[u32],
    choices: &[f32],
    cuts: &mut [u32],
    digits: &mut [f32],
    vocab: u32,
    #[comptime] search: Search,
) {
    let mut values = Shared::<[f32]>::new_slice(comptime![UNITS as usize]);
    let mut digits_of = Shared::<[u32]>::new_slice(comptime![UNITS as usize]);
    let row = CUBE_POS_Y;
    let stripe = CUBE_POS_X;
    let mut part = part(stripes, choices, &*cuts, row, search);
    let shift = comptime![32 - DIGIT_BITS * (search.round + 1)];
    if comptime![search.round > 0] {
        let (prefix, limit) = next_digit(choices, &*cuts, &*digits, row, &mut values, search);
        if stripe == 0 && UNIT_POS == 0 {
            let at = row * comptime![CUT_WORDS as u32] + comptime![search.place(search.round - 1)];
            cuts[at as usize] = prefix;
            cuts[(at + 1) as usize] = u32::reinterpret(limit);
        }
        part.lowest = prefix << comptime![shift + DIGIT_BITS];
        part.highest = part.lowest + comptime![(1u32 << (shift + DIGIT_BITS)) - 1];
    }

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
            let logit = logits[(row * vocab + token) as usize];
            value = weight(logit, token, &part, search.by_mass);
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
        digits[at as usize] = sum_of_groups(&mut values);
    }
}

/// What all groups of units found of the calling unit's digit.
#[cube]
fn sum_of_groups(values: &mut Shared<[f32]>) -> f32 {
    let mut sum = 0.0f32;
    for group in 0..GROUPS {
        sum += values[(group * DIGITS + UNIT_POS) as usize];
    }
    sum
}

/// The ranks' first digits up to the one of the round before `search.round`, and what is left of the limit for lower digits.
#[cube]
fn next_digit(
    choices: &[f32],
    cuts: &[u32],
    digits: &[f32],
    row: u32,
    values: &mut Shared<[f32]>,
    #[comptime] search: Search,
) -> (u32, f32) {
    let round = comptime![search.round - 1];
    let stripes_a_group = comptime![STRIPES / GROUPS];
    let mut totals = Shared::<[f32]>::new_slice(comptime![DIGITS as usize]);
    let first = (row * ROUNDS + round) * STRIPES + UNIT_POS / DIGITS * stripes_a_group;
    let mut sum = 0.0f32;
    for i in 0..stripes_a_group {
        sum += digits[((first + i) * DIGITS + UNIT_POS % DIGITS) as usize];
    }
    values[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS < DIGITS {
        totals[UNIT_POS as usize] = sum_of_groups(values);
    }
    sync_cube();

    let mut prefix = 0u32;
    let limit = if comptime![round > 0] {
        let at = row * comptime![CUT_WORDS as u32] + comptime![search.place(round - 1)];
        prefix = cuts[at as usize];
        f32::reinterpret(cuts[(at + 1) as usize])
    } else if comptime![search.by_mass] {
        let mut all = 0.0f32;
        for digit in 0..DIGITS {
            all += totals[digit as usize];
        }
        let share = choices[(row * comptime![SETTING_WORDS as u32] + 2) as usize];
        max(share * all, f32::new(LEAST))
    } else {
        choices[(row * comptime![SETTING_WORDS as u32] + 1) as usize]
    };
    // The largest logits have the highest digits.
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

/// The last token that the search keeps: by now all digits of its rank are known, and equals are told apart.
#[cube(launch_unchecked)]
fn cut(
    logits: &[f32],
    stripes: &[u32],
    choices: &[f32],
    cuts: &mut [u32],
    digits: &[f32],
    vocab: u32,
    #[comptime] search: Search,
) {
    let mut values = Shared::<[f32]>::new_slice(comptime![UNITS as usize]);
    let row = CUBE_POS_X;
    let mut part = part(stripes, choices, &*cuts, row, search);
    let (rank, limit) = next_digit(choices, &*cuts, digits, row, &mut values, search);
    part.lowest = rank;
    part.highest = rank;
    sync_cube();
    if UNIT_POS < STRIPES {
        let at = ((row * ROUNDS + comptime![ROUNDS - 1]) * STRIPES + UNIT_POS) * DIGITS + rank % DIGITS;
        values[UNIT_POS as usize] = digits[at as usize];
    }
    sync_cube();
    let token = token_at(logits, row, vocab, &part, limit, &mut values, search.by_mass);
    if UNIT_POS == 0 {
        let at = row * comptime![CUT_WORDS as u32] + comptime![search.place(ROUNDS - 1)];
        cuts[at as usize] = rank;
        cuts[(at + 1) as usize] = token;
    }
}

/// Adds up what is kept of each stripe.
#[cube(launch_unchecked)]
fn sum_stripes(
    logits: &[f32],
    stripes: &[u32],
    choices: &[f32],
    cuts: &[u32],
    sums: &mut [f32],
    vocab: u32,
    #[comptime] search: Search,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![search.planes as usize]);
    let row = CUBE_POS_Y;
    let stripe = CUBE_POS_X;
    let mut part = part(stripes, choices, cuts, row, search);
    part.least_weight = choices[(row * comptime![SETTING_WORDS as u32] + 3) as usize];
    let length = vocab.div_ceil(STRIPES);
    let end = min((stripe + 1) * length, vocab);
    let mut sum = 0.0f32;
    let mut token = stripe * length + UNIT_POS;
    while token < end {
        sum += weight(logits[(row * vocab + token) as usize], token, &part, true);
        token += UNITS;
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS == 0 {
        sums[(row * STRIPES + stripe) as usize] = sum;
    }
}

/// Draws from what is kept.
#[cube(launch_unchecked)]
fn draw(
    logits: &[f32],
    stripes: &[u32],
    choices: &[f32],
    cuts: &[u32],
    sums: &[f32],
    seeds: &[u32],
    rows: &mut [u32],
    last: &mut [u32],
    tokens: &mut [u32],
    vocab: u32,
    #[comptime] search: Search,
) {
    let mut values = Shared::<[f32]>::new_slice(comptime![UNITS as usize]);
    let row = CUBE_POS_X;
    let mut part = part(stripes, choices, cuts, row, search);
    part.least_weight = choices[(row * comptime![SETTING_WORDS as u32] + 3) as usize];
    if UNIT_POS < STRIPES {
        values[UNIT_POS as usize] = sums[(row * STRIPES + UNIT_POS) as usize];
    }
    sync_cube();
    let mut all = 0.0f32;
    for stripe in 0..STRIPES {
        all += values[stripe as usize];
    }
    let seed = row * comptime![SETTING_WORDS as u32] + 4;
    // The token drawn stands behind the one fed.
    let position = rows[(row * ROW_WORDS + 1) as usize] + 1;
    let number = number(seeds[seed as usize], seeds[(seed + 1) as usize], position);
    let limit = max(number * all, f32::new(LEAST));
    let drawn = token_at(logits, row, vocab, &part, limit, &mut values, true);
    let (_best, likeliest) = best_of_row(stripes, row, search.planes);
    // No token stands for logits that are not numbers, and for a row of which nothing is kept.
    let token = select(drawn == u32::MAX || likeliest == u32::MAX, likeliest, drawn);
    if UNIT_POS == 0 {
        advance(rows, last, tokens, row, token);
    }
}

/// The token at which the weights of a part, added up in the order of the vocabulary, reach `limit`. `values` holds the sums over
/// stripes.
#[cube]
fn token_at(
    logits: &[f32],
    row: u32,
    vocab: u32,
    part: &Part,
    limit: f32,
    values: &mut Shared<[f32]>,
    #[comptime] by_mass: bool,
) -> u32 {
    let length = vocab.div_ceil(STRIPES);
    let piece = length.div_ceil(UNITS);
    let (stripe, limit) = reach(values, limit, STRIPES);
    sync_cube();
    let end = min((stripe + 1) * length, vocab);
    let first = stripe * length + UNIT_POS * piece;
    let mut sum = 0.0f32;
    for i in 0..piece {
        let token = first + i;
        if token < end {
            sum += weight(logits[(row * vocab + token) as usize], token, part, by_mass);
        }
    }
    values[UNIT_POS as usize] = sum;
    sync_cube();
    let (unit, limit) = reach(values, limit, UNITS);
    let first = stripe * length + unit * piece;
    let mut found = u32::MAX.runtime();
    let mut before = 0.0f32;
    for i in 0..piece {
        let token = first + i;
        if token < end {
            let weight = weight(logits[(row * vocab + token) as usize], token, part, by_mass);
            if weight > 0.0f32 && before < limit {
                found = token;
            }
            before += weight;
        }
    }
    found
}

/// Which of the first `count` values, added up, reaches `limit`: the last that is above zero, if rounding keeps them all below. With it,
/// what is left of the limit.
#[cube]
fn reach(values: &mut Shared<[f32]>, limit: f32, #[comptime] count: u32) -> (u32, f32) {
    let mut found = 0u32;
    let mut left = limit;
    let mut before = 0.0f32;
    for i in 0..count {
        let value = values[i as usize];
        if value > 0.0f32 && before < limit {
            found = i;
            left = max(limit - before, f32::new(LEAST));
        }
        before += value;
    }
    (found, left)
}

#[cfg(test)]
mod tests {
    use phase2_forward::{HostDraw, draw_number};

    use super::*;
    use crate::gpu::kernels::greedy::{NO_TOKEN, STRIPE_WORDS};
    use crate::gpu::kernels::testing::{Random, gpu, poisoned};

    /// The tokens drawn for rows of logits, each with its choice and number.
    fn choose(gpu: &Gpu, logits: &[Vec<f32>], draws: &[Draw<'_>]) -> Vec<u32> {
        let (vocab, inputs) = (logits[0].len(), logits.len());
        let [stripes, tokens, digits, cuts] =
            [STRIPE_WORDS, 1, DIGIT_WORDS, CUT_WORDS].map(|len| poisoned(gpu, len * inputs));
        let (rows, drawn) = (gpu.upload([5, 41, 3, 1].repeat(inputs)), poisoned(gpu, 4));
        let logits = &gpu.upload_f32(&logits.concat());
        let (stripes, tokens) = (&stripes, &tokens);
        Sample {
            successors: Successors { logits, vocab, stripes, rows: &rows, drawn: &drawn, tokens, inputs },
            settings: &gpu.upload(draws.iter().flat_map(settings).collect()),
            digits: &digits,
            cuts: &cuts,
            filters: Filters::of(draws),
        }
        .launch(gpu);
        let tokens = gpu.read(tokens).expect("reads")[..inputs].to_vec();
        let fed = tokens.iter().map(|&token| if token == NO_TOKEN { 0 } else { token });
        for (words, fed) in gpu.read(&rows).expect("reads").chunks(4).zip(fed.clone()) {
            assert_eq!(words, [fed, 42, 3, 0]);
        }
        // All rows are of one slot.
        assert!(fed.clone().any(|fed| Ok(fed) == gpu.read(&drawn).map(|drawn| drawn[3]).map_err(|_| ())));
        tokens
    }

    /// A draw of token 42 by a number that is `number` to within 5·10⁻⁴.
    fn draw_of(sampling: Sampling, number: f32) -> Draw<'static> {
        let seed = (0..).find(|&seed| (draw_number(seed, 42) - number).abs() < 5e-4).expect("some seed");
        Draw { sampling, seed, ..Draw::GREEDY }
    }

    /// The tokens that a rounding error of 10⁻⁵ in shares, weights and draws may choose.
    fn near(logits: &[f32], choice: Sampling, draw: f64) -> Vec<u32> {
        let mut ranked: Vec<u32> =
            (0..logits.len() as u32).filter(|&t| logits[t as usize] > f32::NEG_INFINITY).collect();
        ranked.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        if choice.top_k > 0 {
            ranked.truncate(choice.top_k);
        }
        let largest = f64::from(logits[ranked[0] as usize]);
        let weight = |token: u32| ((f64::from(logits[token as usize]) - largest) / f64::from(choice.temperature)).exp();
        let mut found = Vec::new();
        for off in [-1e-5, 0.0, 1e-5] {
            let mut kept = ranked.clone();
            if choice.top_p < 1.0 {
                let all: f64 = kept.iter().map(|&t| weight(t)).sum();
                let mut mass = 0.0;
                let enough = |&t: &u32| {
                    mass += weight(t);
                    mass >= (f64::from(choice.top_p) + off) * all
                };
                let last = kept.iter().position(enough).unwrap_or(kept.len() - 1);
                kept.truncate(last + 1);
            }
            for less in [-1e-5, 0.0, 1e-5] {
                let mut kept = kept.clone();
                kept.retain(|&t| weight(t) >= f64::from(choice.min_p) * (1.0 + less));
                kept.sort_unstable();
                let all: f64 = kept.iter().map(|&t| weight(t)).sum();
                let mut before = 0.0;
                for token in kept {
                    let after = before + weight(token) / all;
                    if before - 1e-5 <= draw && draw < after + 1e-5 && weight(token) > 0.0 {
                        found.push(token);
                    }
                    before = after;
                }
            }
        }
        found
    }

    fn random_sampling(random: &mut Random, vocab: usize) -> Sampling {
        let unit = |random: &mut Random| random.below(1001) as f32 / 1000.0;
        Sampling {
            temperature: if random.below(8) == 0 { 0.0 } else { 0.05 + 2.0 * unit(random) },
            top_k: if random.below(2) == 0 { 0 } else { 1 + random.below(vocab.min(60)) },
            top_p: if random.below(2) == 0 { 1.0 } else { unit(random) },
            min_p: if random.below(2) == 0 { 0.0 } else { unit(random) * 0.2 },
        }
    }

    #[test]
    fn draws_as_the_host_does() {
        let gpu = gpu();
        let mut random = Random::fresh();
        let (mut drawn, mut different) = (0, 0);
        for (vocab, inputs) in [(1, 2), (2, 3), (127, 4), (299, 8), (4099, 16), (33_003, 4), (201_088, 3)] {
            for many_equals in [false, true] {
                let row = |random: &mut Random| match many_equals {
                    true => (0..vocab).map(|_| random.below(9) as f32 * 0.5 - 2.0).collect(),
                    false => random.values(vocab, 12.0),
                };
                let logits: Vec<Vec<f32>> = (0..inputs).map(|_| row(&mut random)).collect();
                let draw = |random: &mut Random| {
                    let sampling = random_sampling(random, vocab);
                    Draw { sampling, seed: random.below(1 << 30) as u64, ..Draw::GREEDY }
                };
                let draws: Vec<Draw<'_>> = (0..inputs).map(|_| draw(&mut random)).collect();
                let host = |(logits, draw): (&Vec<f32>, &Draw<'_>)| {
                    HostDraw::default().draw(&mut logits.clone(), 42, draw).expect("numbers").id
                };
                let expected: Vec<u32> = logits.iter().zip(&draws).map(host).collect();
                let found = choose(&gpu, &logits, &draws);
                for row in 0..inputs {
                    let (choice, draw) = (draws[row].sampling, f64::from(draw_number(draws[row].seed, 42)));
                    drawn += 1;
                    if found[row] != expected[row] {
                        different += 1;
                        let near = if choice.temperature > 0.0 { near(&logits[row], choice, draw) } else { vec![] };
                        assert!(
                            near.contains(&found[row]),
                            "{vocab} {many_equals} {choice:?} {draw}: {}, expected {}, {random:?}",
                            found[row],
                            expected[row]
                        );
                    }
                }
            }
        }
        assert!(different * 10 <= drawn, "{different} of {drawn} differ: {random:?}");
    }

    #[test]
    fn keeps_exactly_the_first_of_equals() {
        let gpu = gpu();
        // 700 equals behind two larger ones: the third and fourth by rank are the first two of them.
        let mut logits = vec![-4.0; 2000];
        logits[1200..1900].fill(1.5);
        logits[1999] = 2.0;
        logits[0] = 1.75;
        let sampling = Sampling { temperature: 1e6, top_k: 4, top_p: 1.0, min_p: 0.0 };
        let draws = [0.0, 0.3, 0.6, 0.9].map(|number| draw_of(sampling, number));
        assert_eq!(choose(&gpu, &vec![logits.clone(); 4], &draws), [0, 1200, 1201, 1999]);
        // Half of four hundred and two equally likely ones.
        let sampling = Sampling { temperature: 1e6, top_k: 402, top_p: 0.5, min_p: 0.0 };
        let draws = [0.0, 0.9995].map(|number| draw_of(sampling, number));
        assert_eq!(choose(&gpu, &vec![logits; 2], &draws), [0, 1999]);
    }

    #[test]
    fn infinities_and_zeros_are_ranked() {
        let gpu = gpu();
        let (no, inf) = (f32::NEG_INFINITY, f32::INFINITY);
        let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        let first_two = Sampling { top_k: 2, ..plain };
        let rows = [vec![no, 3.0, no, no, no], vec![0.0, inf, 5.0, inf, no], vec![-1.0, 0.0, -0.0, 0.0, no]];
        assert_eq!(choose(&gpu, &rows, &[0.99, 0.4, 0.0].map(|number| draw_of(plain, number))), [1, 1, 0]);
        assert_eq!(choose(&gpu, &rows, &[0.0, 0.6, 0.7].map(|number| draw_of(first_two, number))), [1, 3, 2]);
    }

    #[test]
    fn says_so_where_a_logit_is_not_a_number() {
        let gpu = gpu();
        let mut logits = vec![0.5; 299];
        let sampling = Sampling { temperature: 1.0, top_k: 7, top_p: 0.9, min_p: 0.1 };
        let fine = logits.clone();
        logits[100] = f32::NAN;
        assert_eq!(choose(&gpu, &[logits, fine], &[0.5, 0.0].map(|number| draw_of(sampling, number))), [NO_TOKEN, 0]);
    }
}
