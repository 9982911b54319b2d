//! The o200k_harmony vocabulary, whole or reduced, as GGUF metadata.

use std::collections::HashMap;

use phase1_loading::write::{CONTROL, MetadataValue, NORMAL, SpecialTokens, VocabularyLists, byte_characters};
use serde::{Deserialize, Serialize};

/// Which vocabulary a synthetic model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VocabularyKind {
    /// o200k_harmony: 199,998 BPE tokens and 1,090 control tokens.
    O200k,
    /// The first 1,000 BPE tokens of o200k, whose merges need no other token, and harmony's named control tokens.
    Small,
}

pub(crate) struct Vocabulary {
    /// Token texts in GPT-2's byte alphabet, by id.
    pub tokens: Vec<String>,
    /// Two token texts with a space between them, in order of rank.
    pub merges: Vec<String>,
    /// Ids from here on are control tokens.
    pub first_control: usize,
}

/// Number of BPE tokens of o200k; the ids that follow are control tokens.
const O200K_RANKS: u32 = 199_998;
const SMALL_RANKS: u32 = 1_000;
/// Number of ids of o200k_harmony.
const O200K_VOCAB: u32 = 201_088;

/// The whole vocabulary of gpt-oss, for model files without one.
pub fn o200k_harmony() -> VocabularyLists {
    VocabularyKind::O200k.build().into_lists()
}

/// The tokens of [`o200k_harmony`] with a special role.
pub const O200K_SPECIAL: SpecialTokens =
    SpecialTokens { bos: Some(199_998), eos: Some(200_002), padding: Some(199_999) };

impl VocabularyKind {
    /// Number of tokens.
    pub(crate) fn tokens(self) -> usize {
        match self {
            VocabularyKind::O200k => O200K_VOCAB as usize,
            VocabularyKind::Small => self.build().tokens.len(),
        }
    }

    pub(crate) fn build(self) -> Vocabulary {
        let o200k = tiktoken_rs::o200k_harmony_singleton();
        let token = |id: u32| o200k.decode_bytes(&[id]).expect("o200k_harmony has no gaps");
        let ranks = match self {
            VocabularyKind::O200k => O200K_RANKS,
            VocabularyKind::Small => SMALL_RANKS,
        };
        let bytes: Vec<Vec<u8>> = (0..ranks).map(token).collect();
        let control = (O200K_RANKS..O200K_VOCAB)
            .map(|id| String::from_utf8(token(id)).expect("control tokens are ASCII"))
            .filter(|name| self == VocabularyKind::O200k || !name.contains("reserved"));

        let alphabet = byte_characters();
        let spell = |bytes: &[u8]| bytes.iter().map(|&b| alphabet[usize::from(b)]).collect::<String>();
        let merges =
            merges(&bytes).into_iter().map(|(left, right)| format!("{} {}", spell(left), spell(right))).collect();
        let mut tokens: Vec<String> = bytes.iter().map(|bytes| spell(bytes)).collect();
        let first_control = tokens.len();
        tokens.extend(control);
        Vocabulary { tokens, merges, first_control }
    }
}

/// The merges that are equivalent to tiktoken's rule, which merges any two neighbours whose concatenation is a token, lowest rank first: for
/// each token in order of rank, every split into two tokens, sorted by the ranks of the two.
fn merges(tokens: &[Vec<u8>]) -> Vec<(&[u8], &[u8])> {
    let ranks: HashMap<&[u8], usize> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
    let mut merges = Vec::new();
    for token in tokens {
        let mut splits: Vec<_> = (1..token.len())
            .map(|at| token.split_at(at))
            .filter_map(|(left, right)| Some((ranks.get(left)?, ranks.get(right)?, left, right)))
            .collect();
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|(_, _, left, right)| (left, right)));
    }
    merges
}

impl Vocabulary {
    pub fn special(&self) -> SpecialTokens {
        let id = |name: &str| {
            let position = self.tokens.iter().rposition(|token| token == name);
            Some(position.expect("harmony names this control token") as u32)
        };
        SpecialTokens { bos: id("<|startoftext|>"), eos: id("<|return|>"), padding: id("<|endoftext|>") }
    }

    pub fn into_gguf(self) -> Vec<(String, MetadataValue)> {
        let special = self.special();
        self.into_lists().into_gguf(special, None)
    }

    pub fn into_lists(self) -> VocabularyLists {
        let kind = |id| if id < self.first_control { NORMAL } else { CONTROL };
        let kinds = (0..self.tokens.len()).map(kind).collect();
        VocabularyLists { tokens: self.tokens, merges: self.merges, kinds }
    }
}
