//! The candidates of a draw, their weights, and the search for the token at which the cumulative weight reaches a limit.

use cubecl::prelude::*;

use super::argmax::{STRIPES, best_of_row};
use super::rank::{NO_CANDIDATE, rank};

/// Units (threads) per cube: a multiple of every plane size.
pub(super) const UNITS: u32 = 256;
pub(super) const DIGIT_BITS: u32 = 4;
pub(super) const DIGITS: u32 = 1 << DIGIT_BITS;
/// Number of digits of a rank.
pub(super) const ROUNDS: u32 = 32 / DIGIT_BITS;
/// The least limit of a search. It is above zero, so that a cumulative weight of zero never reaches a limit.
pub(super) const LEAST: f32 = 1.0e-30;

/// Words of a row's draw settings: temperature, top-k, top-p, min-p, and two of seed.
pub const SETTING_WORDS: usize = 6;
/// Indices of the settings.
pub(super) const TEMPERATURE: u32 = 0;
pub(super) const MAX_TOKENS: u32 = 1;
pub(super) const SHARE: u32 = 2;
pub(super) const MIN_WEIGHT: u32 = 3;
pub(super) const SEED: u32 = 4;
/// Words for a row's sums of weights, one for each round, stripe and digit.
pub const HISTOGRAM_WORDS: usize = (ROUNDS * STRIPES * DIGITS) as usize;
/// Words for a row's two searches, by number of tokens and by probability: two words of state after each round.
pub const THRESHOLD_WORDS: usize = (2 * 2 * ROUNDS) as usize;

/// The buffers of all kernels of a draw.
#[derive(CubeType, CubeLaunch)]
pub(super) struct DrawArgs {
    /// `[inputs, vocab]`
    pub logits: Box<[f32]>,
    /// As in [`NextTokens`](super::NextTokens).
    pub partial_max: Box<[u32]>,
    /// [`SETTING_WORDS`] per row.
    pub settings: Box<[u32]>,
    /// [`THRESHOLD_WORDS`] per row.
    pub thresholds: Box<[u32]>,
    /// [`HISTOGRAM_WORDS`] per row.
    pub histogram: Box<[f32]>,
    pub vocab: u32,
}

#[cube]
impl DrawArgs {
    /// A setting of a row that is a float.
    pub fn setting(&self, row: u32, #[comptime] place: u32) -> f32 {
        f32::reinterpret(self.settings[(row * comptime![SETTING_WORDS as u32] + place) as usize])
    }

    /// The low and the high word of a row's seed.
    pub fn seed(&self, row: u32) -> (u32, u32) {
        let at = (row * comptime![SETTING_WORDS as u32] + SEED) as usize;
        (self.settings[at], self.settings[at + 1])
    }
}

/// The tokens among which a search is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TokenSet {
    All,
    TopK,
    TopP,
}

/// The parameters of a search that are compiled into its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Search {
    pub tokens: TokenSet,
    /// Whether tokens are weighted by their probability; otherwise all have the weight 1.
    pub by_mass: bool,
    pub round: u32,
    pub planes: u32,
}

impl Search {
    /// Index, among a row's threshold words, of the search's state after `round`.
    pub fn state_index(self, round: u32) -> u32 {
        2 * (u32::from(self.by_mass) * ROUNDS + round)
    }

    /// Index of the threshold of the tokens among which the search is done.
    fn threshold_before(self) -> u32 {
        Search { by_mass: self.tokens == TokenSet::TopP, ..self }.state_index(ROUNDS - 1)
    }
}

/// Which tokens of a row are candidates, and their weights.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Candidates {
    largest: f32,
    temperature: f32,
    pub least_weight: f32,
    /// The last token, in order of rank, that an earlier search kept.
    last_rank: u32,
    last_token: u32,
    /// The range of ranks that count.
    pub lowest: u32,
    pub highest: u32,
}

#[cube]
impl Candidates {
    /// All tokens of `row` among which the search is done.
    pub fn of(args: &DrawArgs, row: u32, #[comptime] search: Search) -> Candidates {
        let mut largest = 0.0f32;
        if comptime![search.by_mass] {
            let (best, _token) = best_of_row(&args.partial_max, row, search.planes);
            largest = best;
        }
        let mut last_rank = 0u32;
        let mut last_token = u32::MAX.runtime();
        if comptime![search.tokens != TokenSet::All] {
            let at = row * comptime![THRESHOLD_WORDS as u32] + comptime![search.threshold_before()];
            last_rank = args.thresholds[at as usize];
            last_token = args.thresholds[(at + 1) as usize];
        }
        let temperature = args.setting(row, TEMPERATURE);
        Candidates {
            largest,
            temperature,
            least_weight: 0.0f32,
            last_rank,
            last_token,
            lowest: 0u32,
            highest: u32::MAX.runtime(),
        }
    }

    /// The weight of `token`: 1, or its probability relative to the most likely token's; 0 if it is not a candidate or if the weight is
    /// below `least_weight`.
    pub fn weight(&self, logit: f32, token: u32, #[comptime] by_mass: bool) -> f32 {
        let rank = rank(logit);
        let within = rank > self.last_rank || (rank == self.last_rank && token <= self.last_token);
        let counts = within && rank > NO_CANDIDATE && rank >= self.lowest && rank <= self.highest;
        let mut weight = 1.0f32;
        if comptime![by_mass] {
            // The largest logit may be infinite; its weight is 1.
            weight = select(logit == self.largest, 1.0f32, ((logit - self.largest) / self.temperature).exp());
        }
        select(counts && weight >= self.least_weight, weight, 0.0f32)
    }

    /// The token at which the weights, summed in the order of the vocabulary, reach `limit`; `u32::MAX` if all weights are 0. `values`
    /// holds the sums of the stripes, and is overwritten.
    pub fn token_at(
        &self,
        args: &DrawArgs,
        row: u32,
        limit: f32,
        values: &mut Shared<[f32]>,
        #[comptime] by_mass: bool,
    ) -> u32 {
        let vocab = args.vocab;
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
                sum += self.weight(args.logits[(row * vocab + token) as usize], token, by_mass);
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
                let weight = self.weight(args.logits[(row * vocab + token) as usize], token, by_mass);
                if weight > 0.0f32 && before < limit {
                    found = token;
                }
                before += weight;
            }
        }
        found
    }
}

/// The index of the first of `count` values at which the cumulative sum reaches `limit`, or the last that is above zero if rounding keeps
/// the sum below. Also returns how much of the limit is left after the values before it.
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
