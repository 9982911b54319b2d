//! Tokens that stand in text as they are: control tokens, and those that somebody added to the vocabulary.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// Some tokens by their texts.
pub(super) struct AddedTokens {
    finder: AhoCorasick,
    /// In the order of the finder's patterns.
    ids: Vec<u32>,
}

/// A stretch of text, or a token in it.
pub(super) enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

impl AddedTokens {
    /// A token without text, which would be everywhere, is left out.
    ///
    /// # Errors
    /// More text than can be searched for.
    pub fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Result<AddedTokens, String> {
        let (texts, ids): (Vec<&str>, Vec<u32>) = tokens.filter(|(text, _)| !text.is_empty()).unzip();
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // A table of all transitions would take a kilobyte for every byte of a token, however long a file makes it.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(texts);
        Ok(AddedTokens { finder: finder.map_err(|error| error.to_string())?, ids })
    }

    /// Cuts a text at the tokens in it, of which the first counts, and the longest of those that begin there.
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
