//! Reads `tokenizer.json`, the format of the `tokenizers` library.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::lists::{CONTROL, NORMAL, UNUSED, USER_DEFINED, VocabularyLists};
use super::pieces::O200K_PATTERN;
use crate::error::Defect;

/// The fields that a byte-level BPE needs.
#[derive(Deserialize)]
struct TokenizerJson {
    model: ModelJson,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
}

#[derive(Deserialize)]
struct ModelJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// A merge is either one string with both tokens, or two strings, depending on the version of the library.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Apart(String, String),
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    /// Whether this is a control token, which must not be recognized in untrusted text.
    #[serde(default)]
    special: bool,
    /// Whether the token also matches the white space before it or after it, or matches only between words.
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
}

/// Reads the vocabulary of a model with `vocab` tokens.
///
/// # Errors
/// The file is not the JSON of a BPE, the tokenizer works differently from gpt-oss's, or an id is outside the vocabulary or has two texts.
pub(super) fn read(file: &[u8], vocab: usize) -> Result<VocabularyLists, Defect> {
    let TokenizerJson { model, added_tokens, normalizer, pre_tokenizer } =
        serde_json::from_slice(file).map_err(|error| Defect::new("tokenizer.json", "a BPE", error.to_string()))?;
    if model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        return Err(Defect::new("tokenizer.json: `model.type`", "`BPE`", format!("{:?}", model.kind)));
    }
    check_normalizer(&normalizer)?;
    check_pre_tokenizer(&pre_tokenizer)?;
    let mut lists = VocabularyLists {
        // The name of an id without a token; it still has a row in the embedding.
        tokens: (0..vocab).map(|id| format!("[PAD{id}]")).collect(),
        merges: Vec::with_capacity(model.merges.len()),
        kinds: vec![UNUSED; vocab],
    };
    for token in &added_tokens {
        check_added(token)?;
    }
    let ordinary = model.vocab.into_iter().map(|(text, id)| (text, id, NORMAL));
    let added = added_tokens.into_iter().map(|token| {
        let kind = if token.special { CONTROL } else { USER_DEFINED };
        (token.content, token.id, kind)
    });
    for (text, id, kind) in ordinary.chain(added) {
        let defect = |expected: &str| Defect::new("tokenizer.json: tokens", expected, format!("{id} of {text:.40?}"));
        let place = lists.tokens.get_mut(id as usize).ok_or_else(|| defect("ids below `vocab_size`"))?;
        // Some files list control tokens both in the vocabulary and among the added tokens.
        if lists.kinds[id as usize] != UNUSED && *place != text {
            return Err(defect("each id once"));
        }
        *place = text;
        lists.kinds[id as usize] = kind;
    }
    lists.merges.extend(model.merges.into_iter().map(|merge| match merge {
        Merge::Joined(text) => text,
        Merge::Apart(left, right) => left + " " + &right,
    }));
    Ok(lists)
}

/// Refuses a normalizer: gpt-oss does not normalize text.
fn check_normalizer(normalizer: &Value) -> Result<(), Defect> {
    let does_nothing = normalizer.is_null() || steps(normalizer, "normalizers").is_empty();
    match does_nothing {
        true => Ok(()),
        false => Err(Defect::new("tokenizer.json: `normalizer`", "none", shortened(normalizer))),
    }
}

/// Accepts only gpt-oss's pre-tokenizer: text is split by o200k's pattern, and the bytes of the pieces are spelled in GPT-2's alphabet. A
/// missing pre-tokenizer is accepted.
fn check_pre_tokenizer(pre_tokenizer: &Value) -> Result<(), Defect> {
    if pre_tokenizer.is_null() {
        return Ok(());
    }
    let flag = |step: &Value, key: &str| step.get(key).and_then(Value::as_bool);
    // The pattern matches every character, so it does not matter whether text between matches is kept.
    let is_split = |step: &Value| {
        let behavior = step.get("behavior").and_then(Value::as_str);
        let pattern = step.get("pattern").and_then(|pattern| pattern.get("Regex")).and_then(Value::as_str);
        let keeps_matches =
            behavior == Some("Isolated") || behavior == Some("Removed") && flag(step, "invert") == Some(true);
        named(step, "Split") && pattern == Some(O200K_PATTERN) && keeps_matches
    };
    // Both flags default to true.
    let is_alphabet = |step: &Value| {
        let off = |key| flag(step, key) == Some(false);
        named(step, "ByteLevel") && off("use_regex") && off("add_prefix_space")
    };
    match steps(pre_tokenizer, "pretokenizers") {
        [split, alphabet] if is_split(split) && is_alphabet(alphabet) => Ok(()),
        _ => {
            let expected = "o200k's pattern, isolated, and then the byte alphabet";
            Err(Defect::new("tokenizer.json: `pre_tokenizer`", expected, shortened(pre_tokenizer)))
        }
    }
}

fn check_added(token: &AddedToken) -> Result<(), Defect> {
    for (flag, key) in [(token.lstrip, "lstrip"), (token.rstrip, "rstrip"), (token.single_word, "single_word")] {
        if flag {
            let part = format!("tokenizer.json: `{key}` of added token {:.40?}", token.content);
            return Err(Defect::new(part, "false", "true"));
        }
    }
    Ok(())
}

/// The steps of a `Sequence`, or the value itself as the only step.
fn steps<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    match value.get(key).and_then(Value::as_array) {
        Some(steps) if named(value, "Sequence") => steps,
        _ => std::slice::from_ref(value),
    }
}

fn named(value: &Value, name: &str) -> bool {
    value.get("type").and_then(Value::as_str) == Some(name)
}

/// A value, shortened for an error message.
fn shortened(value: &Value) -> String {
    value.to_string().chars().take(100).collect()
}
