//! The two naming conventions of gpt-oss in GGUF: that of llama.cpp and most other programs, and Ollama's.

use crate::error::Defect;
use crate::gguf::{Gguf, Value};

/// A naming convention for gpt-oss in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    LlamaCpp,
    /// The blobs of `ollama pull gpt-oss`.
    Ollama,
}

impl Dialect {
    /// # Errors
    /// The file's architecture is not gpt-oss.
    pub fn of(gguf: &Gguf) -> Result<Dialect, Defect> {
        let architecture = gguf.metadata.get("general.architecture").and_then(Value::as_str);
        let all = [Dialect::LlamaCpp, Dialect::Ollama];
        all.into_iter().find(|dialect| Some(dialect.architecture()) == architecture).ok_or_else(|| {
            let found = architecture.map_or("none".into(), |name| format!("`{name}`"));
            let expected = format!("`{}`", Dialect::LlamaCpp.architecture());
            Defect::new("metadata `general.architecture`", expected, found)
        })
    }

    /// The architecture's name, and the prefix of its keys.
    pub const fn architecture(self) -> &'static str {
        match self {
            Dialect::LlamaCpp => "gpt-oss",
            Dialect::Ollama => "gptoss",
        }
    }

    /// The pre-tokenizer names that stand for o200k's. Ollama ignores the name.
    pub const fn pre_tokenizers(self) -> &'static [&'static str] {
        match self {
            Dialect::LlamaCpp => &["gpt-4o"],
            Dialect::Ollama => &["gpt-4o", "default"],
        }
    }
}
