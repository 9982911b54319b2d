//! Records for the notebooks: one file per model and run, never edited by hand.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use phase1_loading::{Checkpoint, write_whole};
use phase4_profiling::machine;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::args::Compare;

/// The identifier of the format.
const FORMAT: &str = "gptoss compare 1";

/// A record of runs, with all data that is needed to repeat them.
pub fn new(args: &Compare, model: &Path, checkpoint: &Checkpoint, skipped: &[Value], runs: Vec<Value>) -> Value {
    let config = &checkpoint.config;
    json!({
        "format": FORMAT,
        "date": now(),
        "command": command(&args.model),
        "machine": machine(),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "gptoss": env!("CARGO_PKG_VERSION"),
        "model": {
            "name": name(model),
            "fingerprint": checkpoint.fingerprint(),
            "weight_bytes": checkpoint.weight_bytes(),
            "layers": config.layers(),
            "hidden": config.hidden,
            "experts": config.experts,
            "vocab": config.vocab,
        },
        "reference": { "engine": "cached", "kv": "f32", "device": "cpu" },
        "skipped": skipped,
        "runs": runs,
    })
}

/// Writes a record to a new file in a folder, which is created if necessary.
pub fn write(folder: &Path, model: &Path, record: &Value) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let date = record["date"].as_str().unwrap_or_default().replace([':', 'Z'], "");
    let safe = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' };
    let name: String = name(model).chars().map(safe).collect();
    let path = folder.join(format!("{date}-{name}-{}.json", std::env::consts::ARCH));
    write_whole(&path, |out| writeln!(out, "{record:#}")).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// The name of a model's file or folder, without its path, which is private.
fn name(model: &Path) -> String {
    model.file_name().unwrap_or(model.as_os_str()).to_string_lossy().into_owned()
}

/// The arguments of this process, with models replaced by their names.
fn command(models: &[PathBuf]) -> String {
    let word = |word: String| match models.iter().any(|model| model.as_os_str() == word.as_str()) {
        true => name(Path::new(&word)),
        false => word,
    };
    let words = std::env::args_os().skip(1).map(|argument| word(argument.to_string_lossy().into_owned()));
    ["gptoss".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// `2026-11-29T10:00:00Z`
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let (date, [hour, minute, second]) = (now.date(), [now.hour(), now.minute(), now.second()]);
    format!("{date}T{hour:02}:{minute:02}:{second:02}Z")
}
