//! Draws a token on the device: temperature, top-k, top-p, min-p and a [random number](super::threefry).
//!
//! Tokens are not sorted: [`threshold`](super::threshold) finds the last tokens that top-k and top-p keep. The draw then finds the token at
//! which the cumulative weight of the kept tokens reaches a random limit: first its stripe of the vocabulary, then the piece of the stripe
//! that one unit sums, then the token. The draw takes three launches, each of the two searches nine more.

use cubecl::prelude::*;

use super::argmax::{NextTokens, STRIPES, advance, best_of_row};
use super::candidates::{
    Candidates, DrawArgs, DrawArgsLaunch, HISTOGRAM_WORDS, LEAST, MIN_WEIGHT, ROUNDS, SETTING_WORDS, Search,
    THRESHOLD_WORDS, TokenSet, UNITS,
};
use super::threefry::number;
use super::threshold;
use crate::device::{Buffer, Device};
use crate::reduce::cube_sum;
use crate::rows::ROW_WORDS;

/// The settings of a row's draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawSettings {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// The most tokens that are kept; 0 keeps all.
    pub top_k: usize,
    /// Of the tokens that top-k keeps, keeps the fewest most likely ones whose share of the total probability reaches this value; 1 or more
    /// keeps all.
    pub top_p: f32,
    /// The least probability of a kept token, relative to the most likely token's.
    pub min_p: f32,
    /// Together with the position of the drawn token, it determines the random number.
    pub seed: u64,
}

impl DrawSettings {
    /// Whether the most likely token is taken.
    fn is_greedy(self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// The settings in the format of the kernels.
    pub fn words(self) -> [u32; SETTING_WORDS] {
        // The most likely token is the first in order of rank.
        let DrawSettings { temperature, top_k, top_p, min_p, seed } = match self.is_greedy() {
            true => DrawSettings { temperature: 1.0, top_k: 1, top_p: 1.0, min_p: 0.0, ..self },
            false => self,
        };
        let most = if top_k == 0 { f32::MAX } else { top_k as f32 };
        // A limit of twice the total is never reached, however the sum is rounded.
        let share = if top_p < 1.0 { top_p } else { 2.0 };
        let [temperature, most, share, min_p] = [temperature.max(LEAST), most, share, min_p].map(f32::to_bits);
        [temperature, most, share, min_p, seed as u32, (seed >> 32) as u32]
    }
}

/// The searches that the settings of some rows need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    pub top_k: bool,
    pub top_p: bool,
}

impl Filters {
    pub fn of(settings: impl IntoIterator<Item = DrawSettings>) -> Filters {
        settings.into_iter().fold(Filters::default(), |filters, one| Filters {
            top_k: filters.top_k || one.top_k > 0 || one.is_greedy(),
            top_p: filters.top_p || (one.top_p < 1.0 && !one.is_greedy()),
        })
    }
}

/// The buffers of the draws of several rows.
#[derive(Clone, Copy)]
pub struct Draw<'a> {
    pub next: NextTokens<'a>,
    /// [`SETTING_WORDS`] per row, from [`DrawSettings::words`].
    pub settings: &'a Buffer,
    /// [`HISTOGRAM_WORDS`] per row.
    pub histogram: &'a Buffer,
    /// [`THRESHOLD_WORDS`] per row.
    pub thresholds: &'a Buffer,
    pub filters: Filters,
}

