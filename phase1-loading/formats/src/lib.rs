//! The number formats in which engines multiply weights without converting them first, and in which keys and values are cached: sizes,
//! encoding and decoding. Other formats of model files, such as K-quants, are decoded by phase 1.
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

/// Number of values in a block of this crate's quantized formats. Kernels read its other formats in blocks of this size too.
pub const BLOCK: usize = 32;
