//! A model folder as Hugging Face and mlx-lm keep one: `config.json`, `tokenizer.json` and safetensors files.

mod layout;
mod shards;

use std::path::Path;

use bytes::Bytes;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::config::GptOssConfig;
use crate::error::{Defect, LoadError};
use crate::mapping;
use crate::tokenizer::{SpecialTokens, Vocabulary};
use layout::Layout;

/// The most bytes of a `config.json`, chat template or index that are believed.
const MAX_TEXT: usize = 64 << 20;

/// Maps the files of a folder and reads their headers.
///
/// # Errors
/// A file that is missing or cannot be read, or files that do not make a GPT-OSS model together.
pub(crate) fn open(folder: &Path) -> Result<Checkpoint, LoadError> {
    let config_path = folder.join("config.json");
    let json = read_json(&config_path)?;
    let shards = shards::open(folder)?;
    let config = GptOssConfig::from_json(&json, shards.len()).map_err(|defect| defect.in_file(folder))?;
    let tokenizer = mapping::map(&folder.join("tokenizer.json"), "a tokenizer")?;
    let vocabulary = vocabulary(folder, &json, tokenizer, config.vocab)?;
    let tensors = Layout::new(shards, &json).tensors(&config).map_err(|defect| defect.in_file(folder))?;
    Checkpoint::assemble(folder.to_owned(), config, vocabulary, tensors)
}

fn read_json(path: &Path) -> Result<Value, LoadError> {
    let bytes = mapping::map(path, "JSON")?;
    parse_json(&bytes).map_err(|defect| defect.in_file(path))
}

fn parse_json(bytes: &[u8]) -> Result<Value, Defect> {
    if bytes.len() > MAX_TEXT {
        return Err(Defect::new("file", format!("at most {MAX_TEXT} bytes of JSON"), format!("{}", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|error| Defect::new("file", "JSON", error.to_string()))
}

fn vocabulary(folder: &Path, config: &Value, tokenizer: Bytes, vocab: usize) -> Result<Vocabulary, LoadError> {
    let id = |key: &str| -> Result<Option<u32>, LoadError> {
        // Some files list several ends of a sequence, the model's own first.
        let value = match config.get(key) {
            Some(Value::Array(list)) => list.first(),
            other => other,
        };
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().filter(|&id| id < vocab as u64) {
                Some(id) => Ok(Some(id as u32)),
                None => {
                    let expected = format!("a token id below {vocab}");
                    let found = value.to_string().chars().take(40).collect::<String>();
                    Err(Defect::new(format!("config.json: `{key}`"), expected, found).in_file(folder))
                }
            },
        }
    };
    let special = SpecialTokens { bos: id("bos_token_id")?, eos: id("eos_token_id")?, padding: id("pad_token_id")? };
    Ok(Vocabulary::from_json(tokenizer, vocab, special, chat_template(folder)))
}

/// The conversation template, for other programs: a file of its own, or a field of the tokenizer's configuration.
fn chat_template(folder: &Path) -> Option<String> {
    let own = mapping::map(&folder.join("chat_template.jinja"), "a template").ok().filter(|b| b.len() <= MAX_TEXT);
    match own {
        Some(bytes) => String::from_utf8(bytes.to_vec()).ok(),
        None => {
            let config = read_json(&folder.join("tokenizer_config.json")).ok()?;
            config.get("chat_template")?.as_str().map(str::to_owned)
        }
    }
}
