//! A vocabulary as a model's files hold it: GGUF metadata, or a `tokenizer.json`.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;

use crate::error::Defect;
use crate::gguf::{Array, Gguf, MetadataValue, Value};

/// GGUF's `tokenizer.ggml.token_type` of an ordinary token.
pub const NORMAL: i32 = 1;
/// That of a token that structures text and is never produced by the BPE.
pub const CONTROL: i32 = 3;
/// That of an id that no token has.
const UNUSED: i32 = 5;

/// A vocabulary in its file; [`Vocabulary::lists`] reads it.
pub(crate) struct Vocabulary {
    source: Source,
    /// Number of tokens.
    vocab: usize,
    pub special: SpecialTokens,
    /// How conversations are written, for other programs: Jinja source.
    pub chat_template: Option<String>,
}

/// Tokens with a role of their own, by id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub padding: Option<u32>,
}

enum Source {
    Gguf { tokens: Array, merges: Array, kinds: Array },
    Json(Bytes),
}

/// A vocabulary in memory.
#[derive(PartialEq)]
pub struct VocabularyLists {
    /// In GPT-2's byte alphabet, by id; control tokens as they are.
    pub tokens: Vec<String>,
    /// Two tokens with a space between, most urgent first.
    pub merges: Vec<String>,
    /// [`NORMAL`], [`CONTROL`], or another of GGUF's token types, by id.
    pub kinds: Vec<i32>,
}

impl Vocabulary {
    pub(crate) fn from_gguf(gguf: &Gguf, vocab: usize) -> Result<Vocabulary, Defect> {
        let defect = |key: &str, expected: String, found: String| {
            Defect::new(format!("metadata `tokenizer.ggml.{key}`"), expected, found)
        };
        let get = |key: &str| gguf.metadata.get(&format!("tokenizer.ggml.{key}"));
        for (key, expected) in [("model", "gpt2"), ("pre", "gpt-4o")] {
            let found = get(key).and_then(Value::as_str).unwrap_or("none");
            if found != expected {
                return Err(defect(key, format!("`{expected}`"), format!("`{found}`")));
            }
        }
        let array = |key: &str, len: Option<usize>, what: &str| {
            let expected = match len {
                Some(len) => format!("an array of {len} {what}, one a token"),
                None => format!("an array of {what}"),
            };
            let value = get(key).ok_or_else(|| defect(key, expected.clone(), "no such key".into()))?;
            match value.as_array() {
                Some(array) if len.is_none_or(|len| len == array.count()) => Ok(array.clone()),
                Some(array) => Err(defect(key, expected, format!("{} elements", array.count()))),
                None => Err(defect(key, expected, value.kind().into())),
            }
        };
        let id = |key: &str| match get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|&id| id < vocab as u64) {
                Some(id) => Ok(Some(id as u32)),
                None => Err(defect(key, format!("a token id below {vocab}"), format!("{value:?}"))),
            },
        };
        Ok(Vocabulary {
            source: Source::Gguf {
                tokens: array("tokens", Some(vocab), "strings")?,
                merges: array("merges", None, "strings")?,
                kinds: array("token_type", Some(vocab), "integers")?,
            },
            vocab,
            special: SpecialTokens {
                bos: id("bos_token_id")?,
                eos: id("eos_token_id")?,
                padding: id("padding_token_id")?,
            },
            chat_template: gguf.metadata.get("tokenizer.chat_template").and_then(Value::as_str).map(str::to_owned),
        })
    }

    /// A `tokenizer.json` for a model of `vocab` tokens.
    pub(crate) fn from_json(
        file: Bytes,
        vocab: usize,
        special: SpecialTokens,
        chat_template: Option<String>,
    ) -> Vocabulary {
        Vocabulary { source: Source::Json(file), vocab, special, chat_template }
    }

    /// An error that says where in the file `list` (tokens, merges or token_type) is.
    pub(crate) fn defect(&self, list: &str, expected: &str, found: impl Into<String>) -> Defect {
        let part = match &self.source {
            Source::Gguf { .. } => format!("metadata `tokenizer.ggml.{list}`"),
            Source::Json(_) => format!("tokenizer.json: {list}"),
        };
        Defect::new(part, expected, found)
    }

    /// As GGUF metadata, whatever it was read from.
    pub(crate) fn to_gguf(&self) -> Result<Vec<(String, MetadataValue)>, Defect> {
        Ok(self.lists()?.into_gguf(self.special, self.chat_template.clone()))
    }

    /// Reads tokens and merges.
    pub(crate) fn lists(&self) -> Result<VocabularyLists, Defect> {
        match &self.source {
            Source::Gguf { tokens, merges, kinds } => self.gguf_lists(tokens, merges, kinds),
            Source::Json(file) => self.json_lists(file),
        }
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

    fn json_lists(&self, file: &[u8]) -> Result<VocabularyLists, Defect> {
        let TokenizerJson { model, added_tokens } =
            serde_json::from_slice(file).map_err(|error| Defect::new("tokenizer.json", "a BPE", error.to_string()))?;
        if model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
            return Err(Defect::new("tokenizer.json: `model.type`", "`BPE`", format!("{:?}", model.kind)));
        }
        let mut lists = VocabularyLists {
            // An id without a token still has a row in the embedding.
            tokens: (0..self.vocab).map(|id| format!("[PAD{id}]")).collect(),
            merges: Vec::with_capacity(model.merges.len()),
            kinds: vec![UNUSED; self.vocab],
        };
        let ordinary = model.vocab.into_iter().map(|(text, id)| (text, id, NORMAL));
        let added = added_tokens.into_iter().map(|token| (token.content, token.id, CONTROL));
        for (text, id, kind) in ordinary.chain(added) {
            let defect = |expected: &str| self.defect("tokens", expected, format!("{id} of {text:.40?}"));
            let place = lists.tokens.get_mut(id as usize).ok_or_else(|| defect("ids below `vocab_size`"))?;
            // Some files list their control tokens in both places.
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
}

impl VocabularyLists {
    /// As GGUF metadata.
    pub fn into_gguf(self, special: SpecialTokens, chat_template: Option<String>) -> Vec<(String, MetadataValue)> {
        use MetadataValue::{I32s, Text, Texts, U32};
        let lists = [
            ("model", Text("gpt2".into())),
            ("pre", Text("gpt-4o".into())),
            ("tokens", Texts(self.tokens)),
            ("token_type", I32s(self.kinds)),
            ("merges", Texts(self.merges)),
        ];
        let ids = [("bos_token_id", special.bos), ("eos_token_id", special.eos), ("padding_token_id", special.padding)];
        let ids = ids.into_iter().filter_map(|(key, id)| Some((key, U32(id?))));
        let ggml = lists.into_iter().chain(ids).map(|(key, value)| (format!("tokenizer.ggml.{key}"), value));
        ggml.chain(chat_template.map(|text| ("tokenizer.chat_template".into(), Text(text)))).collect()
    }
}

/// The parts of a `tokenizer.json` that a byte-level BPE needs.
#[derive(Deserialize)]
struct TokenizerJson {
    model: ModelJson,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct ModelJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// Files of different ages write the two tokens of a merge together or apart.
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
}
