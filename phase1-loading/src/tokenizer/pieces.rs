//! Pre-tokenization: splits text into pieces; merges never cross the border of a piece.

use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};

/// The alternatives of o200k's pattern (`gpt-4o` in GGUF) that need no lookahead: words with at most one leading non-letter and at most
/// one English contraction, numbers of up to three digits, punctuation runs, line breaks.
macro_rules! without_white_space {
    () => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"|\s*[\r\n]+",
        )
    };
}

/// The whole pattern, as `tokenizer.json` files contain it.
pub(super) const O200K_PATTERN: &str = concat!(without_white_space!(), r"|\s+(?!\S)|\s+");

/// The pattern without the lookahead, which [`Pieces`] does in code. This regular expression takes linear time and cannot fail on a long
/// run of white space, where backtracking engines give up after some million steps.
static PATTERN: LazyLock<Regex> = LazyLock::new(|| {
    let mut builder = RegexBuilder::new(concat!(without_white_space!(), r"|\s+"));
    // Enough space for the states of the large Unicode classes, so that they are not computed repeatedly.
    builder.dfa_size_limit(16 << 20).build().expect("the pattern is constant")
});

/// Iterates over the pieces of a text. Concatenated, they are the text.
pub(super) struct Pieces<'t> {
    rest: &'t str,
}

impl<'t> Pieces<'t> {
    pub fn of(text: &'t str) -> Pieces<'t> {
        Pieces { rest: text }
    }
}

impl<'t> Iterator for Pieces<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        if self.rest.is_empty() {
            return None;
        }
        // Every character should begin a match. If one does not, it becomes a separate piece, so that no text is lost.
        let end = match PATTERN.find(self.rest) {
            Some(found) if found.start() == 0 => found.end(),
            Some(found) => found.start(),
            None => self.rest.len(),
        };
        let end = end - left_to_the_next(&self.rest[..end], end == self.rest.len());
        let (piece, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(piece)
    }
}

/// Number of bytes at the end of a piece that belong to the next piece, as `\s+(?!\S)` requires: the last of several white-space characters
/// before other text begins the next piece. Only the pattern's last alternative ends in white space other than a line break.
fn left_to_the_next(piece: &str, ends_the_text: bool) -> usize {
    let last = piece.chars().next_back().filter(|c| c.is_whitespace() && !matches!(c, '\r' | '\n'));
    match last.map(char::len_utf8) {
        Some(bytes) if !ends_the_text && bytes < piece.len() => bytes,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<&str> {
        Pieces::of(text).collect()
    }

    #[test]
    fn last_space_belongs_to_the_next_word() {
        assert_eq!(pieces("a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces("a b  "), ["a", " b", "  "]);
        assert_eq!(pieces("\t\u{3000}x"), ["\t", "\u{3000}x"]);
        assert_eq!(pieces(" \n  7"), [" \n", " ", " ", "7"]);
        assert_eq!(pieces("  \n\n"), ["  \n\n"]);
        assert_eq!(pieces("I'M a/b\n"), ["I'M", " a", "/b", "\n"]);
        assert!(pieces("").is_empty());
    }
}
