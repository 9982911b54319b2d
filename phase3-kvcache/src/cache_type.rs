//! How keys and values are stored.

use std::fmt;
use std::str::FromStr;

use crate::block::BLOCK;

/// The number format of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheType {
    #[default]
    F32,
    F16,
    /// Blocks of 32 along a head's values, a byte each: Q8_0's grid with the scale [inside the codes](crate::block), so that it
    /// takes half of [`CacheType::F16`]'s bytes.
    Q8_0,
}

impl CacheType {
    pub const ALL: [CacheType; 3] = [CacheType::F32, CacheType::F16, CacheType::Q8_0];

    pub fn name(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::F16 => "f16",
            CacheType::Q8_0 => "q8_0",
        }
    }

    /// Bytes of one head's keys, or values, at one position: `head_dim` values that the type [holds](CacheType::holds), in whole 32-bit words.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            CacheType::F32 => 4 * head_dim,
            CacheType::F16 => 2 * head_dim,
            CacheType::Q8_0 => head_dim,
        }
    }

    /// Whether rows of `head_dim` values can be stored so.
    pub fn holds(self, head_dim: usize) -> bool {
        self != CacheType::Q8_0 || head_dim.is_multiple_of(BLOCK)
    }
}

impl fmt::Display for CacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CacheType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = CacheType::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| format!("expected one of {}", CacheType::ALL.map(CacheType::name).join(", ")))
    }
}
