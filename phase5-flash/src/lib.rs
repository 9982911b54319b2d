//! Phase 5: computes the same logits as phase 3, up to rounding, but faster, with flash attention and fused kernels that read
//! packed weights.

pub mod cpu;
pub mod gpu;
mod pages;

pub use cpu::{CpuEngine, CpuLoadError, CpuOptions};
pub use pages::cache_bytes;
