//! Rotates the new tokens' queries and keys, and puts keys and values into the cache, packed as it packs them.

use cubecl::prelude::*;
use phase3_kvcache::CacheType;
use phase3_kvcache::block::kernel::encode;

use super::cache::CacheRow;
use super::codes::half_bits;
use crate::gpu::cache::{LayerCache, PAGE};
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::rows::ROW_WORDS;

const UNITS: u32 = 128;

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
        let number = unit - q_width;
        let is_key = number < granules;
        let first = (number % granules) * granule;
        let page = pages[(slot * columns + (position / comptime![PAGE as u32]) % ring_pages) as usize];
        append(qkv, table, start + q_width, keys, values, page, position, is_key, first, shape);
    }
}

/// Puts the granule that begins with value `first` of a new position's keys, rotated, or of its values into `page`. The keys begin at
/// `start`, and the values follow them.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn append(
    qkv: &[f32],
    table: &[Vector<f32, Const<2>>],
    start: u32,
    keys: &mut [u32],
    values: &mut [u32],
    page: u32,
    position: u32,
    is_key: bool,
    first: u32,
    #[comptime] shape: CacheRow,
) {
    let dim = comptime![shape.head_dim as u32];
    let kv_width = comptime![(shape.kv_heads * shape.head_dim) as u32];
    let granule = comptime![shape.granule() as u32];
    let cell = (page * comptime![shape.kv_heads as u32] + first / dim) * comptime![PAGE as u32]
        + position % comptime![PAGE as u32];
    let target = cell * comptime![shape.words() as u32];
    let mut new = Array::<f32>::new(comptime![granule as usize]);
    #[unroll]
    for i in 0..granule {
        let value = if is_key {
            rotated(qkv, table, start, first + i, position, dim)
        } else {
            qkv[(start + kv_width + first + i) as usize]
        };
        new[comptime![i as usize]] = value;
    }
    if is_key {
        store(keys, target, first % dim, &new, shape);
    } else {
        store(values, target, first % dim, &new, shape);
    }
}

/// Value `i` of heads that begin at `start`, rotated: within a head, value i pairs with value i + head_dim / 2.
#[cube]
pub(super) fn rotated(
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
            let mut words = Array::<u32>::new(8usize);
            encode(new, &mut words);
            #[unroll]
            for i in 0..8u32 {
                pool[(target + first / 4 + i) as usize] = words[comptime![i as usize]];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::cache::Cache;
    use crate::gpu::kernels::testing::{Random, gpu, heads_config, poisoned};
    use crate::gpu::rows::Row;
    use phase1_loading::AttentionKind;
    use phase3_kvcache::block::{self, BLOCK};

    /// Keys that are rotated by nothing, and values, of every size that a scale reaches and some that none does: their blocks in
    /// the pool are those of the host.
    #[test]
    fn q8_0_blocks_are_the_hosts() {
        let gpu = gpu();
        let mut random = Random::fresh();
        let context = format!("{random:?}");
        let (heads, kv_heads, head_dim, inputs) = (3, 3, 96, 60);
        let config = heads_config([heads, kv_heads, head_dim], 8, vec![AttentionKind::Full]);
        let width = (heads + 2 * kv_heads) * head_dim;
        let mut qkv = random.values(inputs * width, 1.0);
        for values in qkv.as_chunks_mut::<BLOCK>().0 {
            let size = 2f32.powi(random.below(60) as i32 - 30);
            let zeros = random.below(4) == 0;
            for value in values {
                *value *= if zeros && random.below(2) == 0 { 0.0 } else { size };
            }
        }
        qkv[head_dim * heads + 40] = 3e38;
        let row = CacheRow::new(CacheType::Q8_0, &config).expect("whole blocks");
        let mut cache = Cache::new(&gpu, &config, row, 4, inputs);
        cache.extend(&gpu, &[(0, inputs)]).expect("room");
        let slot = cache.slot(0);
        let rows = (0..inputs as u32).flat_map(|position| Row { token: Some(0), position, slot }.words());
        Rope {
            qkv: &gpu.upload_f32(&qkv),
            table: &gpu.upload_f32(&[1.0, 0.0].repeat(inputs * head_dim / 2)),
            rows: &gpu.upload(rows.collect()),
            cache: cache.layer(0),
            queries: &poisoned(&gpu, inputs * heads * head_dim),
            heads,
            shape: cache.row,
            inputs,
        }
        .launch(&gpu);
        cache.pages.advance(0, inputs);
        let pool = cache.layer(0).pool;
        let row_words = cache.row.words();
        for (part, pool) in [&pool.keys, &pool.values].into_iter().enumerate() {
            let words = gpu.read(pool).expect("reads");
            for (position, place) in cache.places(0, 0, inputs) {
                for head in 0..kv_heads {
                    let found = &words[(place + head * PAGE) * row_words..][..row_words];
                    let new = &qkv[position * width + (heads + part * kv_heads + head) * head_dim..][..head_dim];
                    for (found, values) in found.as_chunks::<{ BLOCK / 4 }>().0.iter().zip(new.as_chunks().0) {
                        let found: [i8; BLOCK] = std::array::from_fn(|i| found[i / 4].to_le_bytes()[i % 4] as i8);
                        let expected = block::encode(values);
                        for i in 0..BLOCK {
                            let context = format!("{context}: {values:?} became {found:?}, expected {expected:?}");
                            let (parity, apart) = if i < 8 { (1, 2) } else { (0, 1) };
                            assert_eq!(found[i] & parity, expected[i] & parity, "{context}");
                            // GPUs may divide a last bit differently: a tie then goes the other way.
                            let quotient = values[i] / block::scale(&expected);
                            let tie = quotient - (f32::from(found[i]) + f32::from(expected[i])) / 2.0;
                            let at_tie = found[i].abs_diff(expected[i]) == apart && tie.abs() < 1e-4;
                            assert!(found[i] == expected[i] || at_tie, "{context}");
                        }
                    }
                }
            }
        }
    }
}
