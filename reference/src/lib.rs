//! The golden cases: small models and what MLX computes on them, and how another engine is measured against that.
//!
//! The Python scripts beside this crate make the goldens; this crate only reads and compares. It knows no engine: phases
//! hand it plain `f32` slices. [`Random`] has the numbers of random tests.

mod check;
mod golden;
mod random;

pub use check::{Check, Limit};
pub use golden::{Case, Folder, Golden, GoldenError};
pub use random::{Random, test_seed};
