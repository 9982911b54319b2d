//! The golden cases: small models with MLX's results for them, and the comparison of other engines with these.
//!
//! The Python scripts in this folder create the goldens; this crate only reads and compares. It does not depend on engines: phases pass
//! plain `f32` slices. Tests of random models get their seed from [`test_seed`].

mod check;
mod golden;
mod seed;

pub use check::{Check, Limit};
pub use golden::{Case, Folder, Golden, GoldenError};
pub use seed::test_seed;
