//! Seeds of tests that draw new random numbers in every run.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The environment variable that repeats a run.
const VARIABLE: &str = "TEST_SEED";

/// The number in `TEST_SEED`, or else a new one. It is printed, so that the output of a failed test shows it.
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
