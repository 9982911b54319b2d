//! A vocabulary in memory: tokens, their types, and merges.

use crate::gguf::MetadataValue;

/// `tokenizer.ggml.token_type` of an ordinary token in GGUF.
pub const NORMAL: i32 = 1;
/// Type of the token for unknown text.
pub(super) const UNKNOWN: i32 = 2;
/// Type of a token that structures text; the BPE never produces it.
pub const CONTROL: i32 = 3;
/// Type of a token that was added to the vocabulary and is matched literally in any text.
pub(super) const USER_DEFINED: i32 = 4;
/// Type of an id without a token.
pub(super) const UNUSED: i32 = 5;

/// The tokens that structure conversations. They are control tokens whatever type a file gives them: llama.cpp changes the type of some in
/// memory, and files that it saves keep the changed type.
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
    /// By id. Control, user-defined, unknown and unused tokens are plain text; all others are spelled in GPT-2's byte alphabet.
    pub tokens: Vec<String>,
    /// Two tokens with a space between them, in order of rank: the first is applied first.
    pub merges: Vec<String>,
    /// [`NORMAL`], [`CONTROL`], or another of GGUF's token types, by id.
    pub kinds: Vec<i32>,
}

/// Ids of the tokens with a special role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub padding: Option<u32>,
}

impl VocabularyLists {
    /// Makes harmony's tokens control tokens, unless another token of the same name already is one.
    pub(super) fn make_harmony_control(&mut self) {
        for name in HARMONY {
            let is_control = self.tokens.iter().zip(&self.kinds).any(|(token, &kind)| token == name && kind == CONTROL);
            let id = self.tokens.iter().rposition(|token| token == name);
            if let Some(id) = id.filter(|_| !is_control) {
                self.kinds[id] = CONTROL;
            }
        }
    }

    /// The vocabulary as GGUF metadata.
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
