//! How a cached key or value lies in words, and how pages of them are copied and cleared.
//!
//! A page is `[kv_heads, 64, words]`. In f16 two neighbouring values share a word; in q8_0 four codes do, of blocks that hold
//! [their own scale](phase3_kvcache::block).

use cubecl::prelude::*;
use phase1_loading::{Format, GptOssConfig};
use phase3_kvcache::CacheType;
use phase3_kvcache::block::kernel::scale_among;
use phase3_kvcache::block::{self, BLOCK};

use super::codes::{half_value, signed_bytes};
use crate::gpu::GpuError;
use crate::gpu::cache::{PAGE, Pool};
use crate::gpu::device::{Buffer, Gpu};

const UNITS: u32 = 256;

/// The shape of what one head keeps of one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CacheRow {
    pub kind: CacheType,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl CacheRow {
    /// # Errors
    /// A head that does not fill the format's blocks.
    pub fn new(kind: CacheType, config: &GptOssConfig) -> Result<CacheRow, GpuError> {
        let GptOssConfig { kv_heads, head_dim, .. } = *config;
        let block = match kind {
            CacheType::F32 => 1,
            CacheType::F16 => 2,
            CacheType::Q8_0 => BLOCK,
        };
        if head_dim % block != 0 {
            return Err(GpuError::Shape(format!(
                "a {kind} cache packs {block} values of a head together, and heads have {head_dim}; use another --kv"
            )));
        }
        Ok(CacheRow { kind, kv_heads, head_dim })
    }

    /// Words of one head's row.
    pub fn words(&self) -> usize {
        self.kind.row_bytes(self.head_dim) / 4
    }

    /// Values that are written together.
    pub fn granule(&self) -> usize {
        match self.kind {
            CacheType::F32 => 1,
            CacheType::F16 => 2,
            CacheType::Q8_0 => BLOCK,
        }
    }

    pub fn page_words(&self) -> usize {
        self.kv_heads * PAGE * self.words()
    }

    /// The values of a row.
    pub fn decode(&self, words: &[u32]) -> Vec<f32> {
        let half = |bits: u32| half::f16::from_bits(bits as u16).to_f32();
        match self.kind {
            CacheType::F32 => words.iter().map(|&word| f32::from_bits(word)).collect(),
            CacheType::F16 => words.iter().flat_map(|&word| [half(word), half(word >> 16)]).collect(),
            CacheType::Q8_0 => {
                let codes: Vec<i8> = words.iter().flat_map(|word| word.to_le_bytes().map(|code| code as i8)).collect();
                codes.as_chunks().0.iter().flat_map(block::decode).collect()
            }
        }
    }
}

/// Values `4 i` to `4 i + 3` of the row that begins at word `row`.
#[cube]
pub(crate) fn cached_vector(pool: &[u32], row: u32, i: u32, #[comptime] shape: CacheRow) -> Vector<f32, Const<4>> {
    let mut vector = Vector::<f32, Const<4>>::empty();
    match comptime![shape.kind] {
        CacheType::F32 => {
            #[unroll]
            for j in 0..4u32 {
                vector.insert(comptime![j as usize], f32::reinterpret(pool[(row + 4 * i + j) as usize]));
            }
            vector
        }
        CacheType::F16 => {
            #[unroll]
            for j in 0..2u32 {
                let word = pool[(row + 2 * i + j) as usize];
                vector.insert(comptime![2 * j as usize], half_value(word & 0xffffu32, Format::F16));
                vector.insert(comptime![2 * j as usize + 1], half_value(word >> 16u32, Format::F16));
            }
            vector
        }
        CacheType::Q8_0 => {
            let first = row + (i >> 3u32 << 3u32);
            let scale = scale_among(pool[first as usize], pool[(first + 1) as usize]);
            signed_bytes(pool[(row + i) as usize]) * Vector::<f32, Const<4>>::new(scale)
        }
    }
}

/// Stands for the page that a cleared one is a copy of.
pub(crate) const NO_PAGE: u32 = u32::MAX;

/// Makes pages of a pool copies of others, or zeros: `pairs` is `[count, (from, to)]` with [`NO_PAGE`] for zeros. No page is both read
/// and written.
pub(crate) fn prepare_pages(gpu: &Gpu, pool: &Pool, pairs: &Buffer, count: usize, page_words: usize) {
    assert!(pairs.len >= 2 * count, "two words for every page");
    // SAFETY: pages lie in the pool, and words are bounded by a page's.
    unsafe {
        prepare_pages_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static((page_words as u32).div_ceil(UNITS), count as u32, 1),
            CubeDim::new_1d(UNITS),
            pairs.arg(),
            pool.keys.arg(),
            pool.values.arg(),
            page_words as u32,
        );
    }
}

#[cube(launch_unchecked)]
fn prepare_pages_kernel(pairs: &[u32], keys: &mut [u32], values: &mut [u32], page_words: u32) {
    let i = CUBE_POS_X * UNITS + UNIT_POS;
    if i < page_words {
        let page = pairs[(2 * CUBE_POS_Y) as usize];
        let to = (pairs[(2 * CUBE_POS_Y + 1) as usize] * page_words + i) as usize;
        if page == NO_PAGE {
            keys[to] = 0u32;
            values[to] = 0u32;
        } else {
            let from = (page * page_words + i) as usize;
            keys[to] = keys[from];
            values[to] = values[from];
        }
    }
}
