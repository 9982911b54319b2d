//! The number formats that weights are stored in and that keys and values are cached in: sizes, encoding and decoding.
//!
//! Every engine and kernel crate shares these definitions. Host code is plain Rust; the feature `cube` adds what CubeCL kernels
//! need. This crate knows no files, tensors or devices.

pub mod cache_block;
mod cache_format;
#[cfg(feature = "cube")]
pub mod cube;
pub mod mxfp4;
mod storage;

pub use cache_format::CacheFormat;
pub use storage::Storage;

/// Values of a block. Quantized formats are stored in blocks of this size; kernels read the others in the same pieces.
pub const BLOCK: usize = 32;
