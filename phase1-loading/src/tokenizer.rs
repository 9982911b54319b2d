//! Encodes text to tokens and decodes them, with a byte-level BPE built from the model file's own vocabulary.
//!
//! GPT-OSS uses o200k_harmony: GPT-4o's pre-tokenizer and merges, plus control tokens such as `<|start|>` that structure a conversation.
//! Control tokens are recognized only if the caller asks for it, so that untrusted text cannot change the structure of a conversation.

mod added;
mod alphabet;
mod bpe;
mod encode;
mod json;
mod least;
mod lists;
mod pieces;
mod stream;
mod vocabulary;

pub use alphabet::byte_characters;
pub use encode::Tokenizer;
pub use lists::{CONTROL, NORMAL, SpecialTokens, VocabularyLists};
pub use stream::TextStream;
pub(crate) use vocabulary::Vocabulary;
