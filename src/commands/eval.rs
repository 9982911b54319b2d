//! `gptoss eval`: scores a model's answers to questions held out from the embedded model's training.
//!
//! Kernels, caches and quantizations may change logits; the scores show whether answers get worse.

mod score;
mod suite;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use phase1_loading::Tokenizer;
use phase2_forward::{Engine, Want};
use phase3_kvcache::{FinishReason, GenerationParams, prefill, prefill_chunk};
use serde_json::json;

use crate::answer::{self, Event, Turn};
use crate::args::Eval;
use crate::commands::print;
use crate::model::{self, LoadedModel, SEQUENCE};
use score::Score;
use suite::{Expected, Question};

/// Enough tokens for the longest answer, including reasoning.
const MAX_TOKENS: usize = 256;

pub fn run(args: &Eval) -> Result<ExitCode> {
    let questions = select(args)?;
    let checkpoint = model::open_with(&args.model, &args.engine)?;
    let (mut loaded, tokenizer) = LoadedModel::start_with_tokenizer(&checkpoint, &args.engine)?;
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}").expect("the template is constant");
    let bar = ProgressBar::new(questions.len() as u64).with_style(style);
    let mut scores: BTreeMap<&str, Score> = BTreeMap::new();
    for question in &questions {
        bar.set_message(question.suite.clone());
        let score = scores.entry(&question.suite).or_default();
        match &question.completion {
            Some(completion) => {
                let (loss, tokens) = loss(&mut *loaded.engine, &tokenizer, &question.prompt, completion)?;
                score.count_loss(loss, tokens);
            }
            None => ask(args, &mut loaded, &tokenizer, question, score)?,
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = if args.json {
        let suites: BTreeMap<&str, _> = scores.iter().map(|(suite, score)| (*suite, score.to_json())).collect();
        let (device, kind) = (&loaded.device.name, loaded.kind);
        let report = json!({ "suites": suites, "device": device, "engine": kind.name(), "phase": kind.phase() });
        format!("{report:#}\n")
    } else {
        score::table(&scores)
    };
    print(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn select(args: &Eval) -> Result<Vec<Question>> {
    let all = suite::held_out();
    let names: Vec<&str> = {
        let mut names: Vec<&str> = all.iter().map(|question| question.suite.as_str()).collect();
        names.dedup();
        names
    };
    if let Some(unknown) = args.suite.iter().find(|suite| !names.contains(&suite.as_str())) {
        bail!("no suite is called `{unknown}`; there are {}", names.join(", "));
    }
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    let wanted = |question: &Question| {
        let count = taken.entry(question.suite.clone()).or_default();
        *count += 1;
        *count <= args.limit && (args.suite.is_empty() || args.suite.contains(&question.suite))
    };
    Ok(all.into_iter().filter(wanted).collect())
}

fn ask(
    args: &Eval,
    loaded: &mut LoadedModel,
    tokenizer: &Tokenizer,
    question: &Question,
    score: &mut Score,
) -> Result<()> {
    let params = GenerationParams {
        max_tokens: MAX_TOKENS,
        stop_tokens: tokenizer.stops().to_vec(),
        ..GenerationParams::default()
    };
    let prompt = tokenizer.encode_with_control(&question.prompt);
    let mut ignore = |_: Event<'_>| ControlFlow::Continue(());
    let harmony = answer::harmony(tokenizer)?;
    let (turn, generated) = answer::answer(&mut *loaded.engine, &harmony, &[], &[], &prompt, &params, &mut ignore)?;
    loaded.engine.release(SEQUENCE);
    let right = question.expected.met_by(&turn);
    let valid = turn.warnings.is_empty() && generated.finish == FinishReason::Stop;
    score.count_answer(right, valid, matches!(question.expected, Expected::Call { .. }).then(|| is_json(&turn)));
    if args.wrong && !right {
        let asked = question.prompt.rsplit("<|start|>user<|message|>").next().unwrap_or_default();
        eprintln!("{}: {asked}\n  expected {:?}\n  found {:?}\n", question.suite, question.expected, generated.text);
    }
    Ok(())
}

fn is_json(turn: &Turn) -> bool {
    turn.call().is_some_and(|call| suite::arguments(call).is_some())
}

/// The negative log likelihood of a completion: the sum of −ln p over its tokens, and their number.
fn loss(engine: &mut dyn Engine, tokenizer: &Tokenizer, prompt: &str, completion: &str) -> Result<(f64, usize)> {
    let prompt = tokenizer.encode_with_control(prompt);
    let completion = tokenizer.encode_with_control(completion);
    let (body, last) = prompt.split_at(prompt.len() - 1);
    prefill(engine, SEQUENCE, body, Want::Nothing)?;
    let tokens = [last, &completion[..completion.len() - 1]].concat();
    let mut logits = Vec::new();
    for tokens in tokens.chunks(prefill_chunk(engine)) {
        logits.extend(engine.all_logits(SEQUENCE, tokens)?);
    }
    engine.release(SEQUENCE);
    let loss = logits.chunks_exact(engine.config().vocab).zip(&completion).map(|(row, &token)| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        total.ln() - f64::from(row[token as usize] - max)
    });
    Ok((loss.sum(), completion.len()))
}
