//! Tokens that are matched in text literally: control tokens, and tokens added to the vocabulary.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// A set of tokens, searched for by their texts.
pub(super) struct AddedTokens {
    finder: AhoCorasick,
    /// In the order of the searcher's patterns.
    ids: Vec<u32>,
}

/// A piece of text without such a token, or a token.
pub(super) enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

impl AddedTokens {
    /// Skips tokens without text, which would match everywhere.
    ///
    /// # Errors
    /// The patterns are too long to search for.
    pub fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Result<AddedTokens, String> {
        let (texts, ids): (Vec<&str>, Vec<u32>) = tokens.filter(|(text, _)| !text.is_empty()).unzip();
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // A DFA would take a kilobyte for every byte of a token, and a file may contain tokens of any length.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(texts);
        Ok(AddedTokens { finder: finder.map_err(|error| error.to_string())?, ids })
    }

    /// Splits a text at the tokens in it. The leftmost match wins, and the longest of those that begin at the same place.
    pub fn parts<'t>(&self, text: &'t str) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        let mut done = 0;
        for found in self.finder.find_iter(text) {
            if found.start() > done {
                parts.push(Part::Text(&text[done..found.start()]));
            }
            parts.push(Part::Token(self.ids[found.pattern().as_usize()]));
            done = found.end();
        }
        if done < text.len() {
            parts.push(Part::Text(&text[done..]));
        }
        parts
    }
}
