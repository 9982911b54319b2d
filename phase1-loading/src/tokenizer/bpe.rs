//! Merging the bytes of a text into tokens.

use ahash::AHashMap;
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use super::alphabet::byte_characters;
use super::pieces::Pieces;

/// The ordinary tokens of a vocabulary.
pub(super) struct BytePairs {
    model: BPE,
    alphabet: [char; 256],
}

impl BytePairs {
    /// `tokens` are spelled in GPT-2's byte alphabet; merges have a space between their two tokens, and the most urgent comes first.
    ///
    /// # Errors
    /// A merge that is not two tokens and does not make one.
    pub fn new(tokens: impl Iterator<Item = (String, u32)>, merges: Vec<String>) -> Result<BytePairs, String> {
        let merges = merges
            .into_iter()
            .map(|merge| match merge.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => Err(format!("{merge:?}, which is not two tokens apart")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let tokens: AHashMap<String, u32> = tokens.collect();
        let model = BPE::builder()
            .vocab_and_merges(tokens, merges)
            // tiktoken takes a whole word that is a token before it tries to merge.
            .ignore_merges(true)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(BytePairs { model, alphabet: byte_characters() })
    }

    /// A byte that no token stands for, and that text could therefore not contain.
    pub fn missing_byte(&self) -> Option<u8> {
        (0..=255)
            .find(|&byte| self.model.token_to_id(self.alphabet[usize::from(byte)].encode_utf8(&mut [0; 4])).is_none())
    }

    /// Appends the tokens of a text.
    pub fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        for piece in Pieces::of(text) {
            let spelled: String = piece.bytes().map(|byte| self.alphabet[usize::from(byte)]).collect();
            // Only a model with a token for what is unknown can fail, and here every byte is known.
            let found = self.model.tokenize(&spelled).expect("byte-level BPE encodes any text");
            tokens.extend(found.iter().map(|token| token.id));
        }
    }
}
