//! Phase 5: the same logits as phase 3, computed fast. Flash attention and fused kernels on packed weights.

pub mod cpu;
pub mod gpu;
mod pages;

pub use cpu::{CpuEngine, CpuLoadError, CpuOptions};
pub use pages::cache_bytes;
