//! `gptoss compare`: the same work on every engine, in turns, with one record per model.

mod agreement;
mod record;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use peers::Installation;
use phase2_forward::{Draw, Engine, Want, sample_tokens};
use phase3_kvcache::prefill;
use phase4_profiling::process;
use serde_json::{Value, json};

use crate::args::{Bench, Compare, DrawKind, EngineKind};
use crate::commands::bench;
use crate::commands::print;
use crate::peer;
use crate::session::{self, SEQUENCE, Session};
use agreement::References;

/// Seed of the tokens of the first prompts.
const SEED: usize = 1;

pub fn run(args: &Compare) -> Result<ExitCode> {
    let (engines, skipped) = engines(args)?;
    for model in &args.model {
        let checkpoint = session::open(model)?;
        let context = checkpoint.config.context_length;
        for bench in benches(args, model) {
            let longest = bench.depth.iter().map(|&depth| bench::longest(&bench, depth)).max().unwrap_or(0);
            if longest > context {
                bail!("{}: sequences reach {longest} tokens; the model's context holds {context}", model.display());
            }
        }
        let references = References::compute(args, model, &engines)?;
        let mut runs = Vec::new();
        for turn in 0..args.turns {
            let order: Vec<EngineKind> = match turn % 2 {
                0 => engines.clone(),
                _ => engines.iter().rev().copied().collect(),
            };
            for kind in order {
                eprintln!("{}, turn {} of {}: {}", model.display(), turn + 1, args.turns, kind.title());
                let mut found = one(args, model, kind, &references).unwrap_or_else(|error| {
                    eprintln!("{}: {error:#}", kind.title());
                    json!({ "engine": kind.name(), "error": format!("{error:#}") })
                });
                found["turn"] = json!(turn + 1);
                runs.push(found);
            }
        }
        let failed = runs.iter().all(|run| run["error"].is_string());
        let record = record::new(args, model, &checkpoint, &skipped, runs);
        let path = record::write(&args.out, model, &record)?;
        print(&table(&record))?;
        eprintln!("wrote {}", path.display());
        if failed {
            bail!("no engine ran");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The requested engines, or all that are available, and the reasons why others are left out.
fn engines(args: &Compare) -> Result<(Vec<EngineKind>, Vec<Value>)> {
    if !args.engine.is_empty() {
        return Ok((args.engine.clone(), Vec::new()));
    }
    let (mut found, mut skipped) = (vec![EngineKind::Cached, EngineKind::Flash], Vec::new());
    let folder = peer::folder()?;
    for kind in [EngineKind::Mlx, EngineKind::LlamaCpp] {
        match kind.peer().map(|peer| Installation::find(peer, &folder)) {
            Some(Err(error)) => {
                eprintln!("skipped: {error}");
                skipped.push(json!({ "engine": kind.name(), "reason": error.to_string() }));
            }
            _ => found.push(kind),
        }
    }
    Ok((found, skipped))
}

/// The measurements: one sequence at every depth, and several at depth 0.
fn benches(args: &Compare, model: &Path) -> [Bench; 2] {
    let bench = |depth: &[usize], batch: usize, prompt: &[usize]| Bench {
        model: model.to_owned(),
        engine: Vec::new(),
        phase: Vec::new(),
        device: args.device,
        prompt: prompt.to_vec(),
        depth: depth.to_vec(),
        generate: args.generate,
        batch: vec![batch],
        repeat: args.repeat,
        kv: Vec::new(),
        draw: DrawKind::Greedy,
        stepwise: false,
        mixed: false,
        fast: args.fast.clone(),
        json: true,
    };
    [bench(&args.depth, 1, &args.prompt), bench(&[0], args.sequences, &[])]
}

/// Starts an engine and does all its measurements.
fn one(args: &Compare, model: &Path, kind: EngineKind, references: &References) -> Result<Value> {
    let [single, many] = benches(args, model);
    let engine_args = bench::engine_args(&single, kind, None);
    process::take_peak_resident_bytes();
    let start = Instant::now();
    let checkpoint = session::open_with(model, &engine_args)?;
    let mut session = Session::start(&checkpoint, &engine_args)?;
    let start_ms = milliseconds(start);
    let first = first_token_ms(&mut *session.engine, 1)?;
    let mut first_tokens = vec![json!({ "prompt": 1, "ms": first })];
    for &prompt in &args.prompt {
        first_tokens.push(json!({ "prompt": prompt, "ms": first_token_ms(&mut *session.engine, prompt)? }));
    }
    let agreement = references.agreement(args, &mut *session.engine)?;
    let mut report = bench::measured(&single, &checkpoint, &engine_args, &mut session)?;
    let device_reason = session.device.reason.clone();
    // Several sequences run in a separate engine: the cache for them would slow llama.cpp down with one.
    drop(session);
    let engine_args = bench::engine_args(&many, kind, None);
    let more = bench::measured(&many, &checkpoint, &engine_args, &mut Session::start(&checkpoint, &engine_args)?)?;
    if let (Some(results), Some(more)) = (report["results"].as_array_mut(), more["results"].as_array()) {
        results.extend(more.iter().cloned());
    }
    let peak = [&report, &more].iter().filter_map(|report| report["peak_rss_bytes"].as_u64()).max();
    report["peak_rss_bytes"] = json!(peak);
    report["start_ms"] = json!(start_ms);
    report["start_to_first_token_ms"] = json!(start_ms + first);
    report["first_tokens"] = json!(first_tokens);
    report["agreement"] = agreement;
    report["rope"] = json!(checkpoint.config.rope.ramp.name());
    report["device_reason"] = json!(device_reason);
    Ok(report)
}

/// Milliseconds until the first token after a prompt is drawn.
fn first_token_ms(engine: &mut dyn Engine, prompt: usize) -> Result<f64> {
    let tokens = sample_tokens(SEED, prompt, engine.config().vocab);
    let start = Instant::now();
    prefill(engine, SEQUENCE, &tokens, Want::Token(Draw::GREEDY))?;
    let ms = milliseconds(start);
    engine.release(SEQUENCE);
    Ok(ms)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A record as text: one line per run and measurement.
fn table(record: &Value) -> String {
    let mut text = String::new();
    let mut line = |columns: [&str; 7]| {
        let [engine, turn, what, tokens, depth, batch, figure] = columns;
        text += &format!("{engine:10} {turn:>4} {what:8} {tokens:>6} {depth:>6} {batch:>5} {figure:>14}\n");
    };
    line(["engine", "turn", "what", "tokens", "depth", "batch", ""]);
    let number = |value: &Value| value.as_u64().map_or(String::new(), |number| number.to_string());
    let ms = |value: &Value| value.as_f64().map_or("–".into(), |ms| format!("{ms:.0} ms"));
    for run in record["runs"].as_array().into_iter().flatten() {
        let (engine, turn) = (run["engine"].as_str().unwrap_or_default(), number(&run["turn"]));
        if run["error"].is_string() {
            line([engine, &turn, "failed", "", "", "", ""]);
            continue;
        }
        line([engine, &turn, "start", "", "", "", &ms(&run["start_ms"])]);
        for first in run["first_tokens"].as_array().into_iter().flatten() {
            line([engine, &turn, "first", &number(&first["prompt"]), "", "", &ms(&first["ms"])]);
        }
        for result in run["results"].as_array().into_iter().flatten() {
            let [tokens, depth, batch] = ["tokens", "depth", "batch"].map(|name| number(&result[name]));
            let speed = format!("{:.2} tok/s", result["tok_s"].as_f64().unwrap_or(f64::NAN));
            let what = result["what"].as_str().unwrap_or_default();
            line([engine, &turn, what, &tokens, &depth, &batch, &speed]);
        }
    }
    text
}
