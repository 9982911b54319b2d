//! A vocabulary as a model's files store it: GGUF metadata, or a `tokenizer.json`.

use bytes::Bytes;

use super::json;
use super::lists::{NORMAL, SpecialTokens, VocabularyLists};
use crate::error::Defect;
use crate::gguf::{Array, Gguf, MetadataValue, Value};

/// The key of a list of end-of-sequence tokens.
const MORE_ENDS: &str = "eos_token_ids";

/// A vocabulary that has not been read yet; [`Vocabulary::lists`] reads it.
pub(crate) struct Vocabulary {
    source: Source,
    /// Number of tokens.
    vocab: usize,
    pub special: SpecialTokens,
    /// Every end-of-sequence token that the files name.
    pub ends: Vec<u32>,
    /// The chat template as Jinja source, for other programs.
    pub chat_template: Option<String>,
}

enum Source {
    Gguf {
        tokens: Array,
        merges: Array,
        kinds: Array,
    },
    Json(Bytes),
    /// The program's own vocabulary, for files without one.
    BuiltIn(fn() -> VocabularyLists),
    Missing,
}

impl Vocabulary {
    /// `patterns` are the pre-tokenizer names that stand for o200k's in this file.
    pub(crate) fn from_gguf(gguf: &Gguf, vocab: usize, patterns: &[&str]) -> Result<Vocabulary, Defect> {
        let defect = |key: &str, expected: String, found: String| {
            Defect::new(format!("metadata `tokenizer.ggml.{key}`"), expected, found)
        };
        let get = |key: &str| gguf.metadata.get(&format!("tokenizer.ggml.{key}"));
        for (key, expected) in [("model", &["gpt2"][..]), ("pre", patterns)] {
            let found = get(key).and_then(Value::as_str).unwrap_or("none");
            if !expected.contains(&found) {
                return Err(defect(key, format!("`{}`", expected[0]), format!("`{found}`")));
            }
        }
        let array = |key: &str, len: Option<usize>, what: &str| {
            let expected = match len {
                Some(len) => format!("an array of {len} {what}, one per token"),
                None => format!("an array of {what}"),
            };
            let value = get(key).ok_or_else(|| defect(key, expected.clone(), "no such key".into()))?;
            match value.as_array() {
                Some(array) if len.is_none_or(|len| len == array.count()) => Ok(array.clone()),
                Some(array) => Err(defect(key, expected, format!("{} elements", array.count()))),
                None => Err(defect(key, expected, value.kind().into())),
            }
        };
        let id = |key: &str, value: &Value| match value {
            // The value that some writers use for a missing token.
            Value::Signed(-1) | Value::Unsigned(0xffff_ffff) => Ok(None),
            value => match value.as_u64().filter(|&id| id < vocab as u64) {
                Some(id) => Ok(Some(id as u32)),
                None => Err(defect(key, format!("a token id below {vocab}"), format!("{value:?}"))),
            },
        };
        let one = |key: &str| get(key).map_or(Ok(None), |value| id(key, value));
        let special =
            SpecialTokens { bos: one("bos_token_id")?, eos: one("eos_token_id")?, padding: one("padding_token_id")? };
        let mut ends: Vec<u32> = special.eos.into_iter().collect();
        let more = get(MORE_ENDS).and_then(Value::as_array).and_then(|array| array.scalars());
        for value in more.into_iter().flatten() {
            ends.extend(id(MORE_ENDS, &value)?);
        }
        Ok(Vocabulary {
            source: Source::Gguf {
                tokens: array("tokens", Some(vocab), "strings")?,
                merges: array("merges", None, "strings")?,
                kinds: array("token_type", Some(vocab), "integers")?,
            },
            vocab,
            special,
            ends: without_repeats(ends),
            chat_template: gguf.metadata.get("tokenizer.chat_template").and_then(Value::as_str).map(str::to_owned),
        })
    }

    /// A `tokenizer.json` for a model with `vocab` tokens.
    pub(crate) fn from_json(
        file: Bytes,
        vocab: usize,
        special: SpecialTokens,
        ends: Vec<u32>,
        chat_template: Option<String>,
    ) -> Vocabulary {
        Vocabulary { source: Source::Json(file), vocab, special, ends: without_repeats(ends), chat_template }
    }

