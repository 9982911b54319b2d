//! Rotates queries and keys of new tokens, and appends keys and values to the cache in its format.

use cubecl::prelude::*;

use crate::device::{Buffer, Device};
use crate::kv::{KvCache, KvRow, PAGE, write_piece};
use crate::rows::ROW_WORDS;

const UNITS: u32 = 128;

/// Rotation and append of one pass.
pub struct Rope<'a> {
    /// Queries, keys and values `[inputs, (heads + 2 kv_heads) · head_dim]`.
    pub qkv: &'a Buffer,
    /// (cosine, sine) `[positions, head_dim / 2]`, each multiplied by YaRN's mscale.
    pub table: &'a Buffer,
    /// `[inputs]` [rows](crate::Row).
    pub rows: &'a Buffer,
    pub cache: KvCache<'a>,
    /// Rotated queries `[inputs, heads · head_dim]`.
    pub queries: &'a Buffer,
    pub heads: usize,
    pub inputs: usize,
}

impl Rope<'_> {
    /// Positions must be below the number of positions in `table`, and the rows' slots (rows of the page table) and their pages must exist,
    /// which is not checked.
    ///
    /// # Panics
    /// If a buffer is too short.
    pub fn launch(&self, device: &Device) {
        let row = self.cache.pool.row();
        let (kv_heads, head_dim) = (row.kv_heads(), row.head_dim());
        self.cache.check();
        self.qkv.expect("queries, keys and values", self.inputs * (self.heads + 2 * kv_heads) * head_dim);
        self.table.expect("the rotations", head_dim);
        self.rows.expect("the rows", self.inputs * ROW_WORDS as usize);
        self.queries.expect("the rotated queries", self.inputs * self.heads * head_dim);
        let units = (self.heads * head_dim) as u32 + 2 * kv_heads as u32 * row.pieces();
        // SAFETY: lengths are checked. Positions, slots and pages come from the rows and the page table; the caller promises that they are
        // in range.
        unsafe {
            rope::launch_unchecked(
                device.client(),
                CubeCount::Static(units.div_ceil(UNITS), self.inputs as u32, 1),
                CubeDim::new_1d(UNITS),
                self.qkv.arg(),
                self.table.arg2(),
                self.rows.arg(),
                self.cache.table.arg(),
                self.cache.pool.keys().arg4(),
                self.cache.pool.values().arg4(),
                self.queries.arg(),
                self.cache.columns as u32,
                self.cache.ring_word(),
                self.heads as u32,
                row,
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
    keys: &mut [Vector<u32, Const<4>>],
    values: &mut [Vector<u32, Const<4>>],
    queries: &mut [f32],
    columns: u32,
    ring_pages: u32,
    #[comptime] heads: u32,
    #[comptime] shape: KvRow,
) {
    let dim = comptime![shape.head_dim() as u32];
    let kv_width = comptime![(shape.kv_heads() * shape.head_dim()) as u32];
    let q_width = comptime![heads * dim];
    let piece = comptime![shape.piece_values() as u32];
    let pieces = comptime![kv_width / piece];
    let row = CUBE_POS_Y;
    let position = rows[(row * ROW_WORDS + 1) as usize];
    let slot = rows[(row * ROW_WORDS + 2) as usize];
    let start = row * comptime![q_width + 2 * kv_width];
    let unit = CUBE_POS_X * UNITS + UNIT_POS;

    if unit < q_width {
        queries[(row * q_width + unit) as usize] = rotated(qkv, table, start, unit, position, dim);
    } else if unit < comptime![q_width + 2 * pieces] {
        let number = unit - q_width;
        let is_key = number < pieces;
        let first = (number % pieces) * piece;
        let page = pages[(slot * columns + (position / comptime![PAGE as u32]) % ring_pages) as usize];
        append(qkv, table, start + q_width, keys, values, page, position, is_key, first, shape);
    }
}

/// Packs one piece (the numbers that are encoded together) of a new position, and stores it in `page`. The piece begins at number `first`
/// of the position's keys, which are rotated, or of its values. In `qkv` the keys begin at `start`, and the values follow them.
#[cube]
pub(crate) fn append(
    qkv: &[f32],
    table: &[Vector<f32, Const<2>>],
    start: u32,
    keys: &mut [Vector<u32, Const<4>>],
    values: &mut [Vector<u32, Const<4>>],
    page: u32,
    position: u32,
    is_key: bool,
    first: u32,
    #[comptime] shape: KvRow,
) {
    let dim = comptime![shape.head_dim() as u32];
    let kv_width = comptime![(shape.kv_heads() * shape.head_dim()) as u32];
    let piece = comptime![shape.piece_values() as u32];
    let kv_slot = (page * comptime![shape.kv_heads() as u32] + first / dim) * comptime![PAGE as u32]
        + position % comptime![PAGE as u32];
    let target = kv_slot * comptime![shape.vectors()] + first % dim / piece * comptime![shape.piece_vectors()];
    let mut new = Array::<f32>::new(comptime![piece as usize]);
    #[unroll]
    for i in 0..piece {
        let value = if is_key {
            rotated(qkv, table, start, first + i, position, dim)
        } else {
            qkv[(start + kv_width + first + i) as usize]
        };
        new[comptime![i as usize]] = value;
    }
    if is_key {
        write_piece(keys, target, &new, shape);
    } else {
        write_piece(values, target, &new, shape);
    }
}

/// Value `i` of heads that begin at `start`, rotated. Within a head, value i is paired with value i + head_dim / 2.
#[cube]
pub(crate) fn rotated(
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

#[cfg(test)]
mod tests {
    use formats::{BLOCK, CacheFormat, cache_block};

    use super::*;
    use crate::kv::KvPool;
    use crate::testing::{Random, TestCache, device, poisoned};

    /// Appends keys (with an identity rotation) and values whose magnitudes are inside and outside the range that a block's scale can
    /// represent. Their blocks in the pool must equal those that the host encodes.
    #[test]
    fn q8_0_blocks_equal_the_hosts() {
        let device = device();
        let mut random = Random::fresh();
        let context = format!("{random:?}");
        let (heads, kv_heads, head_dim, inputs) = (3, 3, 96, 60);
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
        let cache = appended(&device, &mut random, CacheFormat::Q8_0, [heads, kv_heads, head_dim], &qkv);
        let row = cache.pool.row();
        for (part, pool) in [cache.pool.keys(), cache.pool.values()].into_iter().enumerate() {
            let words = device.read(pool).expect("reads");
            for position in 0..inputs {
                for head in 0..kv_heads {
                    let found = &words[cache.word(0, position, head)..][..row.words()];
                    let new = &qkv[position * width + (heads + part * kv_heads + head) * head_dim..][..head_dim];
                    for (found, values) in found.as_chunks::<{ BLOCK / 4 }>().0.iter().zip(new.as_chunks().0) {
                        let found: [i8; BLOCK] = std::array::from_fn(|i| found[i / 4].to_le_bytes()[i % 4] as i8);
                        let expected = cache_block::encode(values);
                        for i in 0..BLOCK {
                            let context = format!("{context}: {values:?} became {found:?}, expected {expected:?}");
                            let (parity, apart) = if i < 8 { (1, 2) } else { (0, 1) };
                            assert_eq!(found[i] & parity, expected[i] & parity, "{context}");
                            // GPUs may round a division differently in the last bit, which changes the rounding of a tie.
                            let quotient = values[i] / cache_block::scale(&expected);
                            let tie = quotient - (f32::from(found[i]) + f32::from(expected[i])) / 2.0;
                            let at_tie = found[i].abs_diff(expected[i]) == apart && tie.abs() < 1e-4;
                            assert!(found[i] == expected[i] || at_tie, "{context}");
                        }
                    }
                }
            }
        }
    }

    /// 16-bit values are rounded to nearest; too large ones saturate, and NaN stays NaN.
    #[test]
    fn f16_values_are_rounded_to_nearest() {
        let device = device();
        let mut random = Random::fresh();
        let (heads, kv_heads, head_dim, inputs) = (1, 1, 64, 40);
        let width = (heads + 2 * kv_heads) * head_dim;
        let mut qkv = random.values(inputs * width, 1.0);
        for (i, value) in qkv.iter_mut().enumerate() {
            *value *= 2f32.powi(random.below(50) as i32 - 30);
            // Only the V part gets NaN and other special numbers: in keys, the rotation would spread a NaN to both halves of the head.
            if i % width >= 2 * head_dim && random.below(20) == 0 {
                let special = [f32::NAN, f32::INFINITY, -f32::INFINITY, 65_504.0, 65_519.9, -7e4, 1e-9, -0.0, 6e-8];
                *value = special[random.below(special.len())];
            }
        }
        let cache = appended(&device, &mut random, CacheFormat::F16, [heads, kv_heads, head_dim], &qkv);
        for (part, pool) in [cache.pool.keys(), cache.pool.values()].into_iter().enumerate() {
            let words = device.read(pool).expect("reads");
            for position in 0..inputs {
                let found = cache.pool.row().decode(&words[cache.word(0, position, 0)..][..head_dim / 2]);
                let new = &qkv[position * width + (heads + part) * head_dim..][..head_dim];
                for (&found, &value) in found.iter().zip(new) {
                    let expected = half::f16::from_f32(value.clamp(-65_504.0, 65_504.0)).to_f32();
                    let same = found == expected || found.is_nan() && expected.is_nan();
                    assert!(same, "{value} became {found}, expected {expected}: {random:?}");
                }
            }
        }
    }

    /// The cache of a sequence to which tokens with these queries, keys and values were appended with an identity rotation.
    fn appended(
        device: &Device,
        random: &mut Random,
        format: CacheFormat,
        [heads, kv_heads, head_dim]: [usize; 3],
        qkv: &[f32],
    ) -> TestCache {
        let row = KvRow::new(format, kv_heads, head_dim).expect("whole blocks");
        let inputs = qkv.len() / ((heads + 2 * kv_heads) * head_dim);
        let pool = KvPool::new(device, row, 3);
        let cache = TestCache::new(device, random, pool, [1, 2, 2]);
        let rows =
            (0..inputs as u32).flat_map(|position| crate::rows::Row { token: Some(0), position, slot: 0 }.words());
        Rope {
            qkv: &device.upload_f32(qkv),
            table: &device.upload_f32(&[1.0, 0.0].repeat(inputs * head_dim / 2)),
            rows: &device.upload(rows.collect()),
            cache: cache.view(),
            queries: &poisoned(device, inputs * heads * head_dim),
            heads,
            inputs,
        }
        .launch(device);
        cache
    }
}
