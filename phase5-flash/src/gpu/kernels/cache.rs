//! How a cached key or value lies in words, and how pools of them grow.
//!
//! A page is `[kv_heads, 64, words]`. In f16 two neighbouring values share a word; in q8_0 four codes do, of blocks that hold
//! [their own scale](phase3_kvcache::block).

use cubecl::prelude::*;
use phase1_loading::{Format, GptOssConfig};
use phase3_kvcache::CacheType;
use phase3_kvcache::block::kernel::scale_among;
use phase3_kvcache::block::{self, BLOCK};

use super::codes::{half_value, signed_bytes};
use super::project::spread;
use crate::gpu::GpuError;
use crate::gpu::cache::PAGE;
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

/// A buffer of `words` words that begins with what `old` holds.
///
/// # Errors
/// More words than the device binds in one piece.
pub(crate) fn grow(gpu: &Gpu, old: &Buffer, words: usize) -> Result<Buffer, GpuError> {
    let need = words as u64 * 4;
    if need > gpu.binding_bytes {
        let what = "a layer's key/value cache (shorter sequences, fewer of them or --kv f16 need less)".into();
        return Err(GpuError::Limit { what, need, limit: gpu.binding_bytes });
    }
    let new = gpu.empty(words);
    let count = old.len.min(new.len) as u32;
    let (x, z) = spread(count.div_ceil(UNITS));
    // SAFETY: both buffers hold `count` words.
    unsafe {
        copy::launch_unchecked(
            &gpu.client,
            CubeCount::Static(x, 1, z),
            CubeDim::new_1d(UNITS),
            old.arg(),
            new.arg(),
            count,
        );
    }
    Ok(new)
}

#[cube(launch_unchecked)]
fn copy(from: &[u32], to: &mut [u32], count: u32) {
    let i = (CUBE_POS_Z * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if i < count {
        to[i as usize] = from[i as usize];
    }
}
