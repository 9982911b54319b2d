//! Text to tokens and back: a byte-level BPE built from the model file's own vocabulary.
//!
//! GPT-OSS uses o200k_harmony: GPT-4o's pre-tokenizer and merges, plus control tokens such as `<|start|>` that structure
//! a conversation. Control tokens are recognised only where the caller asks for it, so that text from outside can
//! never pose as structure.

mod stream;
mod vocabulary;

use std::collections::HashMap;

use ahash::AHashMap;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::Defect;
pub use stream::TextStream;
pub(crate) use vocabulary::Vocabulary;
pub use vocabulary::{CONTROL, NORMAL, SpecialTokens, VocabularyLists};

/// The pre-tokenizer pattern of o200k (`gpt-4o` in GGUF): words with one leading non-letter and an English
/// contraction, numbers of up to three digits, punctuation runs, line breaks, other white space.
const O200K_PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

/// Encodes text and decodes tokens.
pub struct Tokenizer {
    bpe: tokenizers::Tokenizer,
    /// The bytes that each token stands for.
    bytes: Vec<Box<[u8]>>,
    control: HashMap<String, u32>,
    /// Generation ends here: `<|return|>`, `<|call|>`, `<|endoftext|>` and the file's own end-of-sequence token.
    stops: Vec<u32>,
}

impl Tokenizer {
    pub(crate) fn new(vocabulary: &Vocabulary) -> Result<Tokenizer, Defect> {
        let VocabularyLists { tokens, merges, kinds } = vocabulary.lists()?;
        let alphabet = byte_alphabet();
        let mut bytes = Vec::with_capacity(tokens.len());
        let mut control = HashMap::new();
        for (id, (token, &kind)) in tokens.iter().zip(&kinds).enumerate() {
            if kind == CONTROL {
                control.insert(token.clone(), id as u32);
                bytes.push(token.as_bytes().into());
            } else {
                let spelled: Option<Box<[u8]>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
                bytes.push(spelled.ok_or_else(|| {
                    let expected = "characters of GPT-2's byte alphabet";
                    vocabulary.defect("tokens", expected, format!("{token:?} as token {id}"))
                })?);
            }
        }

        let mut stops: Vec<u32> = ["<|return|>", "<|call|>", "<|endoftext|>"]
            .iter()
            .filter_map(|name| control.get(*name).copied())
            .chain(vocabulary.special.eos)
            .collect();
        stops.sort_unstable();
        stops.dedup();
        let bpe = build_bpe(tokens, merges)
            .map_err(|error| vocabulary.defect("merges", "merges of a byte-level BPE", error))?;
        Ok(Tokenizer { bpe, bytes, control, stops })
    }

    /// Number of tokens, control tokens included.
    pub fn vocab(&self) -> usize {
        self.bytes.len()
    }

    /// Tokens after which the model expects no further generation.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// The id of a control token such as `<|start|>`.
    pub fn control(&self, name: &str) -> Option<u32> {
        self.control.get(name).copied()
    }

    /// Encodes plain text. Anything that looks like a control token is text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let encoding = self.bpe.encode_fast(text, false);
        // Only a model with an unknown-token policy can fail, and byte-level BPE knows every byte.
        encoding.expect("byte-level BPE encodes any text").get_ids().to_vec()
    }

    /// Encodes text in which control tokens stand for themselves, as in a rendered conversation.
    pub fn encode_with_control(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        let mut plain_start = 0;
        let mut search = 0;
        while let Some(open) = text[search..].find("<|").map(|i| search + i) {
            let close = text[open..].find("|>").map(|i| open + i + 2);
            let Some((close, id)) = close.and_then(|close| Some((close, self.control(&text[open..close])?))) else {
                search = open + 2;
                continue;
            };
            tokens.extend(self.encode(&text[plain_start..open]));
            tokens.push(id);
            (plain_start, search) = (close, close);
        }
        tokens.extend(self.encode(&text[plain_start..]));
        tokens
    }

    /// The bytes that a token stands for; a control token stands for its name. `None` for an id outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        self.bytes.get(token as usize).map(|bytes| &**bytes)
    }

    /// Decodes a whole sequence; bytes that are not UTF-8 become U+FFFD. Ids outside the vocabulary are left out.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes = tokens.iter().filter_map(|&t| self.token_bytes(t)).collect::<Vec<_>>();
        String::from_utf8_lossy(&bytes.concat()).into_owned()
    }
}

fn build_bpe(tokens: Vec<String>, merges: Vec<String>) -> Result<tokenizers::Tokenizer, String> {
    let merges = merges
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(format!("{merge:?}, which is not two tokens apart")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let vocab: AHashMap<String, u32> = tokens.into_iter().zip(0..).collect();
    let describe = |error: tokenizers::Error| error.to_string();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        // tiktoken takes a whole word that is a token before it tries to merge.
        .ignore_merges(true)
        .build()
        .map_err(describe)?;
    let pattern = SplitPattern::Regex(O200K_PATTERN.into());
    let split = Split::new(pattern, SplitDelimiterBehavior::Removed, true).map_err(describe)?;
    let to_alphabet = ByteLevel::new(false, false, false);
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer
        .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![split.into(), to_alphabet.into()]))));
    Ok(tokenizer)
}

/// GPT-2's alphabet for bytes: printable Latin-1 stands for itself, every other byte for a character from U+0100 on.
pub fn byte_characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u8 as char,
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("a character in Latin Extended-A")
        }
    })
}

fn byte_alphabet() -> HashMap<char, u8> {
    byte_characters().into_iter().zip(0..=255).collect()
}