impl Draw<'_> {
    /// Draws a token for every row. The slots in `rows` must be below the length of `drawn`, which is not checked.
    ///
    /// # Panics
    /// If the vocabulary is empty or a buffer is too short.
    pub fn launch(&self, device: &Device) {
        self.check();
        let NextTokens { rows, drawn, tokens, inputs, .. } = self.next;
        let inputs = inputs as u32;
        let units = CubeDim::new_1d(UNITS);
        self.next.launch_stripes(device);
        let mut search =
            Search { tokens: TokenSet::All, by_mass: false, round: ROUNDS, planes: device.most_planes(UNITS) };
        if self.filters.top_k {
            threshold::search(device, || self.args(), inputs, search);
            search.tokens = TokenSet::TopK;
        }
        search.by_mass = true;
        if self.filters.top_p {
            threshold::search(device, || self.args(), inputs, search);
            search.tokens = TokenSet::TopP;
        }
        // SAFETY: lengths are checked; tokens are bounded by the vocabulary. The caller promises that the slots in `rows` are below the
        // length of `drawn`.
        unsafe {
            let cubes = CubeCount::Static(STRIPES, inputs, 1);
            add_up_stripes::launch_unchecked(device.client(), cubes, units, self.args(), search);
            draw::launch_unchecked(
                device.client(),
                CubeCount::Static(inputs, 1, 1),
                units,
                self.args(),
                rows.arg(),
                drawn.arg(),
                tokens.arg(),
                search,
            );
        }
    }

    fn args(&self) -> DrawArgsLaunch {
        DrawArgsLaunch::new(
            self.next.logits.arg(),
            self.next.partial_max.arg(),
            self.settings.arg(),
            self.thresholds.arg(),
            self.histogram.arg(),
            self.next.vocab as u32,
        )
    }

    #[track_caller]
    fn check(&self) {
        let inputs = self.next.inputs;
        self.next.check();
        self.settings.expect("the settings of draws", inputs * SETTING_WORDS);
        self.histogram.expect("the histogram", inputs * HISTOGRAM_WORDS);
        self.thresholds.expect("the thresholds", inputs * THRESHOLD_WORDS);
    }
}

