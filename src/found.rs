//! Finds models that other programs have downloaded, by their usual names.

use std::path::{Path, PathBuf};

use phase1_loading::locate;

/// The names to look for, in order of preference.
const USUAL_NAMES: [&str; 13] = [
    "hf:ggml-org/gpt-oss-20b-GGUF",
    "ollama:gpt-oss:20b",
    "ollama:gpt-oss",
    "hf:mlx-community/gpt-oss-20b-MXFP4-Q8",
    "hf:openai/gpt-oss-20b",
    "lmstudio:lmstudio-community/gpt-oss-20b-GGUF",
    "lmstudio:openai/gpt-oss-20b",
    "hf:unsloth/gpt-oss-20b-GGUF",
    "hf:ggml-org/gpt-oss-120b-GGUF",
    "ollama:gpt-oss:120b",
    "hf:openai/gpt-oss-120b",
    "lmstudio:lmstudio-community/gpt-oss-120b-GGUF",
    "lmstudio:openai/gpt-oss-120b",
];

/// The usual names that resolve to a file or folder. If several names resolve to the same one, only the first is listed. A name that
/// resolves to several models is left out.
pub fn models() -> Vec<(&'static str, PathBuf)> {
    let mut found: Vec<(&'static str, PathBuf)> = Vec::new();
    for name in USUAL_NAMES {
        let Ok(path) = locate(Path::new(name)) else { continue };
        if path.exists() && found.iter().all(|(_, other)| *other != path) {
            found.push((name, path));
        }
    }
    found
}
