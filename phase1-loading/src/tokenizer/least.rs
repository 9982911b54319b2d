//! A lower bound of the number of tokens of a text, computed without encoding it.

/// Computes a lower bound of the number of tokens of a text.
///
/// If the tokens that contain a certain byte have at most n bytes, each occurrence of that byte in a text makes up at least 1/n of its
/// token. The sum of these fractions over all bytes of a text is at most its number of tokens. In o200k, n is 26 for letters and 128 for
/// spaces.
pub(super) struct LeastTokens {
    /// For each byte, [`WHOLE`] / n, rounded down.
    parts: [u64; 256],
}

/// One token, in the fixed-point unit of [`LeastTokens::parts`].
const WHOLE: u64 = 1 << 32;

impl LeastTokens {
    /// `tokens` are the bytes of all tokens to which a text can be encoded.
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

    /// At most the number of tokens of `text`.
    pub fn of(&self, text: &str) -> usize {
        let parts = text.bytes().fold(0u64, |sum, byte| sum.saturating_add(self.parts[usize::from(byte)]));
        usize::try_from(parts.div_ceil(WHOLE)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_token_count_uses_longest_token_of_each_byte() {
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
