//! Attention of several new tokens of a sequence at once: all query heads of a key/value head, for a few rows, share the keys and
//! values that a cube reads. Softmax runs along with the keys, so that nothing is kept for a pair of positions.
//!
//! A cube takes 32 queries and, again and again, 32 keys. A unit has four queries, and of these first the scores of four keys, then
//! the sums of two times four values.
//!
//! Ladder (H100, 512 rows to 4,096 keys, f32): row by row 5.6 ms (5.8 TFLOP/s), here 1.7 ms (18.6).

use cubecl::prelude::*;
use phase1_loading::GptOssConfig;

use super::attention::{Attention, NOTHING, Shape, with_sink};
use super::cache::cached_vector;
use super::gemm::turned;
use super::share::Share;
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::rows::Row;

/// Queries of a tile.
const QUERIES: u32 = 32;
/// Keys that a cube works on at once; divides a page.
const KEYS: u32 = 32;
/// Units that share four queries.
const SHARERS: u32 = KEYS / 4;
const UNITS: u32 = QUERIES / 4 * SHARERS;
/// Vectors from four dimensions of the keys to the next four: one too many, so that lanes store to different banks.
const KEYS_STRIDE: u32 = 4 * KEYS / 4 + 1;
/// Vectors from the probabilities of four keys to those of the next four, likewise.
const CHANCES_STRIDE: u32 = 4 * QUERIES / 4 + 1;
/// The most dimensions of a head: keys and queries of more would not fit shared memory.
const MOST_DIM: usize = 64;

/// Words that describe a tile: its first row, and rows.
pub(crate) const TILE_WORDS: usize = 2;

/// Rows that a tile holds; `None` if heads have a shape that this kernel does not take.
pub(crate) fn rows_a_tile(config: &GptOssConfig) -> Option<usize> {
    let group = config.heads / config.kv_heads;
    let fits = config.head_dim <= MOST_DIM && group <= QUERIES as usize;
    fits.then(|| QUERIES as usize / group)
}

/// Tiles over a pass's rows, of `most` rows at most: a tile's rows are of one sequence and follow each other.
pub(crate) fn tiles(rows: &[Row], most: usize) -> Vec<u32> {
    let mut tiles: Vec<[u32; TILE_WORDS]> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let follows = |before: &Row| before.slot == row.slot && before.position + 1 == row.position;
        match tiles.last_mut() {
            Some([_, count]) if (*count as usize) < most && follows(&rows[i - 1]) => *count += 1,
            _ => tiles.push([i as u32, 1]),
        }
    }
    tiles.concat()
}

impl Attention<'_> {
    /// As [`Attention::launch`], over `count` tiles of the rows, as [`tiles`] makes them.
    pub fn launch_tiles(&self, gpu: &Gpu, tiles: &Buffer, count: usize) {
        let shape = Shape { row: self.shape, heads: self.heads as u32, units: UNITS, whole: self.splits == 1 };
        // SAFETY: a row's pages were reserved up to its position, and every output has its place in the buffers.
        unsafe {
            attention::launch_unchecked(
                &gpu.client,
                self.cubes(count),
                CubeDim::new_1d(UNITS),
                self.queries.arg4(),
                self.rows.arg(),
                tiles.arg(),
                self.cache.table.arg(),
                self.cache.pool.keys.arg(),
                self.cache.pool.values.arg(),
                self.sinks.arg(),
                self.target().arg(),
                self.cache.columns as u32,
                self.cache.ring_pages as u32,
                self.reach_word(),
                self.scale(),
                self.splits as u32,
                shape,
            );
        }
        self.combine_shares(gpu, shape);
    }
}

