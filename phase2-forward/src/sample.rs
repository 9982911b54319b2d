//! Tokens to use in measurements.

/// Tokens from all over the vocabulary, the same in every run. Two calls with the same seed give sequences with a common beginning.
pub fn sample_tokens(seed: usize, count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|index| ((seed * 104_729 + index * 7_919 + 13) % vocab) as u32).collect()
}
