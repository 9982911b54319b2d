//! The number formats that weights are stored in and that keys and values are cached in: sizes, encoding and decoding.
//!
//! All engines and kernel crates share these definitions. The feature `cube` adds versions for CubeCL kernels. This crate has no notion of
//! files, tensors or devices.

pub mod cache_block;
mod cache_format;
#[cfg(feature = "cube")]
pub mod cube;
pub mod mxfp4;
mod storage;

pub use cache_format::CacheFormat;
pub use storage::Storage;

/// Number of values in a block of a quantized format. Kernels read the other formats in blocks of this size too.
pub const BLOCK: usize = 32;
