//! The fewest tokens that a text can have, found without encoding it.

/// A lower bound of the number of tokens of a text.
///
/// If no token with a certain byte is longer than n bytes, each such byte in a text is at least one n-th of its token. Over a whole text
/// these parts add up to no more than the number of tokens. In o200k, letters are in tokens of 26 bytes at most, and spaces of 128.
pub(super) struct LeastTokens {
    /// For each byte, [`WHOLE`] / n, rounded down.
    parts: [u64; 256],
}

/// One token.
const WHOLE: u64 = 1 << 32;

impl LeastTokens {
    /// `tokens` are the bytes of all tokens that a text can have.
    pub fn new<'a>(tokens: impl Iterator<Item = &'a [u8]>) -> LeastTokens {
        let mut longest = [1u64; 256];
        for token in tokens {
            for &byte in token {
                let longest = &mut longest[usize::from(byte)];
                *longest = (*longest).max(token.len() as u64);
            }
        }
        LeastTokens { parts: longest.map(|longest| WHOLE / longest) }
    }

    pub fn of(&self, text: &str) -> usize {
        let parts = text.bytes().fold(0u64, |sum, byte| sum.saturating_add(self.parts[usize::from(byte)]));
        usize::try_from(parts.div_ceil(WHOLE)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_a_part_of_the_longest_token_that_it_is_in() {
        let least = LeastTokens::new([&b"a"[..], b"b", b"c", b"abc", b"bb", b"cccccccc"].into_iter());
        for (text, expected) in
            [("", 0), ("a", 1), ("aaa", 1), ("aaaa", 2), ("abc", 1), ("cccccccc", 1), ("ccccccccc", 2), ("xyz", 3)]
        {
            assert_eq!(least.of(text), expected, "{text}");
        }
        assert_eq!(least.of(&"a".repeat(3_000_000)), 1_000_000);
        assert_eq!(least.of(&"a".repeat(3_000_001)), 1_000_001);
    }
}
