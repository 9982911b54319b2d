//! Properties and examples of a sampler's draws, of the stop condition, and of the host's draws.

use std::collections::BTreeSet;

use phase2_forward::{Draw, HostDraw, Sampling};
use phase3_kvcache::{FinishReason, Sampler, SamplingError, SamplingParams, StopCondition};
use proptest::collection::vec;
use proptest::prelude::*;

const INF: f32 = f32::INFINITY;

fn sampler(params: SamplingParams, vocab: usize) -> Sampler {
    Sampler::new(params, vocab).expect("parameters in range")
}

/// A text that is drawn from rows of logits.
struct Text {
    sampler: Sampler,
    host: HostDraw,
    position: usize,
}

impl Text {
    fn new(params: SamplingParams, vocab: usize) -> Text {
        Text { sampler: sampler(params, vocab), host: HostDraw::default(), position: 0 }
    }

    /// Draws the next token; `None` if a logit is NaN. Afterwards `logits` holds the adjusted logits.
    fn draw(&mut self, logits: &mut [f32]) -> Option<u32> {
        let token = self.host.draw(logits, self.position, &self.sampler.next_draw())?.id;
        self.sampler.accept(token);
        self.position += 1;
        Some(token)
    }
}

/// `count` draws from the same row.
fn draws(params: SamplingParams, logits: &[f32], count: usize) -> Vec<u32> {
    let mut text = Text::new(params, logits.len());
    (0..count).map(|_| text.draw(&mut logits.to_vec()).expect("no NaN")).collect()
}

/// Makes `token` the next generated one, despite any penalties.
fn generate(text: &mut Text, vocab: usize, token: u32) {
    let mut row = vec![-INF; vocab];
    row[token as usize] = 0.0;
    assert_eq!(text.draw(&mut row), Some(token));
}

/// Parameters with only the filters set.
fn filters(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> SamplingParams {
    SamplingParams { sampling: Sampling { temperature, top_k, top_p, min_p }, ..Default::default() }
}

/// Tokens with their probabilities at `temperature`, most likely first; of equally likely tokens, the lower ID first.
fn ranked(logits: &[f32], temperature: f32) -> Vec<(u32, f64)> {
    let weight = |l: f32| (f64::from(l) / f64::from(temperature)).exp();
    let total: f64 = logits.iter().map(|&l| weight(l)).sum();
    let mut ranked: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&l| weight(l) / total)).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

/// Rows of logits so flat that at a temperature of at least 1, 1500 draws include every token that passes the filters, except for less than
/// one row in a billion.
fn flat_row() -> impl Strategy<Value = Vec<f32>> {
    vec(0.0f32..2.0, 1..9)
}

/// Rows of multiples of 1/8, so that ties are common and adding an integer is exact in f32.
fn exact_row() -> impl Strategy<Value = Vec<f32>> {
    vec((-64i32..64).prop_map(|eighths| eighths as f32 / 8.0), 1..40)
}

prop_compose! {
    fn any_params()(
        temperature in 0.0f32..3.0, top_k in 0usize..20, top_p in 0.0f32..=1.0,
        min_p in 0.0f32..=1.0, repetition_penalty in 0.25f32..4.0,
        presence_penalty in -2.0f32..2.0, frequency_penalty in -2.0f32..2.0, seed: u64,
    ) -> SamplingParams {
        SamplingParams {
            seed, repetition_penalty, presence_penalty, frequency_penalty,
            ..filters(temperature, top_k, top_p, min_p)
        }
    }
}

fn without_penalties(params: SamplingParams) -> SamplingParams {
    SamplingParams { repetition_penalty: 1.0, presence_penalty: 0.0, frequency_penalty: 0.0, ..params }
}