#[cube(launch_unchecked)]
fn attention(
    queries: &[Vector<f32, Const<4>>],
    rows: &[u32],
    tiles: &[u32],
    pages: &[u32],
    keys: &[u32],
    values: &[u32],
    sinks: &[f32],
    out: &mut [f32],
    columns: u32,
    ring_pages: u32,
    reach: u32,
    scale: f32,
    splits: u32,
    #[comptime] shape: Shape,
) {
    let dim = comptime![shape.dim()];
    let fours = comptime![shape.vectors()];
    let group = comptime![shape.group()];
    let kv_heads = comptime![shape.row.kv_heads as u32];
    let words = comptime![shape.row.words() as u32];
    // Vectors of a unit's dimensions, for each of its queries.
    let own = comptime![fours.div_ceil(SHARERS)];
    // `[dim, 32 queries]`; `[dim, 32 keys]`, and after the scores the values `[32 keys, dim]`; `[32 keys, 32 queries]`.
    let mut query = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(dim * QUERIES / 4) as usize]);
    let mut tile = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(fours * KEYS_STRIDE) as usize]);
    let mut chances = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(SHARERS * CHANCES_STRIDE) as usize]);
    let mut shared = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![UNITS as usize]);

    let kv_head = CUBE_POS_X;
    let split = CUBE_POS_Y;
    let first_row = tiles[(CUBE_POS_Z * comptime![TILE_WORDS as u32]) as usize];
    let count = tiles[(CUBE_POS_Z * comptime![TILE_WORDS as u32] + 1) as usize];
    let share = Share::new(rows, first_row, count, reach, splits, KEYS);
    let own_four = UNIT_POS / SHARERS;
    let sharer = UNIT_POS % SHARERS;

    #[unroll]
    for round in 0..comptime![(fours * QUERIES / 4).div_ceil(UNITS)] {
        let i = UNIT_POS + comptime![round * UNITS];
        if i < comptime![fours * QUERIES / 4] {
            let mut square = Array::<Vector<f32, Const<4>>>::new(4usize);
            #[unroll]
            for j in 0..4u32 {
                let number = i / fours * 4 + j;
                let row = first_row + min(number / group, count - 1);
                let head = kv_head * group + number % group;
                let four = queries[((row * shape.heads + head) * fours + i % fours) as usize];
                square[comptime![j as usize]] = four * Vector::<f32, Const<4>>::new(scale);
            }
            #[unroll]
            for j in 0..4u32 {
                query[((i % fours * 4 + j) * comptime![QUERIES / 4] + i / fours) as usize] = turned(&square, j);
            }
        }
    }

    let mut positions = Array::<u32>::new(4usize);
    #[unroll]
    for j in 0..4u32 {
        positions[comptime![j as usize]] = share.position + min((own_four * 4 + j) / group, count - 1);
    }

    let mut largest = Vector::<f32, Const<4>>::new(f32::new(NOTHING));
    let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
    let mut mixed = Array::<Vector<f32, Const<4>>>::new(comptime![(4 * own) as usize]);
    #[unroll]
    for i in 0..comptime![4 * own] {
        mixed[comptime![i as usize]] = Vector::<f32, Const<4>>::new(0.0f32);
    }

    let mut number = share.start;
    while number < share.end {
        let cells = share.cells(number, pages, columns, ring_pages, kv_heads, KEYS);
        #[unroll]
        for round in 0..comptime![(fours * KEYS / 4).div_ceil(UNITS)] {
            let i = UNIT_POS + comptime![round * UNITS];
            if i < comptime![fours * KEYS / 4] {
                let mut square = Array::<Vector<f32, Const<4>>>::new(4usize);
                #[unroll]
                for j in 0..4u32 {
                    let row = (cells + i / fours * 4 + j) * words;
                    square[comptime![j as usize]] = cached_vector(keys, row, i % fours, shape.row);
                }
                #[unroll]
                for j in 0..4u32 {
                    let at = i % fours * KEYS_STRIDE + comptime![j * KEYS / 4] + i / fours;
                    tile[at as usize] = turned(&square, j);
                }
            }
        }
        sync_cube();

        let mut scores = Array::<Vector<f32, Const<4>>>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            scores[i] = Vector::<f32, Const<4>>::new(0.0f32);
        }
        for four in 0..fours {
            #[unroll]
            for d in 0..4u32 {
                let q = query[((four * 4 + d) * comptime![QUERIES / 4] + own_four) as usize];
                let k = tile[(four * KEYS_STRIDE + comptime![d * KEYS / 4] + sharer) as usize];
                #[unroll]
                for i in 0..4usize {
                    scores[i] = fma(Vector::<f32, Const<4>>::new(k.extract(i)), q, scores[i]);
                }
            }
        }
        let mut most = largest;
        #[unroll]
        for i in 0..4u32 {
            let key_position = number * KEYS + sharer * 4 + i;
            let mut seen = scores[comptime![i as usize]];
            #[unroll]
            for j in 0..4usize {
                let position = positions[j];
                let visible = key_position <= position && key_position + reach > position;
                seen.insert(j, select(visible, seen.extract(j), f32::new(NOTHING)));
            }
            scores[comptime![i as usize]] = seen;
            most = max(most, seen);
        }
        shared[UNIT_POS as usize] = most;
        // From here on nobody reads the keys.
        sync_cube();
        #[unroll]
        for i in 0..SHARERS {
            most = max(most, shared[(own_four * SHARERS + i) as usize]);
        }
        #[unroll]
        for round in 0..comptime![(fours * KEYS).div_ceil(UNITS)] {
            let i = UNIT_POS + comptime![round * UNITS];
            if i < comptime![fours * KEYS] {
                let key = i / fours;
                let mut four = Vector::<f32, Const<4>>::new(0.0f32);
                // What lies past the last key need not be a number.
                if number * KEYS + key <= share.last {
                    four = cached_vector(values, (cells + key) * words, i % fours, shape.row);
                }
                tile[i as usize] = four;
            }
        }
        let rescale = (largest - most).exp();
        largest = most;
        sum *= rescale;
        #[unroll]
        for i in 0..4u32 {
            let chance = (scores[comptime![i as usize]] - most).exp();
            sum += chance;
            chances[(sharer * CHANCES_STRIDE + comptime![i * QUERIES / 4] + own_four) as usize] = chance;
        }
        #[unroll]
        for j in 0..4u32 {
            let factor = Vector::<f32, Const<4>>::new(rescale.extract(comptime![j as usize]));
            #[unroll]
            for v in 0..own {
                mixed[comptime![(j * own + v) as usize]] *= factor;
            }
        }
        sync_cube();

        for four in 0..SHARERS {
            #[unroll]
            for i in 0..4u32 {
                let chance = chances[(four * CHANCES_STRIDE + comptime![i * QUERIES / 4] + own_four) as usize];
                #[unroll]
                for v in 0..own {
                    let column = min(sharer + comptime![v * SHARERS], comptime![fours - 1]);
                    let value = tile[((four * 4 + i) * fours + column) as usize];
                    #[unroll]
                    for j in 0..4u32 {
                        let at = comptime![(j * own + v) as usize];
                        let factor = Vector::<f32, Const<4>>::new(chance.extract(comptime![j as usize]));
                        mixed[at] = fma(factor, value, mixed[at]);
                    }
                }
            }
        }
        sync_cube();
        number += 1;
    }

    shared[UNIT_POS as usize] = sum;
    sync_cube();
    let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for i in 0..SHARERS {
        sum += shared[(own_four * SHARERS + i) as usize];
    }
    #[unroll]
    for j in 0..4u32 {
        let number = own_four * 4 + j;
        if number / group < count {
            let head = kv_head * group + number % group;
            let output = (first_row + number / group) * shape.heads + head;
            let mut target = output * dim;
            let mut factor = 1.0f32;
            let most = largest.extract(comptime![j as usize]);
            let total = sum.extract(comptime![j as usize]);
            if comptime![shape.whole] {
                factor = with_sink(most, total, sinks[head as usize]);
            } else {
                target = (output * splits + split) * comptime![shape.share_words()];
                if sharer == 0 {
                    out[(target + dim) as usize] = most;
                    out[(target + dim + 1) as usize] = total;
                }
            }
            #[unroll]
            for v in 0..own {
                let four = sharer + comptime![v * SHARERS];
                if four < fours {
                    #[unroll]
                    for i in 0..4u32 {
                        let value = mixed[comptime![(j * own + v) as usize]].extract(comptime![i as usize]);
                        out[(target + four * 4 + i) as usize] = value * factor;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's own test is in [`attention`](super::super::attention), beside that of single rows.
    #[test]
    fn tiles_hold_rows_that_follow_each_other() {
        let row = |slot, position| Row { token: Some(0), position, slot };
        let rows: Vec<Row> =
            [(0, 5), (0, 6), (0, 7), (0, 8), (2, 9), (2, 3), (1, 4), (1, 5)].map(|(s, p)| row(s, p)).into();
        assert_eq!(tiles(&rows, 3).as_chunks::<2>().0, [[0, 3], [3, 1], [4, 1], [5, 1], [6, 2]]);
        assert!(tiles(&[], 3).is_empty());
    }
}
