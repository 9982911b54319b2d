//! The layout of cached keys and values in words.
//!
//! A page is `[kv_heads, 64, words]`. In f16 two neighbouring values share a word; in q8_0 a word has four codes of a
//! [block](formats::cache_block), which contains its own scale.

use cubecl::prelude::*;
use formats::cube::{block_scale, encode_block, f16_bits, f16_value};
use formats::{BLOCK, CacheFormat, cache_block};

use crate::error::Error;
use crate::floats::signed_bytes;

/// Positions per page.
pub const PAGE: usize = 64;

/// The shape of the keys, or values, of one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvRow {
    format: CacheFormat,
    kv_heads: usize,
    head_dim: usize,
}

impl KvRow {
    /// # Errors
    /// `head_dim` is not a multiple of [`CacheFormat::granule`].
    pub fn new(format: CacheFormat, kv_heads: usize, head_dim: usize) -> Result<KvRow, Error> {
        if !format.holds(head_dim) {
            let granule = format.granule();
            return Err(Error::Shape(format!(
                "a {format} cache needs heads of a multiple of {granule} values, but the model's have {head_dim}"
            )));
        }
        Ok(KvRow { format, kv_heads, head_dim })
    }

    pub const fn format(&self) -> CacheFormat {
        self.format
    }

    pub const fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    pub const fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Words of one head at one position.
    pub const fn words(&self) -> usize {
        self.format.row_bytes(self.head_dim) / 4
    }

    /// Number of values that are packed together.
    pub(crate) const fn granule(&self) -> usize {
        self.format.granule()
    }

    /// Words of a page.
    pub const fn page_words(&self) -> usize {
        self.kv_heads * PAGE * self.words()
    }

    /// Decodes the values of one head at one position.
    pub fn decode(&self, words: &[u32]) -> Vec<f32> {
        let half = |bits: u32| half::f16::from_bits(bits as u16).to_f32();
        match self.format {
            CacheFormat::F32 => words.iter().map(|&word| f32::from_bits(word)).collect(),
            CacheFormat::F16 => words.iter().flat_map(|&word| [half(word), half(word >> 16)]).collect(),
            CacheFormat::Q8_0 => {
                let codes: Vec<i8> = words.iter().flat_map(|word| word.to_le_bytes().map(|code| code as i8)).collect();
                codes.as_chunks::<BLOCK>().0.iter().flat_map(cache_block::decode).collect()
            }
        }
    }
}

/// Values `4 i` to `4 i + 3` of the row that begins at word `row`.
#[cube]
pub(crate) fn cached_vector(pool: &[u32], row: u32, i: u32, #[comptime] shape: KvRow) -> Vector<f32, Const<4>> {
    let mut vector = Vector::<f32, Const<4>>::empty();
    match comptime![shape.format()] {
        CacheFormat::F32 => {
            #[unroll]
            for j in 0..4u32 {
                vector.insert(comptime![j as usize], f32::reinterpret(pool[(row + 4 * i + j) as usize]));
            }
            vector
        }
        CacheFormat::F16 => {
            #[unroll]
            for j in 0..2u32 {
                let word = pool[(row + 2 * i + j) as usize];
                vector.insert(comptime![2 * j as usize], f16_value(word & 0xffffu32));
                vector.insert(comptime![2 * j as usize + 1], f16_value(word >> 16u32));
            }
            vector
        }
        CacheFormat::Q8_0 => {
            let first = row + (i >> 3u32 << 3u32);
            let scale = block_scale(pool[first as usize], pool[(first + 1) as usize]);
            signed_bytes(pool[(row + i) as usize]) * Vector::<f32, Const<4>>::new(scale)
        }
    }
}

/// Packs one [granule](KvRow::granule) of values, of which the first is value `first` of its head, into the row at word `row`.
#[cube]
pub(crate) fn append_to(pool: &mut [u32], row: u32, first: u32, new: &Array<f32>, #[comptime] shape: KvRow) {
    match comptime![shape.format()] {
        CacheFormat::F32 => pool[(row + first) as usize] = u32::reinterpret(new[0]),
        CacheFormat::F16 => {
            pool[(row + first / 2) as usize] = f16_bits(new[0]) | (f16_bits(new[1]) << 16u32);
        }
        CacheFormat::Q8_0 => {
            let mut words = Array::<u32>::new(8usize);
            encode_block(new, &mut words);
            #[unroll]
            for i in 0..8u32 {
                pool[(row + first / 4 + i) as usize] = words[comptime![i as usize]];
            }
        }
    }
}
