//! `gptoss bench`: speeds of the engines, on random tokens.

mod measure;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use phase1_loading::Checkpoint;
use phase3_kvcache::{CacheType, PREFILL_CHUNK};
use phase4_profiling::{Observed, ceiling, process};
use phase5_flash::cpu::Isa;
use serde_json::{Value, json};

use crate::args::{Bench, CacheSize, EngineArgs, EngineKind, FastArgs};
use crate::commands::{print, record, size};
use crate::model::{self, LoadedModel};
use measure::{Costs, Measure};

pub use measure::{longest, median};

/// The format name by which the notebooks recognize records.
const FORMAT: &str = "gptoss bench 1";

pub fn run(args: &Bench) -> Result<ExitCode> {
    let context = model::open(&args.model)?.config.context_length;
    for &depth in &args.depth {
        let longest = measure::longest(args, depth);
        if longest > context {
            bail!("depth {depth} and {} runs reach {longest} tokens; the model's context holds {context}", args.repeat);
        }
    }
    let mut engines = Vec::new();
    for &kind in args.engines() {
        // Phase 2 has no cache, and a peer chooses the type of its own.
        let all: Vec<Option<CacheType>> = args.kv.iter().map(|&kv| Some(kv)).collect();
        let has_no_choice = kind == EngineKind::Reference || kind.peer().is_some();
        let caches = if has_no_choice || all.is_empty() { &[None][..] } else { &all };
        for &kv in caches {
            engines.push(one(args, kind, kv)?);
        }
    }
    let report = if args.json { format!("{:#}\n", Value::from(engines)) } else { table(&engines) };
    print(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// All measurements of one engine.
fn one(args: &Bench, kind: EngineKind, kv: Option<CacheType>) -> Result<Value> {
    let engine_args = engine_args(args, kind, kv);
    let checkpoint = model::open_with(&args.model, &engine_args)?;
    process::take_peak_resident_bytes();
    let start = Instant::now();
    let mut loaded = LoadedModel::start(&checkpoint, &engine_args)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut report = measured(args, &checkpoint, &engine_args, &mut loaded)?;
    report["load_ms"] = json!(load_ms);
    report["start"] = loaded.times.to_json();
    report["format"] = json!(FORMAT);
    for (name, value) in record::origin(std::slice::from_ref(&args.model)) {
        report[name] = value;
    }
    report["model"] = record::model(&args.model, &checkpoint);
    Ok(report)
}

/// The flags with which a benchmark starts an engine.
pub fn engine_args(args: &Bench, kind: EngineKind, kv: Option<CacheType>) -> EngineArgs {
    let FastArgs { exact, threads, .. } = args.fast;
    // Earlier phases have none of these options, and peers only some.
    let fast = match kind {
        EngineKind::Flash => args.fast.clone(),
        EngineKind::Mlx => FastArgs { exact, ..FastArgs::default() },
        EngineKind::LlamaCpp => FastArgs { exact, threads, ..FastArgs::default() },
        EngineKind::Reference | EngineKind::Cached => FastArgs::default(),
    };
    EngineArgs {
        engine: Some(kind),
        phase: None,
        device: args.device,
        rope: None,
        kv,
        fast,
        cache_size: cache_size(args),
    }
}

/// The size of a cache for all sequences of a measurement and a copy of one of them.
fn cache_size(args: &Bench) -> Option<CacheSize> {
    // The mixed measurement has sixteen sequences and a prompt.
    let mixed = if args.mixed { 17 } else { 0 };
    let sequences = args.batch.iter().copied().max()?.saturating_add(1).max(mixed);
    let longest = args.depth.iter().map(|&depth| measure::longest(args, depth).saturating_add(mixed)).max()?;
    Some(CacheSize { tokens: sequences.saturating_mul(longest.max(PREFILL_CHUNK)), sequences })
}

/// The speeds of a started engine.
pub fn measured(
    args: &Bench,
    checkpoint: &Checkpoint,
    engine_args: &EngineArgs,
    loaded: &mut LoadedModel,
) -> Result<Value> {
    let kind = loaded.kind;
    let ceiling = ceiling(&loaded.device)?;
    let costs = loaded.costs(checkpoint);
    let greedy = match model::shortlist_bytes(checkpoint, &loaded.device, engine_args) {
        Some(shortlist) => costs.clone().with_head_bytes(shortlist),
        None => costs.clone(),
    };
    let mut measure = Measure::new(args, &mut *loaded.engine, Costs { logits: costs, greedy }, &ceiling)?;
    let mut results = Vec::new();
    for &depth in &args.depth {
        let place = || format!("{}, depth {depth}", kind.title());
        for &batch in &args.batch {
            results.extend(measure.at(depth, batch).with_context(place)?);
        }
        if args.mixed {
            results.push(measure.mixed(depth).with_context(place)?);
        }
    }
    let memory = Observed::now(&loaded.device.burn);
    // A peer runs in another process, whose memory `Observed` does not include.
    let is_ours = kind.peer().is_none();
    let peak = loaded.engine.take_peak_resident_bytes().or(memory.peak_resident.filter(|_| is_ours));
    let device_bytes = if is_ours { memory.device_reserved } else { loaded.engine.peak_device_bytes() };
    let is_flash_on_cpu = kind == EngineKind::Flash && loaded.device.is_cpu();
    let on_cpu = engine_args.on_cpu();
    let threads = (is_flash_on_cpu || kind == EngineKind::LlamaCpp).then(|| on_cpu.thread_count());
    let isa = is_flash_on_cpu.then(|| on_cpu.isa.unwrap_or_else(Isa::best).name());
    Ok(json!({
        "engine": kind.name(),
        "phase": kind.phase(),
        "kv": (kind != EngineKind::Reference).then(|| loaded.cache.name()),
        "device": loaded.device.name,
        "threads": threads,
        "isa": isa,
        "versions": loaded.engine.versions(),
        "ceiling": ceiling,
        "results": results,
        "peak_rss_bytes": peak,
        "anonymous_bytes": memory.anonymous.filter(|_| is_ours),
        "device_bytes": device_bytes,
    }))
}

fn table(engines: &[Value]) -> String {
    let mut text = format!(
        "{:9} {:4} {:7} {:>6} {:>6} {:>5} {:>9} {:>19} {:>9} {:>6} {:>11}\n",
        "phase", "kv", "what", "tokens", "depth", "batch", "tok/s", "from – to", "ms/token", "GB/s", "of roofline"
    );
    for engine in engines {
        let (name, kv) = (engine["engine"].as_str().unwrap_or_default(), engine["kv"].as_str().unwrap_or("–"));
        let phase = engine["phase"].as_u64().map_or(name.to_owned(), |phase| phase.to_string());
        let title = engine["phase"].as_u64().map_or(name.to_owned(), |phase| format!("phase {phase}"));
        for result in engine["results"].as_array().into_iter().flatten() {
            let number = |name: &str| result[name].as_f64().unwrap_or(f64::NAN);
            let spread = format!("{:.2} – {:.2}", number("tok_s_min"), number("tok_s_max"));
            text += &format!(
                "{phase:<9} {kv:4} {:7} {:>6} {:>6} {:>5} {:>9.2} {spread:>19} {:>9.2} {:>6.1} {:>9.1} %\n",
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
                text += &format!("{:14} {mixed:.1} ms per step, {ratio:.3} × the prompt alone in {alone:.1} ms\n", "");
            }
        }
        let bytes = |name: &str| engine[name].as_u64().map_or("–".into(), size);
        text += &format!(
            "{title}, {kv}: loaded in {:.2} s; peak resident memory {}; {} allocated; {} on the device\n",
            engine["load_ms"].as_f64().unwrap_or_default() / 1e3,
            bytes("peak_rss_bytes"),
            bytes("anonymous_bytes"),
            bytes("device_bytes"),
        );
        text += &start_lines(&engine["start"]);
    }
    text
}

/// Up to two lines: the stages of a start, and its parts, which ran inside of a stage or at the same time as the stages.
fn start_lines(start: &Value) -> String {
    let stage = |stage: &Value| {
        let (name, ms) = (stage["name"].as_str().unwrap_or_default(), stage["ms"].as_f64().unwrap_or_default());
        let rate = stage["gb_s"].as_f64().map_or(String::new(), |rate| format!(" ({rate:.1} GB/s)"));
        format!("{name} {:.2} s{rate}", ms / 1e3)
    };
    let list = |of: &str| start[of].as_array().into_iter().flatten().map(stage).collect::<Vec<_>>().join(", ");
    let lines = [("start", list("stages")), ("meanwhile", list("parts"))];
    lines.into_iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| format!("  {name}: {list}\n")).collect()
}
