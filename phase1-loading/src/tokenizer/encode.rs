//! Encodes text to tokens and decodes tokens to text.

use std::collections::HashMap;

use super::added::{AddedTokens, Part};
use super::alphabet::byte_characters;
use super::bpe::BytePairs;
use super::least::LeastTokens;
use super::lists::{CONTROL, UNKNOWN, UNUSED, USER_DEFINED, VocabularyLists};
use super::vocabulary::Vocabulary;
use crate::error::Defect;

/// Encodes text and decodes tokens.
pub struct Tokenizer {
    pairs: BytePairs,
    /// The bytes of each token, by id.
    bytes: Vec<Box<[u8]>>,
    /// Control tokens by name.
    control: HashMap<String, u32>,
    /// All tokens that are matched literally.
    added: AddedTokens,
    /// The subset of `added` that is recognized in untrusted text: all except control tokens and the token for unknown text.
    added_to_text: AddedTokens,
    /// Lower bounds of the number of tokens, for text in which control tokens are recognized and for other text.
    least_with_control: LeastTokens,
    least: LeastTokens,
    /// Tokens that end generation.
    stops: Vec<u32>,
}

impl Tokenizer {
    pub(crate) fn new(vocabulary: &Vocabulary) -> Result<Tokenizer, Defect> {
        let VocabularyLists { tokens, merges, kinds } = vocabulary.lists()?;
        let alphabet: HashMap<char, u8> = byte_characters().into_iter().zip(0..=255).collect();
        let mut bytes = Vec::with_capacity(tokens.len());
        for (id, (token, &kind)) in tokens.iter().zip(&kinds).enumerate() {
            let spelled: Option<Box<[u8]>> = match is_merged(kind) {
                true => token.chars().map(|c| alphabet.get(&c).copied()).collect(),
                false => Some(token.as_bytes().into()),
            };
            bytes.push(spelled.ok_or_else(|| {
                let expected = "characters of GPT-2's byte alphabet";
                vocabulary.defect("tokens", expected, format!("{token:?} as token {id}"))
            })?);
        }
        let of_kinds = |wanted: &[i32]| {
            let all = tokens.iter().zip(&kinds).zip(0u32..);
            let found = all.filter(|((_, kind), _)| wanted.contains(kind)).map(|((token, _), id)| (token.as_str(), id));
            found.collect::<Vec<_>>()
        };
        let find = |wanted: &[i32]| {
            let found = AddedTokens::new(of_kinds(wanted).into_iter());
            found.map_err(|error| vocabulary.defect("tokens", "added tokens that can be searched for", error))
        };
        let (added, added_to_text) = (find(&[CONTROL, USER_DEFINED, UNKNOWN])?, find(&[USER_DEFINED])?);
        let control: HashMap<String, u32> =
            of_kinds(&[CONTROL]).into_iter().map(|(token, id)| (token.to_owned(), id)).collect();
        let stops = stops(&control, &vocabulary.ends);

        let least_of = |is_in_text: fn(i32) -> bool| {
            let found = bytes.iter().zip(&kinds).filter(|(_, kind)| is_in_text(**kind));
            LeastTokens::new(found.map(|(bytes, _)| &**bytes))
        };
        let least_with_control = least_of(|kind| kind != UNUSED);
        let least = least_of(|kind| is_merged(kind) || kind == USER_DEFINED);

        // The BPE gets no control tokens, so that untrusted text is never encoded to one.
        let ordinary = tokens.into_iter().zip(&kinds).zip(0u32..);
        let ordinary = ordinary.filter(|((_, kind), _)| is_merged(**kind)).map(|((token, _), id)| (token, id));
        let pairs = BytePairs::new(ordinary, merges)
            .map_err(|error| vocabulary.defect("merges", "merges of a byte-level BPE", error))?;
        if let Some(byte) = pairs.missing_byte() {
            return Err(vocabulary.defect("tokens", "a token for every byte", format!("none for byte {byte}")));
        }
        Ok(Tokenizer { pairs, bytes, control, added, added_to_text, least_with_control, least, stops })
    }

    /// Number of tokens, control tokens included.
    pub fn vocab(&self) -> usize {
        self.bytes.len()
    }

    /// Tokens that end a turn or sequence, in ascending order.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// The id of a control token such as `<|start|>`.
    pub fn control(&self, name: &str) -> Option<u32> {
        self.control.get(name).copied()
    }

    /// Encodes plain text. The names of control tokens and of the token for unknown text are encoded as text; other added tokens are
    /// recognized.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_around(&self.added_to_text, text)
    }

    /// Encodes text in which the names of control tokens are recognized, such as a rendered conversation.
    pub fn encode_with_control(&self, text: &str) -> Vec<u32> {
        self.encode_around(&self.added, text)
    }

    /// A lower bound of the number of tokens that [`Tokenizer::encode`] returns, computed in a small part of the time. It can be used to
    /// refuse a text that is too long for any context.
    pub fn least_tokens(&self, text: &str) -> usize {
        self.least.of(text)
    }

    /// The same for [`Tokenizer::encode_with_control`].
    pub fn least_tokens_with_control(&self, text: &str) -> usize {
        self.least_with_control.of(text)
    }

    fn encode_around(&self, added: &AddedTokens, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        for part in added.parts(text) {
            match part {
                Part::Text(text) => self.pairs.encode(text, &mut tokens),
                Part::Token(id) => tokens.push(id),
            }
        }
        tokens
    }

    /// The bytes of a token; for a control token, its name. `None` for an id outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        self.bytes.get(token as usize).map(|bytes| &**bytes)
    }

    /// Decodes a whole sequence. Invalid UTF-8 becomes U+FFFD; ids outside the vocabulary are skipped.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes = tokens.iter().filter_map(|&t| self.token_bytes(t)).collect::<Vec<_>>();
        String::from_utf8_lossy(&bytes.concat()).into_owned()
    }
}

/// Whether tokens of that type are produced by merges and written in GPT-2's byte alphabet. Other tokens are stored as plain text.
fn is_merged(kind: i32) -> bool {
    !matches!(kind, CONTROL | USER_DEFINED | UNKNOWN | UNUSED)
}

/// The stop tokens: `<|return|>`, `<|call|>`, `<|endoftext|>`, and the files' end-of-sequence tokens. Some files list `<|end|>` too. It
/// ends only a message, such as the reasoning, after which the answer follows. It is therefore left out if the vocabulary has both tokens
/// that end a turn, `<|return|>` and `<|call|>`.
fn stops(control: &HashMap<String, u32>, ends: &[u32]) -> Vec<u32> {
    let id = |name: &str| control.get(name).copied();
    let (end_of_message, turn) = (id("<|end|>"), [id("<|return|>"), id("<|call|>")]);
    let turn_ends = turn.iter().all(Option::is_some);
    let ends = ends.iter().copied().filter(|&end| !turn_ends || Some(end) != end_of_message);
    let mut stops: Vec<u32> = turn.into_iter().chain([id("<|endoftext|>")]).flatten().chain(ends).collect();
    stops.sort_unstable();
    stops.dedup();
    stops
}
