//! The CPU: kernels on packed weights straight from the mapped file.
//!
//! [`CpuEngine`] advances all sequences of a batch together: their new tokens are one matrix, so that every weight is read
//! once a step. `forward.rs` is the forward pass, top to bottom, with the experts in `experts.rs`; the arithmetic is the crate `cpu-kernels`.

mod attention;
mod cache;
mod choice;
mod engine;
mod experts;
mod forward;
mod model;
mod part;
mod scratch;
mod shortlist;
mod threads;
mod weight_check;

pub use cpu_kernels::Isa;
pub use engine::{CpuEngine, CpuOptions};
pub use model::CpuLoadError;
