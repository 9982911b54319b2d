//! A model folder as Hugging Face, mlx-lm or OpenAI keep one: `config.json`, `tokenizer.json` and safetensors files.

mod files;
mod layout;
mod original;
mod shards;

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::config::GptOssConfig;
use crate::error::{Defect, LoadError};
use crate::mapping;
use crate::tokenizer::{SpecialTokens, Vocabulary};
use files::{Files, MAX_TEXT, needed, parse_json};
use layout::Layout;

/// Maps the files of a folder and reads their headers.
///
/// # Errors
/// A file that is missing or cannot be read, or files that do not make a GPT-OSS model together.
pub(crate) fn open(folder: &Path) -> Result<Checkpoint, LoadError> {
    read(folder, &|name| {
        let path = folder.join(name);
        if path.exists() { mapping::map(&path, "a model's file").map(Some) } else { Ok(None) }
    })
}

/// As [`open`], for files from anywhere; `folder` is what errors call them.
pub(crate) fn read(folder: &Path, files: Files) -> Result<Checkpoint, LoadError> {
    let in_config = |defect: Defect| defect.in_file(&folder.join("config.json"));
    let mut json = parse_json(&needed(folder, files, "config.json")?).map_err(in_config)?;
    let mut shards = shards::open(folder, files)?;
    let original = original::is_original(&json);
    if original {
        json = original::config(&json).map_err(|defect| defect.in_file(folder))?;
    }
    let config = GptOssConfig::from_json(&json, shards.len()).map_err(|defect| defect.in_file(folder))?;
    if original {
        shards = original::rename(shards, &config).map_err(|defect| defect.in_file(folder))?;
    }
    // OpenAI's own configuration names no tokens; Hugging Face's, if it lies above, does.
    let (above, place) = if original { ("../", folder.join("..")) } else { ("", folder.to_owned()) };
    let naming = match files(&format!("{above}config.json"))? {
        Some(config) if original => parse_json(&config).map_err(|defect| defect.in_file(&place.join("config.json")))?,
        Some(_) => json.clone(),
        None => Value::Null,
    };
    let special = special_tokens(&naming, config.vocab).map_err(|defect| defect.in_file(&place))?;
    let tokenizer = needed(folder, files, &format!("{above}tokenizer.json"))?;
    let template = chat_template(&|name| files(&format!("{above}{name}")));
    let vocabulary = Vocabulary::from_json(tokenizer, config.vocab, special, template);
    let tensors = Layout::new(shards, &json).tensors(&config).map_err(|defect| defect.in_file(folder))?;
    Checkpoint::assemble(folder.to_owned(), config, vocabulary, tensors)
}

fn special_tokens(config: &Value, vocab: usize) -> Result<SpecialTokens, Defect> {
    let id = |key: &str| {
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
                    let found = value.to_string().chars().take(40).collect::<String>();
                    let expected = format!("a token id below {vocab}");
                    Err(Defect::new(format!("config.json: `{key}`"), expected, found))
                }
            },
        }
    };
    Ok(SpecialTokens { bos: id("bos_token_id")?, eos: id("eos_token_id")?, padding: id("pad_token_id")? })
}

/// The conversation template, for other programs: a file of its own, or a field of the tokenizer's configuration.
fn chat_template(files: Files) -> Option<String> {
    match files("chat_template.jinja").ok()? {
        Some(bytes) if bytes.len() <= MAX_TEXT => String::from_utf8(bytes.to_vec()).ok(),
        _ => {
            let config = parse_json(&files("tokenizer_config.json").ok()??).ok()?;
            config.get("chat_template")?.as_str().map(str::to_owned)
        }
    }
}
