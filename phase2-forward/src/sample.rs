//! Tokens to use in measurements.

/// Tokens spread over the vocabulary, the same in every run. Of two sequences with the same seed, the shorter is a prefix of the longer.
pub fn sample_tokens(seed: usize, count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|index| ((seed * 104_729 + index * 7_919 + 13) % vocab) as u32).collect()
}
