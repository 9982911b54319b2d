//! The golden cases: small models with MLX's results for them, and the comparison of other engines with these.
//!
//! The Python scripts in this folder create the goldens; this crate only reads and compares. It does not depend on engines: phases pass
//! plain `f32` slices. [`Random`] provides the numbers of random tests.

mod check;
mod golden;
mod random;

pub use check::{Check, Limit};
pub use golden::{Case, Folder, Golden, GoldenError};
pub use random::{Random, test_seed};
