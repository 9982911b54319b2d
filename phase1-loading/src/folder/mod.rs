//! A model folder in the layout of Hugging Face, mlx-lm or OpenAI: `config.json`, `tokenizer.json` and safetensors files.

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
/// A file is missing or cannot be read, or the files do not form a GPT-OSS model.
pub(crate) fn open(folder: &Path) -> Result<Checkpoint, LoadError> {
    if !folder.join("config.json").exists() {
        return Err(Defect::new("folder", "a .gguf file or a config.json", "neither").in_file(folder));
    }
    read(folder, &|name| {
        let path = folder.join(name);
        if path.exists() { mapping::map(&path, "a model's file").map(Some) } else { Ok(None) }
    })
}

/// As [`open`], for files from any source; errors call the folder `folder`.
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
    // OpenAI's own configuration names no special tokens; Hugging Face's in the parent folder may.
    let (above, place) = if original { ("../", folder.join("..")) } else { ("", folder.to_owned()) };
    let at_place = |name: &str| -> Result<Value, LoadError> {
        match files(&format!("{above}{name}"))? {
            Some(file) => parse_json(&file).map_err(|defect| defect.in_file(&place.join(name))),
            None => Ok(Value::Null),
        }
    };
    let (naming, generation) = (at_place("config.json")?, at_place("generation_config.json")?);
    let in_place = |defect: Defect| defect.in_file(&place);
    let special = special_tokens(&naming, config.vocab).map_err(in_place)?;
    // Both files may name end-of-sequence tokens; all of them count.
    let mut ends = token_ids(&naming, "config.json", "eos_token_id", config.vocab).map_err(in_place)?;
    ends.extend(token_ids(&generation, "generation_config.json", "eos_token_id", config.vocab).map_err(in_place)?);
    let tokenizer = format!("{above}tokenizer.json");
    // OpenAI's instructions download the folder `original` alone, which has no tokenizer.
    let vocabulary = match original && files(&tokenizer)?.is_none() {
        true => Vocabulary::missing(config.vocab, special, ends),
        false => {
            let template = chat_template(&|name| files(&format!("{above}{name}")));
            Vocabulary::from_json(needed(folder, files, &tokenizer)?, config.vocab, special, ends, template)
        }
    };
    let tensors = Layout::new(shards, &json).tensors(&config).map_err(|defect| defect.in_file(folder))?;
    Checkpoint::assemble(folder.to_owned(), config, vocabulary, tensors)
}

fn special_tokens(config: &Value, vocab: usize) -> Result<SpecialTokens, Defect> {
    // Some files list several end-of-sequence tokens, the model's own first.
    let first = |key: &str| token_ids(config, "config.json", key, vocab).map(|ids| ids.first().copied());
    Ok(SpecialTokens { bos: first("bos_token_id")?, eos: first("eos_token_id")?, padding: first("pad_token_id")? })
}

/// The token ids under a key: none, one or several.
fn token_ids(config: &Value, file: &str, key: &str, vocab: usize) -> Result<Vec<u32>, Defect> {
    let values: &[Value] = match config.get(key) {
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) => list,
        Some(one) => std::slice::from_ref(one),
    };
    let id = |value: &Value| match value.as_u64().filter(|&id| id < vocab as u64) {
        Some(id) => Ok(id as u32),
        None => {
            let found = value.to_string().chars().take(40).collect::<String>();
            Err(Defect::new(format!("{file}: `{key}`"), format!("a token id below {vocab}"), found))
        }
    };
    values.iter().map(id).collect()
}

/// The chat template, kept for other programs: a separate file, or a field of the tokenizer's configuration.
fn chat_template(files: Files) -> Option<String> {
    match files("chat_template.jinja").ok()? {
        Some(bytes) if bytes.len() <= MAX_TEXT => String::from_utf8(bytes.to_vec()).ok(),
        _ => {
            let config = parse_json(&files("tokenizer_config.json").ok()??).ok()?;
            config.get("chat_template")?.as_str().map(str::to_owned)
        }
    }
}
