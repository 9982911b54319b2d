//! A vocabulary in memory: tokens, their types, and merges.

use crate::gguf::MetadataValue;

/// GGUF's `tokenizer.ggml.token_type` of an ordinary token.
pub const NORMAL: i32 = 1;
/// That of a token for what no other token stands for.
pub(super) const UNKNOWN: i32 = 2;
/// That of a token that structures text and is never produced by the BPE.
pub const CONTROL: i32 = 3;
/// That of a token that was added to the vocabulary, and stands in any text as it is.
pub(super) const USER_DEFINED: i32 = 4;
/// That of an id that no token has.
pub(super) const UNUSED: i32 = 5;

/// The tokens that structure conversations. They are control tokens whatever a file says: llama.cpp gives some of them another type in
/// memory, and files that were saved from there keep it.
const HARMONY: [&str; 9] = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
];

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

/// Tokens with a role of their own, by id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub padding: Option<u32>,
}

impl VocabularyLists {
    /// Gives harmony's tokens their type, unless another token of that name has it.
    pub(super) fn make_harmony_control(&mut self) {
        for name in HARMONY {
            let is_control = self.tokens.iter().zip(&self.kinds).any(|(token, &kind)| token == name && kind == CONTROL);
            let id = self.tokens.iter().rposition(|token| token == name);
            if let Some(id) = id.filter(|_| !is_control) {
                self.kinds[id] = CONTROL;
            }
        }
    }

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
