//! `gptoss compare`: runs the same work on several engines, alternating between them, and writes one record per model.

mod agreement;
mod child;
mod measured;
mod table;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use peers::Installation;
use phase1_loading::{Checkpoint, write_whole};
use serde_json::{Value, json};

use crate::args::{Compare, EngineKind};
use crate::commands::{bench, print, record};
use crate::model;
use crate::peer;
use agreement::References;
use measured::benches;
use table::table;

/// The format name by which the notebooks recognize records.
const FORMAT: &str = "gptoss compare 1";

pub fn run(args: &Compare) -> Result<ExitCode> {
    if let Some(kind) = args.child_engine {
        child::answer(args, kind)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (engines, skipped) = engines(args)?;
    for (number, model) in args.model.iter().enumerate() {
        let checkpoint = model::open(model)?;
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
                let mut found = one(args, kind, number, &references).unwrap_or_else(|error| {
                    eprintln!("{}: {error:#}", kind.title());
                    json!({ "engine": kind.name(), "error": format!("{error:#}") })
                });
                found["turn"] = json!(turn + 1);
                runs.push(found);
            }
        }
        let failed = runs.iter().all(|run| run["error"].is_string());
        let record = record_of(args, model, &checkpoint, &skipped, runs);
        let path = write(&args.out, model, &record)?;
        print(&table(&record))?;
        eprintln!("wrote {}", path.display());
        if failed {
            bail!("no engine ran");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The requested engines, or phases 3 and 5 and the installed peers, and the reasons why peers are left out.
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

/// All measurements of an engine on the model with this index.
fn one(args: &Compare, kind: EngineKind, model: usize, references: &References) -> Result<Value> {
    let (computed, mut report) = child::run(kind, model)?;
    report["agreement"] = references.agreement(args, &computed);
    Ok(report)
}

/// A record of runs, with all data that is needed to repeat them.
fn record_of(args: &Compare, model: &Path, checkpoint: &Checkpoint, skipped: &[Value], runs: Vec<Value>) -> Value {
    let mut record = json!({ "format": FORMAT });
    for (name, value) in record::origin(&args.model) {
        record[name] = value;
    }
    record["model"] = record::model(model, checkpoint);
    record["reference"] = json!({ "engine": "cached", "kv": "f32", "device": "cpu" });
    record["skipped"] = json!(skipped);
    record["runs"] = json!(runs);
    record
}

/// Writes a record to a separate file in a folder, which is created if it does not exist.
fn write(folder: &Path, model: &Path, record: &Value) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let date = record["date"].as_str().unwrap_or_default().replace([':', 'Z'], "");
    let safe = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' };
    let name: String = record::name(model).chars().map(safe).collect();
    let path = folder.join(format!("{date}-{name}-{}.json", std::env::consts::ARCH));
    write_whole(&path, |out| writeln!(out, "{record:#}")).with_context(|| path.display().to_string())?;
    Ok(path)
}
