//! The origin of a record: when, where and with which command and model it was measured.

use std::path::{Path, PathBuf};

use phase1_loading::Checkpoint;
use phase4_profiling::machine;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// The date, command, machine, operating system and program version of a measurement of `models`.
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

/// The command of this process.
fn command(models: &[PathBuf]) -> String {
    command_of(std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()), models)
}

/// A command for a shell, with models replaced by their names and API keys by `KEY`.
fn command_of(arguments: impl Iterator<Item = String>, models: &[PathBuf]) -> String {
    let (mut command, mut is_key) = ("gptoss".to_owned(), false);
    for argument in arguments {
        let follows_key = std::mem::replace(&mut is_key, argument == "--api-key");
        let word = match argument {
            _ if follows_key => "KEY".to_owned(),
            argument if argument.starts_with("--api-key=") => "--api-key=KEY".to_owned(),
            argument if models.iter().any(|model| model.as_os_str() == argument.as_str()) => name(Path::new(&argument)),
            argument => argument,
        };
        command += " ";
        command += &quoted(word);
    }
    command
}

/// A word of a shell command, in quotes unless all its characters are without a meaning for shells.
fn quoted(word: String) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./,:=@+%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// `2026-11-29T10:00:00Z`
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let (date, [hour, minute, second]) = (now.date(), [now.hour(), now.minute(), now.second()]);
    format!("{date}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_no_paths_and_keys() {
        let written = |arguments: &[&str]| {
            command_of(arguments.iter().map(|&argument| argument.to_owned()), &[PathBuf::from("/home/me/20b.gguf")])
        };
        assert_eq!(written(&["bench", "/home/me/20b.gguf", "--json"]), "gptoss bench 20b.gguf --json");
        assert_eq!(written(&["x", "--api-key", "sesame", "--json"]), "gptoss x --api-key KEY --json");
        assert_eq!(written(&["x", "--api-key=sesame", "y"]), "gptoss x --api-key=KEY y");
        assert_eq!(written(&["x", "--label", "two words", "it's", ""]), r"gptoss x --label 'two words' 'it'\''s' ''");
        assert_eq!(written(&["x", "a|b", "$HOME", "http://a:1/v1"]), "gptoss x 'a|b' '$HOME' http://a:1/v1");
    }
}
