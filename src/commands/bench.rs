//! `gptoss bench`: speeds of the engines, on random tokens.

mod measure;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use phase1_loading::Checkpoint;
use phase3_kvcache::CacheType;
use phase4_profiling::{Observed, ceiling, process};
use serde_json::{Value, json};

use crate::args::{Bench, EngineArgs, EngineKind, FastArgs};
use crate::commands::{print, size};
use crate::session::{self, Session};
use measure::{Costs, Measure};

pub fn run(args: &Bench) -> Result<ExitCode> {
    let checkpoint = session::open(&args.model)?;
    let context = checkpoint.config.context_length;
    for &depth in &args.depth {
        let longest = measure::longest(args, depth);
        if longest > context {
            bail!("depth {depth} and {} runs reach {longest} tokens; the model's context holds {context}", args.repeat);
        }
    }
    let mut engines = Vec::new();
    for &kind in args.engines() {
        // Phase 2 has no cache.
        let all: Vec<Option<CacheType>> = args.kv.iter().map(|&kv| Some(kv)).collect();
        let caches = if kind == EngineKind::Reference || all.is_empty() { &[None][..] } else { &all };
        for &kv in caches {
            engines.push(one(args, &checkpoint, kind, kv)?);
        }
    }
    let report = if args.json { format!("{:#}\n", Value::from(engines)) } else { table(&engines) };
    print(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// Everything about one engine.
fn one(args: &Bench, checkpoint: &Checkpoint, kind: EngineKind, kv: Option<CacheType>) -> Result<Value> {
    process::take_peak_resident_bytes();
    let start = Instant::now();
    // Earlier phases have none of these choices.
    let fast = if kind == EngineKind::Flash { args.fast.clone() } else { FastArgs::default() };
    let engine_args = EngineArgs { engine: Some(kind), phase: None, device: args.device, rope: None, kv, fast };
    let mut session = Session::start(checkpoint, &engine_args)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let ceiling = ceiling(&session.device)?;
    let costs = session.costs(checkpoint);
    let greedy = match session::shortlist_bytes(checkpoint, &session.device, &engine_args) {
        Some(shortlist) => costs.clone().with_head_bytes(shortlist),
        None => costs.clone(),
    };
    let mut measure = Measure::new(args, &mut *session.engine, Costs { logits: costs, greedy }, &ceiling)?;
    let phase = kind.phase();
    let mut results = Vec::new();
    for &depth in &args.depth {
        let place = || format!("phase {phase}, depth {depth}");
        for &batch in &args.batch {
            results.extend(measure.at(depth, batch).with_context(place)?);
        }
        if args.mixed {
            results.push(measure.mixed(depth).with_context(place)?);
        }
    }
    let memory = Observed::now(&session.device.burn);
    Ok(json!({
        "engine": kind.name(),
        "phase": phase,
        "kv": (phase > 2).then(|| session.cache.name()),
        "device": session.device.name,
        "load_ms": load_ms,
        "ceiling": ceiling,
        "results": results,
        "peak_rss_bytes": process::take_peak_resident_bytes().or(memory.peak_resident),
        "anonymous_bytes": memory.anonymous,
        "device_bytes": memory.device_reserved,
    }))
}

fn table(engines: &[Value]) -> String {
    let mut text = format!(
        "{:5} {:4} {:7} {:>6} {:>6} {:>5} {:>9} {:>19} {:>9} {:>6} {:>11}\n",
        "phase", "kv", "what", "tokens", "depth", "batch", "tok/s", "from – to", "ms/token", "GB/s", "of roofline"
    );
    for engine in engines {
        let (phase, kv) = (engine["phase"].as_u64().unwrap_or_default(), engine["kv"].as_str().unwrap_or("–"));
        for result in engine["results"].as_array().into_iter().flatten() {
            let number = |name: &str| result[name].as_f64().unwrap_or(f64::NAN);
            let spread = format!("{:.2} – {:.2}", number("tok_s_min"), number("tok_s_max"));
            text += &format!(
                "{phase:<5} {kv:4} {:7} {:>6} {:>6} {:>5} {:>9.2} {spread:>19} {:>9.2} {:>6.1} {:>9.1} %\n",
                result["what"].as_str().unwrap_or_default(),
                number("tokens"),
                number("depth"),
                number("batch"),
                number("tok_s"),
                number("ms_per_token"),
                number("gb_s"),
                100.0 * number("roofline"),
            );
            if let Some(ratio) = result["ratio"].as_f64() {
                let (mixed, alone) = (number("mixed_ms"), number("alone_ms"));
                text += &format!("{:10} {mixed:.1} ms a step, {ratio:.3} × the prompt alone in {alone:.1} ms\n", "");
            }
        }
        let bytes = |name: &str| engine[name].as_u64().map_or("–".into(), size);
        text += &format!(
            "phase {phase}, {kv}: loaded in {:.2} s; {} resident at most, {} of its own; {} on the device\n",
            engine["load_ms"].as_f64().unwrap_or_default() / 1e3,
            bytes("peak_rss_bytes"),
            bytes("anonymous_bytes"),
            bytes("device_bytes"),
        );
    }
    text
}
