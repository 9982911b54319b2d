//! Rotates the new tokens' queries and keys, and puts keys and values into the cache, packed as it packs them.

use cubecl::prelude::*;
use phase3_kvcache::CacheType;

use super::cache::CacheRow;
use super::codes::{half_bits, half_value};
use crate::gpu::cache::{LayerCache, PAGE};
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::rows::ROW_WORDS;
use phase1_loading::Format;

const UNITS: u32 = 128;
/// The least scale whose reciprocal is a number.
const LEAST_SCALE: f32 = 1.0e-30;

/// One pass's rotation and append.
pub(crate) struct Rope<'a> {
    /// Queries, keys and values `[inputs, (heads + 2 kv_heads) · head_dim]`.
    pub qkv: &'a Buffer,
    /// (cosine, sine) `[positions, head_dim / 2]`, each times YaRN's mscale.
    pub table: &'a Buffer,
    pub rows: &'a Buffer,
    pub cache: LayerCache<'a>,
    /// Rotated queries `[inputs, heads · head_dim]`.
    pub queries: &'a Buffer,
    pub heads: usize,
    pub shape: CacheRow,
    pub inputs: usize,
}

impl Rope<'_> {
    pub fn launch(&self, gpu: &Gpu) {
        let CacheRow { kv_heads, head_dim, .. } = self.shape;
        let units = (self.heads * head_dim + 2 * kv_heads * head_dim / self.shape.granule()) as u32;
        // SAFETY: positions are below the table's, and the sequence's pages were reserved.
        unsafe {
            rope::launch_unchecked(
                &gpu.client,
                CubeCount::Static(units.div_ceil(UNITS), self.inputs as u32, 1),
                CubeDim::new_1d(UNITS),
                self.qkv.arg(),
                self.table.arg2(),
                self.rows.arg(),
                self.cache.table.arg(),
                self.cache.pool.keys.arg(),
                self.cache.pool.values.arg(),
                self.queries.arg(),
                self.cache.columns as u32,
                self.cache.ring_pages as u32,
                self.heads as u32,
                self.shape,
            );
        }
    }
}

#[cube(launch_unchecked)]
fn rope(
    qkv: &[f32],
    table: &[Vector<f32, Const<2>>],
    rows: &[u32],
    pages: &[u32],
    keys: &mut [u32],
    values: &mut [u32],
    queries: &mut [f32],
    columns: u32,
    ring_pages: u32,
    #[comptime] heads: u32,
    #[comptime] shape: CacheRow,
) {
    let dim = comptime![shape.head_dim as u32];
    let kv_width = comptime![(shape.kv_heads * shape.head_dim) as u32];
    let q_width = comptime![heads * dim];
    let granule = comptime![shape.granule() as u32];
    let granules = comptime![kv_width / granule];
    let row = CUBE_POS_Y;
    let position = rows[(row * ROW_WORDS + 1) as usize];
    let slot = rows[(row * ROW_WORDS + 2) as usize];
    let start = row * comptime![q_width + 2 * kv_width];
    let unit = CUBE_POS_X * UNITS + UNIT_POS;

    if unit < q_width {
        queries[(row * q_width + unit) as usize] = rotated(qkv, table, start, unit, position, dim);
    } else if unit < comptime![q_width + 2 * granules] {
        let granule_number = unit - q_width;
        let is_key = granule_number < granules;
        let first = (granule_number % granules) * granule;
        let head = first / dim;
        let page = pages[(slot * columns + (position / comptime![PAGE as u32]) % ring_pages) as usize];
        let cell = (page * comptime![shape.kv_heads as u32] + head) * comptime![PAGE as u32]
            + position % comptime![PAGE as u32];
        let target = cell * comptime![shape.words() as u32];
        let mut new = Array::<f32>::new(comptime![granule as usize]);
        #[unroll]
        for i in 0..granule {
            let value = if is_key {
                rotated(qkv, table, start + q_width, first + i, position, dim)
            } else {
                qkv[(start + comptime![q_width + kv_width] + first + i) as usize]
            };
            new[comptime![i as usize]] = value;
        }
        if is_key {
            store(keys, target, first % dim, &new, shape);
        } else {
            store(values, target, first % dim, &new, shape);
        }
    }
}

/// Value `i` of heads that begin at `start`, rotated: within a head, value i pairs with value i + head_dim / 2.
#[cube]
fn rotated(
    qkv: &[f32],
    table: &[Vector<f32, Const<2>>],
    start: u32,
    i: u32,
    position: u32,
    #[comptime] dim: u32,
) -> f32 {
    let half = comptime![dim / 2];
    let within = i % dim;
    let angle = table[(position * half + within % half) as usize];
    let value = qkv[(start + i) as usize];
    let is_first = within < half;
    let partner = qkv[(start + select(is_first, i + half, i - half)) as usize];
    value * angle.extract(0usize) + select(is_first, -partner, partner) * angle.extract(1usize)
}

/// Packs a granule whose first value is value `first` of its head into the row at word `target`.
#[cube]
fn store(pool: &mut [u32], target: u32, first: u32, new: &Array<f32>, #[comptime] shape: CacheRow) {
    match comptime![shape.kind] {
        CacheType::F32 => pool[(target + first) as usize] = u32::reinterpret(new[0]),
        CacheType::F16 => {
            pool[(target + first / 2) as usize] = half_bits(new[0]) | (half_bits(new[1]) << 16u32);
        }
        CacheType::Q8_0 => {
            let mut scales = 0u32;
            #[unroll]
            for block in 0..comptime![shape.granule() as u32 / 32] {
                let mut largest = 0.0f32;
                #[unroll]
                for i in 0..32u32 {
                    largest = max(largest, new[comptime![(block * 32 + i) as usize]].abs());
                }
                let bits = half_bits(largest / 127.0f32);
                scales |= bits << comptime![16 * block];
                let scale = half_value(bits, Format::F16);
                let inverse = select(bits == 0u32, 0.0f32, 1.0f32 / max(scale, f32::new(LEAST_SCALE)));
                #[unroll]
                for word in 0..8u32 {
                    let mut codes = 0u32;
                    #[unroll]
                    for i in 0..4u32 {
                        let value = new[comptime![(block * 32 + word * 4 + i) as usize]] * inverse;
                        // Rounded to nearest; the bits of the sum's low byte are the code in two's complement.
                        let code = u32::reinterpret(max(min(value, 127.0f32), -127.0f32) + 12_582_912.0f32) & 255u32;
                        codes |= code << comptime![8 * i];
                    }
                    pool[(target + (first + comptime![block * 32]) / 4 + word) as usize] = codes;
                }
            }
            pool[(target + comptime![shape.head_dim as u32 / 4] + first / 64) as usize] = scales;
        }
    }
}