    /// The vocabulary of a folder without a `tokenizer.json`.
    pub(crate) fn missing(vocab: usize, special: SpecialTokens, ends: Vec<u32>) -> Vocabulary {
        Vocabulary { source: Source::Missing, vocab, special, ends: without_repeats(ends), chat_template: None }
    }

    pub(crate) fn is_missing(&self) -> bool {
        matches!(self.source, Source::Missing)
    }

    /// Replaces a missing vocabulary by the program's own.
    pub(crate) fn build_in(&mut self, lists: fn() -> VocabularyLists, special: SpecialTokens) {
        self.source = Source::BuiltIn(lists);
        self.special = special;
        self.ends.extend(special.eos.filter(|eos| !self.ends.contains(eos)));
    }

    /// An error that names the place of `list` (tokens, merges or token_type) in the file.
    pub(crate) fn defect(&self, list: &str, expected: &str, found: impl Into<String>) -> Defect {
        let part = match &self.source {
            Source::Gguf { .. } => format!("metadata `tokenizer.ggml.{list}`"),
            Source::Json(_) | Source::Missing => format!("tokenizer.json: {list}"),
            Source::BuiltIn(_) => format!("built-in vocabulary: {list}"),
        };
        Defect::new(part, expected, found)
    }

    /// The vocabulary as GGUF metadata, whatever its source.
    pub(crate) fn to_gguf(&self) -> Result<Vec<(String, MetadataValue)>, Defect> {
        let mut metadata = self.lists()?.into_gguf(self.special, self.chat_template.clone());
        if self.ends.len() > 1 {
            let ends = self.ends.iter().map(|&id| id as i32).collect();
            metadata.push((format!("tokenizer.ggml.{MORE_ENDS}"), MetadataValue::I32s(ends)));
        }
        Ok(metadata)
    }

    /// Reads the tokens, their types and the merges.
    pub(crate) fn lists(&self) -> Result<VocabularyLists, Defect> {
        let mut lists = match &self.source {
            Source::Gguf { tokens, merges, kinds } => self.gguf_lists(tokens, merges, kinds)?,
            Source::Json(file) => json::read(file, self.vocab)?,
            Source::BuiltIn(lists) => lists(),
            Source::Missing => {
                let expected = format!("the vocabulary of {} tokens", self.vocab);
                return Err(Defect::new("tokenizer.json", expected, "no such file"));
            }
        };
        if lists.tokens.len() != self.vocab {
            let found = format!("{} of them", lists.tokens.len());
            return Err(self.defect("tokens", &format!("{} tokens", self.vocab), found));
        }
        lists.make_harmony_control();
        Ok(lists)
    }

    fn gguf_lists(&self, tokens: &Array, merges: &Array, kinds: &Array) -> Result<VocabularyLists, Defect> {
        let texts = |array: &Array, key: &str| -> Result<Vec<String>, Defect> {
            let defect = |found: String| self.defect(key, "strings in UTF-8", found);
            let texts = array.texts().ok_or_else(|| defect("numbers".into()))?;
            texts
                .enumerate()
                .map(|(i, text)| match std::str::from_utf8(text) {
                    Ok(text) => Ok(text.to_owned()),
                    Err(_) => Err(defect(format!("other bytes in element {i}"))),
                })
                .collect()
        };
        let number = |value: Value| value.as_u64().and_then(|kind| kind.try_into().ok()).unwrap_or(NORMAL);
        let kinds = kinds.scalars().map(|kinds| kinds.map(number).collect());
        Ok(VocabularyLists {
            tokens: texts(tokens, "tokens")?,
            merges: texts(merges, "merges")?,
            kinds: kinds.ok_or_else(|| self.defect("token_type", "integers", "strings"))?,
        })
    }
}

fn without_repeats(ids: Vec<u32>) -> Vec<u32> {
    let mut unique = Vec::new();
    for id in ids {
        if !unique.contains(&id) {
            unique.push(id);
        }
    }
    unique
}
