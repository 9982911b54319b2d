//! Random numbers of tests, and the seeds that repeat them.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The environment variable with the seed of an earlier run, which repeats that run.
const VARIABLE: &str = "TEST_SEED";

/// The seed in `TEST_SEED`, or a new one if the variable is not set. The seed is printed, so that the output of a failed test shows it.
///
/// # Panics
/// If `TEST_SEED` is not a number.
pub fn test_seed() -> u64 {
    let seed = match std::env::var(VARIABLE) {
        Ok(seed) => seed.parse().unwrap_or_else(|error| panic!("{VARIABLE}={seed}: {error}")),
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    println!("repeat with {VARIABLE}={seed}");
    seed
}

/// A random generator with reproducible numbers (SplitMix64; Steele et al., OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { seed, state: seed }
    }

    /// A generator with [`test_seed`].
    pub fn fresh() -> Random {
        Random::new(test_seed())
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform on the integers of `0..end`, except for a bias below `end` / 2⁶⁴; `end` must be positive.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// One of `choices`, which must not be empty.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Uniform on `[−spread, spread)`.
    pub fn value(&mut self, spread: f32) -> f32 {
        ((self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * spread
    }

    /// `count` numbers, uniform on `[−spread, spread)`.
    pub fn values(&mut self, count: usize, spread: f32) -> Vec<f32> {
        (0..count).map(|_| self.value(spread)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of Java's `SplittableRandom` with the seed 0.
    #[test]
    fn numbers_equal_splitmix() {
        let mut random = Random::new(0);
        let numbers = [random.bits(), random.bits(), random.bits()];
        assert_eq!(numbers, [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]);
    }
}
