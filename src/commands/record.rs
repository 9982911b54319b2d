//! The origin of a record: all data that is needed to repeat the measurement.

use std::path::{Path, PathBuf};

use phase1_loading::Checkpoint;
use phase4_profiling::machine;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// The date, machine, version and command of a measurement of `models`.
pub fn origin(models: &[PathBuf]) -> Map<String, Value> {
    let fields = [
        ("date", now()),
        ("command", command(models)),
        ("machine", machine()),
        ("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        ("gptoss", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value))).collect()
}

/// The model that was measured.
pub fn model(path: &Path, checkpoint: &Checkpoint) -> Value {
    let config = &checkpoint.config;
    json!({
        "name": name(path),
        "fingerprint": checkpoint.fingerprint(),
        "weight_bytes": checkpoint.weight_bytes(),
        "layers": config.layers(),
        "hidden": config.hidden,
        "experts": config.experts,
        "vocab": config.vocab,
    })
}

/// The name of a model's file or folder, without its path, which is private.
pub fn name(model: &Path) -> String {
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
