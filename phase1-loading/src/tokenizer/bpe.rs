//! Byte pair encoding: merges the bytes of a text into tokens.

use ahash::AHashMap;
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use super::alphabet::byte_characters;
use super::pieces::Pieces;

/// The BPE model of a vocabulary's ordinary tokens.
pub(super) struct BytePairs {
    model: BPE,
    alphabet: [char; 256],
}

impl BytePairs {
    /// `tokens` are spelled in GPT-2's byte alphabet. A merge is two tokens with a space between them; merges are sorted by rank, first the
    /// one to apply first.
    ///
    /// # Errors
    /// A merge that is not two tokens, or does not form one.
    pub fn new(tokens: impl Iterator<Item = (String, u32)>, merges: Vec<String>) -> Result<BytePairs, String> {
        let merges = merges
            .into_iter()
            .map(|merge| match merge.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => Err(format!("{merge:?}, which is not two tokens separated by a space")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let tokens: AHashMap<String, u32> = tokens.collect();
        let model = BPE::builder()
            .vocab_and_merges(tokens, merges)
            // A pre-token that is itself a token is encoded as that token, without merges, as in tiktoken.
            .ignore_merges(true)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(BytePairs { model, alphabet: byte_characters() })
    }

    /// A byte that has no token, if there is one; text with that byte could not be encoded.
    pub fn missing_byte(&self) -> Option<u8> {
        (0..=255)
            .find(|&byte| self.model.token_to_id(self.alphabet[usize::from(byte)].encode_utf8(&mut [0; 4])).is_none())
    }

    /// Appends the tokens of a text.
    pub fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        for piece in Pieces::of(text) {
            let spelled: String = piece.bytes().map(|byte| self.alphabet[usize::from(byte)]).collect();
            // Only a model with an unknown token can fail, and here every byte has a token.
            let found = self.model.tokenize(&spelled).expect("byte-level BPE encodes any text");
            tokens.extend(found.iter().map(|token| token.id));
        }
    }
}
