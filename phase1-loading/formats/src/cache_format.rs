//! The number formats of the KV cache.

use std::fmt;

use crate::BLOCK;

/// The number format of a cache.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheFormat {
    #[default]
    F32,
    F16,
    /// Blocks of 32 values of a head with 8-bit codes. Unlike in Q8_0 weights, the eight bits of the scale are the
    /// [lowest bits of eight codes](crate::cache_block), so that a value takes one byte, half of [`CacheFormat::F16`].
    Q8_0,
}

impl CacheFormat {
    pub const ALL: [CacheFormat; 3] = [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0];

    pub fn name(self) -> &'static str {
        match self {
            CacheFormat::F32 => "f32",
            CacheFormat::F16 => "f16",
            CacheFormat::Q8_0 => "q8_0",
        }
    }

    /// Size in bytes of one head's key, or value, at one position. The format must [hold](CacheFormat::holds) `head_dim`; the size is
    /// then a multiple of 4.
    pub const fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            CacheFormat::F32 => 4 * head_dim,
            CacheFormat::F16 => 2 * head_dim,
            CacheFormat::Q8_0 => head_dim,
        }
    }

    /// Number of values of a head that are packed together into whole 32-bit words; `head_dim` must be a multiple of it.
    pub const fn granule(self) -> usize {
        match self {
            CacheFormat::F32 => 1,
            CacheFormat::F16 => 2,
            CacheFormat::Q8_0 => BLOCK,
        }
    }

    /// Whether heads of `head_dim` values can be stored in this format.
    pub fn holds(self, head_dim: usize) -> bool {
        head_dim.is_multiple_of(self.granule())
    }
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
