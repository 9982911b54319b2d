//! All measurements of an engine, including its start.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use phase2_forward::{Draw, Engine, Want, sample_tokens};
use phase3_kvcache::prefill;
use phase4_profiling::process;
use serde_json::{Value, json};

use super::agreement::Computed;
use crate::args::{Bench, Compare, DrawKind, EngineKind};
use crate::commands::bench;
use crate::model::{self, LoadedModel, SEQUENCE};

/// Seed of the tokens of the first prompts.
const SEED: usize = 1;

/// The measurements: one sequence at every depth, and several at depth 0.
pub fn benches(args: &Compare, model: &Path) -> [Bench; 2] {
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

/// Starts an engine and makes all its measurements. The results that are compared with the reference are passed to `keep` before speeds and
/// memory are measured, so that they are not in the process's memory during these measurements.
pub fn measured(
    args: &Compare,
    model: &Path,
    kind: EngineKind,
    keep: &mut dyn FnMut(Computed) -> Result<()>,
) -> Result<Value> {
    let [single, many] = benches(args, model);
    let engine_args = bench::engine_args(&single, kind, None);
    process::take_peak_resident_bytes();
    let start = Instant::now();
    let checkpoint = model::open_with(model, &engine_args)?;
    let mut loaded = LoadedModel::start(&checkpoint, &engine_args)?;
    let start_ms = milliseconds(start);
    let first = first_token_ms(&mut *loaded.engine, 1)?;
    let mut first_tokens = vec![json!({ "prompt": 1, "ms": first })];
    for &prompt in &args.prompt {
        first_tokens.push(json!({ "prompt": prompt, "ms": first_token_ms(&mut *loaded.engine, prompt)? }));
    }
    keep(Computed::by(args, &mut *loaded.engine)?)?;
    let mut report = bench::measured(&single, &checkpoint, &engine_args, &mut loaded)?;
    let device_reason = loaded.device.reason.clone();
    // Several sequences are measured on a new engine, because with a larger cache llama.cpp would decode a single sequence more slowly.
    drop(loaded);
    let engine_args = bench::engine_args(&many, kind, None);
    let more = bench::measured(&many, &checkpoint, &engine_args, &mut LoadedModel::start(&checkpoint, &engine_args)?)?;
    if let (Some(results), Some(more)) = (report["results"].as_array_mut(), more["results"].as_array()) {
        results.extend(more.iter().cloned());
    }
    let peak = [&report, &more].iter().filter_map(|report| report["peak_rss_bytes"].as_u64()).max();
    report["peak_rss_bytes"] = json!(peak);
    report["start_ms"] = json!(start_ms);
    report["start_to_first_token_ms"] = json!(start_ms + first);
    report["first_tokens"] = json!(first_tokens);
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