/// Sums the weights of the kept tokens of each stripe, and stores the sums at the start of the histogram.
#[cube(launch_unchecked)]
fn add_up_stripes(mut args: DrawArgs, #[comptime] search: Search) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![search.planes as usize]);
    let row = CUBE_POS_Y;
    let stripe = CUBE_POS_X;
    let mut candidates = Candidates::of(&args, row, search);
    candidates.least_weight = args.setting(row, MIN_WEIGHT);
    let vocab = args.vocab;
    let length = vocab.div_ceil(STRIPES);
    let end = min((stripe + 1) * length, vocab);
    let mut sum = 0.0f32;
    let mut token = stripe * length + UNIT_POS;
    while token < end {
        sum += candidates.weight(args.logits[(row * vocab + token) as usize], token, true);
        token += UNITS;
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS == 0 {
        args.histogram[(row * STRIPES + stripe) as usize] = sum;
    }
}

/// Draws from the kept tokens.
#[cube(launch_unchecked)]
fn draw(args: DrawArgs, rows: &mut [u32], last: &mut [u32], tokens: &mut [u32], #[comptime] search: Search) {
    let mut values = Shared::<[f32]>::new_slice(comptime![UNITS as usize]);
    let row = CUBE_POS_X;
    let mut candidates = Candidates::of(&args, row, search);
    candidates.least_weight = args.setting(row, MIN_WEIGHT);
    if UNIT_POS < STRIPES {
        values[UNIT_POS as usize] = args.histogram[(row * STRIPES + UNIT_POS) as usize];
    }
    sync_cube();
    let mut all = 0.0f32;
    for stripe in 0..STRIPES {
        all += values[stripe as usize];
    }
    let (seed_low, seed_high) = args.seed(row);
    // The drawn token has the position after that of the row's input token.
    let position = rows[(row * ROW_WORDS + 1) as usize] + 1;
    let limit = max(number(seed_low, seed_high, position) * all, f32::new(LEAST));
    let drawn = candidates.token_at(&args, row, limit, &mut values, true);
    let (_best, likeliest) = best_of_row(&args.partial_max, row, search.planes);
    // If no token is kept, the most likely one is drawn. There is no token if a logit is NaN or all are −∞.
    let token = select(drawn == u32::MAX || likeliest == u32::MAX, likeliest, drawn);
    if UNIT_POS == 0 {
        advance(rows, last, tokens, row, token);
    }
}

#[cfg(test)]
mod tests {
    use phase2_forward::{HostDraw, Sampling, draw_number};

    use super::*;
    use crate::sampling::{NO_TOKEN, PARTIAL_MAX_WORDS};
    use crate::testing::{Random, device, poisoned};

    /// The tokens drawn for rows of logits, all at position 42.
    fn choose(device: &Device, logits: &[Vec<f32>], settings: &[DrawSettings]) -> Vec<u32> {
        let (vocab, inputs) = (logits[0].len(), logits.len());
        let [partial_max, tokens, histogram, thresholds] =
            [PARTIAL_MAX_WORDS, 1, HISTOGRAM_WORDS, THRESHOLD_WORDS].map(|len| poisoned(device, len * inputs));
        let (rows, drawn) = (device.upload([5, 41, 3, 1].repeat(inputs)), poisoned(device, 4));
        let logits = &device.upload_f32(&logits.concat());
        let (partial_max, tokens) = (&partial_max, &tokens);
        Draw {
            next: NextTokens { logits, vocab, partial_max, rows: &rows, drawn: &drawn, tokens, inputs },
            settings: &device.upload(settings.iter().flat_map(|settings| settings.words()).collect()),
            histogram: &histogram,
            thresholds: &thresholds,
            filters: Filters::of(settings.iter().copied()),
        }
        .launch(device);
        let tokens = device.read(tokens).expect("reads")[..inputs].to_vec();
        let fed: Vec<u32> = tokens.iter().map(|&token| if token == NO_TOKEN { 0 } else { token }).collect();
        for (words, &fed) in device.read(&rows).expect("reads").chunks(4).zip(&fed) {
            assert_eq!(words, [fed, 42, 3, 0]);
        }
        // All rows have the same slot.
        assert!(fed.contains(&device.read(&drawn).expect("reads")[3]));
        tokens
    }

    /// The same settings, with a seed for which the random number at position 42 is within 5·10⁻⁴ of `number`.
    fn with_number(settings: DrawSettings, number: f32) -> DrawSettings {
        let seed = (0..).find(|&seed| (draw_number(seed, 42) - number).abs() < 5e-4).expect("one of all seeds fits");
        DrawSettings { seed, ..settings }
    }

    /// The token that the host draws.
    fn host(logits: &[f32], settings: DrawSettings) -> u32 {
        let DrawSettings { temperature, top_k, top_p, min_p, seed } = settings;
        let sampling = Sampling { temperature, top_k, top_p, min_p };
        let draw = phase2_forward::Draw { sampling, seed, ..phase2_forward::Draw::GREEDY };
        HostDraw::default().draw(&mut logits.to_vec(), 42, &draw).expect("numbers").id
    }

    /// The tokens that are possible with an error of 10⁻⁵ in shares, weights and draws.
    fn near(logits: &[f32], settings: DrawSettings, draw: f64) -> Vec<u32> {
        let mut ranked: Vec<u32> =
            (0..logits.len() as u32).filter(|&t| logits[t as usize] > f32::NEG_INFINITY).collect();
        ranked.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        if settings.top_k > 0 {
            ranked.truncate(settings.top_k);
        }
        let largest = f64::from(logits[ranked[0] as usize]);
        let weight =
            |token: u32| ((f64::from(logits[token as usize]) - largest) / f64::from(settings.temperature)).exp();
        let mut found = Vec::new();
        for off in [-1e-5, 0.0, 1e-5] {
            let mut kept = ranked.clone();
            if settings.top_p < 1.0 {
                let all: f64 = kept.iter().map(|&t| weight(t)).sum();
                let mut mass = 0.0;
                let enough = |&t: &u32| {
                    mass += weight(t);
                    mass >= (f64::from(settings.top_p) + off) * all
                };
                let last = kept.iter().position(enough).unwrap_or(kept.len() - 1);
                kept.truncate(last + 1);
            }
            for less in [-1e-5, 0.0, 1e-5] {
                let mut kept = kept.clone();
                kept.retain(|&t| weight(t) >= f64::from(settings.min_p) * (1.0 + less));
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

    fn random_settings(random: &mut Random, vocab: usize) -> DrawSettings {
        let unit = |random: &mut Random| random.below(1001) as f32 / 1000.0;
        DrawSettings {
            temperature: if random.below(8) == 0 { 0.0 } else { 0.05 + 2.0 * unit(random) },
            top_k: if random.below(2) == 0 { 0 } else { 1 + random.below(vocab.min(60)) },
            top_p: if random.below(2) == 0 { 1.0 } else { unit(random) },
            min_p: if random.below(2) == 0 { 0.0 } else { unit(random) * 0.2 },
            seed: (random.below(1 << 30) as u64) << 20,
        }
    }

    /// Up to a tenth of the draws may differ, if rounding can decide between the two tokens.
    #[test]
    fn draws_equal_the_hosts() {
        let device = device();
        let mut random = Random::fresh();
        let (mut drawn, mut different) = (0, 0);
        for (vocab, inputs) in [(1, 2), (2, 3), (127, 4), (299, 8), (4099, 16), (33_003, 4), (201_088, 3)] {
            for many_equals in [false, true] {
                let row = |random: &mut Random| match many_equals {
                    true => (0..vocab).map(|_| random.below(9) as f32 * 0.5 - 2.0).collect(),
                    false => random.values(vocab, 12.0),
                };
                let logits: Vec<Vec<f32>> = (0..inputs).map(|_| row(&mut random)).collect();
                let settings: Vec<DrawSettings> = (0..inputs).map(|_| random_settings(&mut random, vocab)).collect();
                let found = choose(&device, &logits, &settings);
                for row in 0..inputs {
                    let (one, expected) = (settings[row], host(&logits[row], settings[row]));
                    drawn += 1;
                    if found[row] != expected {
                        different += 1;
                        let number = f64::from(draw_number(one.seed, 42));
                        let near = if one.is_greedy() { vec![] } else { near(&logits[row], one, number) };
                        assert!(
                            near.contains(&found[row]),
                            "{vocab} {many_equals} {one:?} {number}: {}, expected {expected}, {random:?}",
                            found[row],
                        );
                    }
                }
            }
        }
        assert!(different * 10 <= drawn, "{different} of {drawn} differ: {random:?}");
    }

    #[test]
    fn filters_keep_the_first_of_equal_logits() {
        let device = device();
        // There are two larger logits and 700 equal ones, of which the first two are third and fourth by rank.
        let mut logits = vec![-4.0; 2000];
        logits[1200..1900].fill(1.5);
        logits[1999] = 2.0;
        logits[0] = 1.75;
        let one = DrawSettings { temperature: 1e6, top_k: 4, top_p: 1.0, min_p: 0.0, seed: 0 };
        let draws = [0.0, 0.3, 0.6, 0.9].map(|number| with_number(one, number));
        assert_eq!(choose(&device, &vec![logits.clone(); 4], &draws), [0, 1200, 1201, 1999]);
        // Top-p keeps the first half of 402 almost equally likely tokens.
        let one = DrawSettings { temperature: 1e6, top_k: 402, top_p: 0.5, min_p: 0.0, seed: 0 };
        let draws = [0.0, 0.9995].map(|number| with_number(one, number));
        assert_eq!(choose(&device, &vec![logits; 2], &draws), [0, 1999]);
    }

    #[test]
    fn infinities_and_zeros_are_ranked() {
        let device = device();
        let (no, inf) = (f32::NEG_INFINITY, f32::INFINITY);
        let plain = DrawSettings { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };
        let first_two = DrawSettings { top_k: 2, ..plain };
        let rows = [vec![no, 3.0, no, no, no], vec![0.0, inf, 5.0, inf, no], vec![-1.0, 0.0, -0.0, 0.0, no]];
        assert_eq!(choose(&device, &rows, &[0.99, 0.4, 0.0].map(|number| with_number(plain, number))), [1, 1, 0]);
        assert_eq!(choose(&device, &rows, &[0.0, 0.6, 0.7].map(|number| with_number(first_two, number))), [1, 3, 2]);
    }

    #[test]
    fn reports_nan_logits() {
        let device = device();
        let mut logits = vec![0.5; 299];
        let one = DrawSettings { temperature: 1.0, top_k: 7, top_p: 0.9, min_p: 0.1, seed: 0 };
        let fine = logits.clone();
        logits[100] = f32::NAN;
        assert_eq!(choose(&device, &[logits, fine], &[0.5, 0.0].map(|number| with_number(one, number))), [NO_TOKEN, 0]);
    }
}