proptest! {
    #[test]
    fn greedy_and_top_1_take_the_lowest_of_the_largest(
        row in exact_row(), temperature in 0.01f32..100.0, seed: u64,
    ) {
        let max = row.iter().copied().fold(-INF, f32::max);
        let first = row.iter().position(|&l| l == max).expect("row is not empty") as u32;
        let greedy = SamplingParams { seed, ..Default::default() };
        let top_1 = SamplingParams { seed, ..filters(temperature, 1, 1.0, 0.0) };
        prop_assert_eq!(draws(greedy, &row, 3), [first; 3]);
        prop_assert_eq!(draws(top_1, &row, 3), [first; 3]);
    }

    #[test]
    fn adding_a_constant_to_logits_does_not_change_draws(
        row in exact_row(), constant in -1000i32..1000, params in any_params(),
    ) {
        let params = without_penalties(params);
        let shifted: Vec<f32> = row.iter().map(|l| l + constant as f32).collect();
        prop_assert_eq!(draws(params.clone(), &row, 20), draws(params, &shifted, 20));
    }

    #[test]
    fn the_same_seed_gives_the_same_draws(row in exact_row(), params in any_params()) {
        prop_assert_eq!(draws(params.clone(), &row, 20), draws(params, &row, 20));
    }

    #[test]
    fn impossible_tokens_are_never_drawn(
        mut row in exact_row(), holes in vec(any::<prop::sample::Index>(), 0..40),
        params in any_params(),
    ) {
        for index in holes {
            *index.get_mut(&mut row) = -INF;
        }
        let possible = row.iter().any(|l| l.is_finite());
        let mut text = Text::new(params, row.len());
        for _ in 0..20 {
            let token = text.draw(&mut row.clone()).expect("no NaN");
            let allowed = if possible { row[token as usize].is_finite() } else { token == 0 };
            prop_assert!(allowed, "drew {}", token);
        }
    }

    #[test]
    fn rows_with_nan_are_refused(
        mut row in exact_row(), index: prop::sample::Index, params in any_params(),
    ) {
        let mut text = Text::new(params.clone(), row.len());
        let whole = row.clone();
        *index.get_mut(&mut row) = f32::NAN;
        prop_assert_eq!(text.draw(&mut row), None);
        // The failed draw has no effect on the next.
        prop_assert_eq!(text.draw(&mut whole.clone()), draws(params, &whole, 1).first().copied());
    }

    #[test]
    fn mask_excludes_disallowed_tokens(
        row in exact_row(), allowed in vec(any::<bool>(), 40), params in any_params(), position in 0usize..1000,
    ) {
        let mut words = vec![0u32; row.len().div_ceil(32)];
        let mut banned = row.clone();
        for (token, logit) in banned.iter_mut().enumerate() {
            match allowed[token] {
                true => words[token / 32] |= 1 << (token % 32),
                false => *logit = -INF,
            }
        }
        prop_assume!(words.iter().any(|&word| word != 0));
        let mut sampler = sampler(params, row.len());
        let draw = sampler.next_draw();
        let mut host = HostDraw::default();
        let mut masked = row;
        let found = host.draw(&mut masked, position, &Draw { allowed: Some(&words), ..draw });
        prop_assert_eq!(&masked, &banned);
        prop_assert_eq!(found, host.draw(&mut banned, position, &draw));
    }

    #[test]
    fn penalties_change_seen_tokens_only(
        row in vec(-9.0f32..9.0, 8), params in any_params(),
        prompt in vec(0u32..8, 0..4), generated in vec(0u32..8, 0..6),
    ) {
        let mut text = Text::new(params.clone(), 8);
        text.sampler.observe_prompt(&prompt);
        for &token in &generated {
            generate(&mut text, 8, token);
        }
        let mut after = row.clone();
        text.draw(&mut after);
        for token in 0..8u32 {
            let (before, after) = (row[token as usize], after[token as usize]);
            let count = generated.iter().filter(|&&g| g == token).count() as f32;
            let mut expected = before;
            if count > 0.0 || prompt.contains(&token) {
                let penalty = params.repetition_penalty;
                expected = if before > 0.0 { before / penalty } else { before * penalty };
                prop_assert!(penalty < 1.0 || expected <= before);
            }
            if count > 0.0 {
                expected -= count * params.frequency_penalty + params.presence_penalty;
            }
            prop_assert_eq!(after, expected, "token {} was {}", token, before);
        }
    }

    #[test]
    fn each_token_is_adjusted_once(
        biases in vec((0u32..8, -3.0f32..3.0), 0..6), params in any_params(),
        prompt in vec(0u32..8, 0..4), generated in vec(0u32..8, 0..6),
    ) {
        let params = SamplingParams { logit_bias: biases.clone(), ..params };
        let mut sampler = sampler(params, 8);
        sampler.observe_prompt(&prompt);
        generated.iter().for_each(|&token| sampler.accept(token));
        let draw = sampler.next_draw();
        let adjusted: BTreeSet<u32> = draw.adjustments.iter().map(|adjustment| adjustment.token).collect();
        prop_assert_eq!(adjusted.len(), draw.adjustments.len());
        let biased = biases.iter().map(|&(token, _)| token);
        prop_assert_eq!(adjusted, biased.chain(prompt).chain(generated).collect());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Tests the filters alone and combined: each filter is off in about half of the cases.
    #[test]
    fn filters_keep_the_tokens_of_their_definitions(
        row in flat_row(), temperature in 1.0f32..3.0, top_k in prop_oneof![Just(0), 1usize..9],
        top_p in prop_oneof![Just(1.0), 0.0f32..1.0], min_p in prop_oneof![Just(0.0), 0.0f32..=1.0],
        seed: u64,
    ) {
        let mut kept = ranked(&row, temperature);
        if top_k > 0 {
            kept.truncate(top_k);
        }
        let mass = |n: usize| kept[..n].iter().map(|(_, p)| p).sum::<f64>();
        let nucleus = (1..kept.len()).find(|&n| mass(n) >= f64::from(top_p) * mass(kept.len()));
        kept.truncate(nucleus.unwrap_or(kept.len()));
        let least = f64::from(min_p) * kept[0].1;
        kept.retain(|&(_, p)| p >= least);

        let params = SamplingParams { seed, ..filters(temperature, top_k, top_p, min_p) };
        let drawn: BTreeSet<u32> = draws(params, &row, 1500).into_iter().collect();
        prop_assert_eq!(drawn, kept.iter().map(|&(token, _)| token).collect());
    }
}

#[test]
fn zeros_of_either_sign_tie() {
    assert_eq!(draws(filters(1.0, 1, 1.0, 0.0), &[-0.0, 0.0], 1), [0]);
    assert_eq!(draws(SamplingParams::default(), &[-0.0, 0.0], 1), [0]);
}

#[test]
fn frequencies_match_the_softmax() {
    let row = [1.0, -0.5, 0.25, 2.0, 0.0];
    let params = SamplingParams { seed: 7, ..filters(0.7, 0, 1.0, 0.0) };
    let drawn = draws(params, &row, 100_000);
    let chi_square: f64 = ranked(&row, 0.7)
        .iter()
        .map(|&(token, p)| {
            let expected = p * 100_000.0;
            let observed = drawn.iter().filter(|&&t| t == token).count() as f64;
            (observed - expected).powi(2) / expected
        })
        .sum();
    // The 99.9 % quantile of chi-square with 4 degrees of freedom.
    assert!(chi_square < 18.47, "chi-square is {chi_square}");
}

#[test]
fn large_nucleus_is_exact() {
    let row: Vec<f32> = (0..4096).map(|i| (i * 1597 % 4096) as f32 / 8192.0).collect();
    let mut mass = 0.0;
    let mut kept: Vec<u32> = vec![];
    for (token, p) in ranked(&row, 1.0) {
        if mass < f64::from(0.5f32) {
            kept.push(token);
        }
        mass += p;
    }
    let drawn = draws(filters(1.0, 0, 0.5, 0.0), &row, 1000);
    assert!(drawn.iter().all(|token| kept.contains(token)));
    assert!(drawn.iter().any(|token| kept[kept.len() - 128..].contains(token)));
}

#[test]
fn thresholds_are_inclusive_and_infinite_logits_are_equal() {
    let with = |top_p, min_p| filters(1.0, 0, top_p, min_p);
    let drawn = |params, row: &[f32]| BTreeSet::from_iter(draws(params, row, 100));
    assert_eq!(drawn(with(0.5, 0.0), &[0.0; 4]), [0, 1].into());
    assert_eq!(drawn(with(1.0, 1.0), &[1.0, 0.0, 1.0]), [0, 2].into());
    assert_eq!(drawn(with(0.0, 0.0), &[0.0, 1.0, 1.0]), [1].into());
    assert_eq!(drawn(with(1.0, 0.0), &[9.0, INF, INF]), [1, 2].into());
}

proptest! {
    /// A draw depends on the seed, the position and the tokens so far, but not on the sampler that drew those tokens.
    #[test]
    fn draws_do_not_depend_on_where_earlier_tokens_were_drawn(row in exact_row(), params in any_params(), count in 1usize..12) {
        let tokens = draws(params.clone(), &row, count);
        for (position, &token) in tokens.iter().enumerate() {
            let mut fresh = Text { position, ..Text::new(params.clone(), row.len()) };
            tokens[..position].iter().for_each(|&token| fresh.sampler.accept(token));
            prop_assert_eq!(fresh.draw(&mut row.clone()), Some(token));
        }
    }
}

/// The expected tokens come from a separate Python implementation of Threefry and the filters.
#[test]
fn draws_equal_the_python_implementation() {
    let row: Vec<f32> = (0..1000).map(|i| (i * 37 % 101) as f32 / 16.0).collect();
    let with = |top_k, top_p, min_p, seed| SamplingParams { seed, ..filters(2.0, top_k, top_p, min_p) };
    assert_eq!(draws(with(0, 1.0, 0.0, 42), &row, 6), [868, 150, 523, 251, 625, 262]);
    assert_eq!(draws(with(40, 1.0, 0.0, 42), &row, 6), [868, 161, 524, 232, 625, 262]);
    assert_eq!(draws(with(0, 0.9, 0.0, 42), &row, 6), [868, 150, 523, 250, 625, 262]);
    assert_eq!(draws(with(0, 1.0, 0.5, 42), &row, 6), [868, 155, 524, 251, 630, 262]);
    assert_eq!(draws(with(300, 0.8, 0.5, 42), &row, 6), [868, 150, 521, 248, 622, 259]);
    assert_eq!(draws(with(0, 1.0, 0.0, 43), &row, 6), [536, 65, 436, 813, 40, 337]);
}

/// Rows that contain NaN or +∞, beside finite logits or without, and rows of −∞ alone.
#[test]
fn rows_without_a_finite_logit_have_a_documented_result() {
    for temperature in [0.0, 1.0] {
        let params = filters(temperature, 0, 1.0, 0.0);
        for mut nan in [[f32::NAN; 3], [f32::NAN, -INF, -INF], [0.0, f32::NAN, INF]] {
            assert_eq!(Text::new(params.clone(), 3).draw(&mut nan), None);
        }
        assert_eq!(draws(params.clone(), &[-INF; 3], 9), [0; 9]);
        assert_eq!(draws(params.clone(), &[0.0, -INF, INF], 9), [2; 9]);
        // If every logit is −∞, the lowest allowed token is drawn.
        let draw = Draw { sampling: params.sampling, allowed: Some(&[0b110]), ..Draw::GREEDY };
        let drawn = HostDraw::default().draw(&mut [5.0, -INF, -INF], 0, &draw).expect("no NaN");
        assert_eq!(drawn.id, 1);
    }
}

#[test]
fn bias_is_applied_before_penalties() {
    let biased = |logit_bias| SamplingParams { repetition_penalty: 2.0, logit_bias, ..Default::default() };
    let row = [1.0, 2.0, 3.0];
    assert_eq!(draws(biased(vec![(2, -INF)]), &row, 1), [1]);
    assert_eq!(draws(biased(vec![(0, 1.5), (0, 1.0)]), &row, 1), [0]);

    let mut text = Text::new(biased(vec![(0, 4.0)]), 1);
    text.sampler.observe_prompt(&[0]);
    let mut row = [-2.0];
    text.draw(&mut row);
    assert_eq!(row, [1.0], "(-2 + 4) / 2, and not -2 * 2 + 4");
}

/// Only without penalties can a step be submitted before the tokens of earlier steps are known.
#[test]
fn only_penalties_depend_on_earlier_tokens() {
    let alone = SamplingParams { logit_bias: vec![(1, 2.0)], seed: 3, ..filters(1.0, 5, 0.9, 0.1) };
    assert!(!sampler(alone.clone(), 10).depends_on_tokens());
    for penalised in [
        SamplingParams { repetition_penalty: 1.1, ..alone.clone() },
        SamplingParams { presence_penalty: -0.5, ..alone.clone() },
        SamplingParams { frequency_penalty: 0.5, ..alone },
    ] {
        assert!(sampler(penalised, 10).depends_on_tokens());
    }
}

#[test]
#[should_panic(expected = "prompt token 3 is outside the vocabulary of 3")]
fn prompt_tokens_outside_the_vocabulary_are_refused() {
    sampler(SamplingParams::default(), 3).observe_prompt(&[3]);
}

#[test]
fn refused_parameters_are_in_the_error() {
    type Edit = fn(&mut SamplingParams);
    let below_vocab = "but must name tokens below the vocabulary of 10";
    #[rustfmt::skip]
    let cases: [(Edit, &str, &str); 13] = [
        (|p| p.sampling.temperature = -0.5, "temperature is -0.5", "but must be finite and at least 0"),
        (|p| p.sampling.temperature = f32::NAN, "temperature is NaN", "but must be finite and at least 0"),
        (|p| p.sampling.temperature = INF, "temperature is inf", "but must be finite and at least 0"),
        (|p| p.sampling.top_p = 1.5, "top_p is 1.5", "but must be from 0 to 1"),
        (|p| p.sampling.top_p = f32::NAN, "top_p is NaN", "but must be from 0 to 1"),
        (|p| p.sampling.min_p = -0.1, "min_p is -0.1", "but must be from 0 to 1"),
        (|p| p.repetition_penalty = 0.0, "repetition_penalty is 0", "but must be finite and above 0"),
        (|p| p.repetition_penalty = INF, "repetition_penalty is inf", "but must be finite and above 0"),
        (|p| p.presence_penalty = f32::NAN, "presence_penalty is NaN", "but must be finite"),
        (|p| p.frequency_penalty = INF, "frequency_penalty is inf", "but must be finite"),
        (|p| p.logit_bias = vec![(9, 1.0), (10, 1.0)], "logit_bias names token 10", below_vocab),
        (|p| p.logit_bias = vec![(1, f32::NAN)], "logit_bias of token 1 is NaN", "but must be finite or -inf"),
        (|p| p.logit_bias = vec![(1, INF)], "logit_bias of token 1 is inf", "but must be finite or -inf"),
    ];
    for (edit, value, range) in cases {
        let mut params = SamplingParams::default();
        edit(&mut params);
        let error: SamplingError = Sampler::new(params, 10).expect_err("out of range");
        assert_eq!(error.to_string(), format!("{value}, {range}"));
    }
}

/// Streams `pieces` through `stop_strings`: the text shown, and the reason to stop.
fn stream(stop_strings: &[String], pieces: &[&str]) -> (String, Option<FinishReason>) {
    let mut stop = StopCondition::new(vec![], stop_strings.to_vec()).expect("none is empty");
    let mut shown = String::new();
    let mut seen = String::new();
    for piece in pieces {
        let (text, reason) = stop.push(0, piece);
        shown += &text;
        seen += piece;
        if reason.is_some() {
            assert_eq!(stop.finish(), "", "nothing is held after a stop");
            return (shown, reason);
        }
        let held = seen.strip_prefix(&shown).expect("shown text is a prefix of the text");
        let undecided = stop_strings.iter().any(|s| s != held && s.starts_with(held));
        assert!(held.is_empty() || undecided, "{held:?} is held back, but begins no stop string");
    }
    (shown + &stop.finish(), None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn stop_strings_equal_naive_search_for_any_split(
        text in "[abé]{0,16}", stops in vec("[abé]{1,5}", 0..4), cuts in vec(any::<bool>(), 16),
    ) {
        // Of all matches, the one that ends first; if several end there, the one that starts first.
        let found = stops.iter().filter_map(|s| text.find(s).map(|i| (i + s.len(), i, s)));
        let expected = match found.min() {
            Some((_, start, s)) => (text[..start].into(), Some(FinishReason::StopString(s.clone()))),
            None => (text.clone(), None),
        };
        let mut pieces = vec![];
        let mut start = 0;
        for ((i, _), cut) in text.char_indices().zip(cuts) {
            if cut {
                pieces.push(&text[start..i]);
                start = i;
            }
        }
        pieces.push(&text[start..]);
        prop_assert_eq!(&stream(&stops, &pieces), &expected);
        prop_assert_eq!(&stream(&stops, &[&text]), &expected);
    }
}

#[test]
fn text_is_held_back_only_while_a_stop_string_may_follow() {
    let mut stop = StopCondition::new(vec![], vec!["\n\nUser:".into()]).expect("not empty");
    assert_eq!(stop.push(1, "Hi.\n"), ("Hi.".into(), None));
    assert_eq!(stop.push(2, "\nUse"), ("".into(), None));
    assert_eq!(stop.push(3, "ful"), ("\n\nUseful".into(), None));
    assert_eq!(stop.push(4, "\n\nUser"), ("".into(), None));
    let reason = FinishReason::StopString("\n\nUser:".into());
    assert_eq!(stop.push(5, ": more"), ("".into(), Some(reason)));
}

#[test]
fn the_first_complete_stop_string_wins() {
    let stops = ["bc".to_string(), "abcd".to_string()];
    let reason = FinishReason::StopString("bc".into());
    assert_eq!(stream(&stops, &["xab", "cd"]), ("xa".into(), Some(reason)));
    let stops = ["cd".to_string(), "abcd".to_string()];
    let reason = FinishReason::StopString("abcd".into());
    assert_eq!(stream(&stops, &["xab", "cd"]), ("x".into(), Some(reason)));
}

#[test]
fn a_stop_token_releases_held_text_but_not_its_own() {
    let mut stop = StopCondition::new(vec![7], vec!["END".into()]).expect("not empty");
    assert_eq!(stop.push(1, "the EN"), ("the ".into(), None));
    assert_eq!(stop.push(7, "D"), ("EN".into(), Some(FinishReason::Stop)));
    assert_eq!(stop.finish(), "");
}

#[test]
fn an_empty_stop_string_is_refused() {
    let error = StopCondition::new(vec![], vec!["a".into(), String::new()]).expect_err("empty");
    assert_eq!(error.to_string(), "stop string 1 is empty, but must hold at least one character");
}
