//! The CPU engine of phase 5. Its kernels read packed weights directly from the mapped file.
//!
//! [`CpuEngine`] computes all sequences of a batch together: their new tokens form one matrix, so that every weight is read once per step.
//! `forward.rs` is the forward pass, from top to bottom, and `experts.rs` the mixture of experts; the arithmetic is in the crate
//! `cpu-kernels`.

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
