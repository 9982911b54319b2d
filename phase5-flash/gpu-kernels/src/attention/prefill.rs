//! Attention of several new tokens of a sequence in f32. The keys and values that a cube reads are shared by a few rows and, for each row,
//! by all query heads of a key/value head. The softmax is computed online, so that no memory is needed per pair of positions.
//!
//! A cube handles 32 queries and loops over blocks of 32 keys. A unit handles four queries: for each it computes the scores of four keys,
//! then the weighted sums of two vectors of four values (in heads of 64 values).
//!
//! History (H100, 512 rows attending to 4,096 keys, f32): row by row 5.6 ms (5.8 TFLOP/s), this kernel 1.7 ms (18.6).

use cubecl::prelude::*;

use super::args::{Attention, KvArgs, MASKED, Shape, normalizer};
use super::split::KvSplit;
use super::tiling::ROW_TILE_WORDS;
use crate::device::{Buffer, Device};
use crate::kv::{KvRow, cached_vector};
use crate::vec4::transposed;

/// Queries per tile.
const QUERIES: u32 = 32;
/// Keys per iteration; divides the size of a page.
const KEYS: u32 = 32;
/// Number of units that share the same four queries.
const SHARERS: u32 = KEYS / 4;
const UNITS: u32 = QUERIES / 4 * SHARERS;
/// Distance in vectors between groups of four dimensions of the keys: one extra, so that lanes store to different banks.
const KEYS_STRIDE: u32 = 4 * KEYS / 4 + 1;
/// Distance in vectors between the probabilities of groups of four keys, with one extra as well.
const PROBS_STRIDE: u32 = 4 * QUERIES / 4 + 1;
/// The largest head size: keys and queries of larger heads would not fit shared memory.
const MAX_DIM: usize = 64;

/// Rows per tile; `None` if this kernel does not support the heads' shape.
pub(super) fn rows_per_tile(row: KvRow, heads: usize) -> Option<usize> {
    let group = heads / row.kv_heads();
    let fits = row.head_dim() <= MAX_DIM && group <= QUERIES as usize;
    fits.then(|| QUERIES as usize / group)
}

/// Runs attention over `count` tiles without merging partial results. Lengths must have been checked.
///
/// # Panics
/// If this kernel does not support the heads' shape.
pub(super) fn launch(device: &Device, attention: &Attention<'_>, tiles: &Buffer, count: usize) {
    let row = attention.cache.pool.row();
    assert!(rows_per_tile(row, attention.heads).is_some(), "{} heads of {row:?} cannot be tiled", attention.heads);
    // SAFETY: lengths were checked. Rows, positions, slots and pages come from tiles, rows and the page table; the caller promises that
    // they are in range.
    unsafe {
        prefill::launch_unchecked(
            device.client(),
            attention.cubes(count),
            CubeDim::new_1d(UNITS),
            attention.args(),
            attention.cache.pool.keys().arg4(),
            attention.cache.pool.values().arg4(),
            attention.queries.arg4(),
            tiles.arg(),
            attention.shape(UNITS),
        );
    }
}

#[cube(launch_unchecked)]
fn prefill(
    mut args: KvArgs,
    keys: &[Vector<u32, Const<4>>],
    values: &[Vector<u32, Const<4>>],
    queries: &[Vector<f32, Const<4>>],
    tiles: &[u32],
    #[comptime] shape: Shape,
) {
    let dim = comptime![shape.dim()];
    let fours = comptime![shape.vectors()];
    let group = comptime![shape.group()];
    let row_vectors = comptime![shape.row.vectors()];
    // Vectors of output values that a unit computes per query.
    let acc_vectors = comptime![fours.div_ceil(SHARERS)];
    // Layouts: `query` is `[dim, 32 queries]`; `tile` holds keys `[dim, 32 keys]`, later values `[32 keys, dim]`; `probs` is
    // `[32 keys, 32 queries]`.
    let mut query = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(dim * QUERIES / 4) as usize]);
    let mut tile = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(fours * KEYS_STRIDE) as usize]);
    let mut probs = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(SHARERS * PROBS_STRIDE) as usize]);
    let mut shared = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![UNITS as usize]);

    let kv_head = CUBE_POS_X;
    let first_row = tiles[(CUBE_POS_Z * comptime![ROW_TILE_WORDS as u32]) as usize];
    let count = tiles[(CUBE_POS_Z * comptime![ROW_TILE_WORDS as u32] + 1) as usize];
    let split = KvSplit::new(&args, first_row, count, KEYS);
    let query_four = UNIT_POS / SHARERS;
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
                square[comptime![j as usize]] = four * Vector::<f32, Const<4>>::new(args.scale);
            }
            #[unroll]
            for j in 0..4u32 {
                query[((i % fours * 4 + j) * comptime![QUERIES / 4] + i / fours) as usize] = transposed(&square, j);
            }
        }
    }

    let mut positions = Array::<u32>::new(4usize);
    #[unroll]
    for j in 0..4u32 {
        positions[comptime![j as usize]] = split.position + min((query_four * 4 + j) / group, count - 1);
    }

    let mut largest = Vector::<f32, Const<4>>::new(f32::new(MASKED));
    let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
    let mut acc = Array::<Vector<f32, Const<4>>>::new(comptime![(4 * acc_vectors) as usize]);
    #[unroll]
    for i in 0..comptime![4 * acc_vectors] {
        acc[comptime![i as usize]] = Vector::<f32, Const<4>>::new(0.0f32);
    }

    let mut number = split.start;
    while number < split.end {
        let kv_slots = split.kv_slots(&args, number, shape.kv_heads(), KEYS);
        #[unroll]
        for round in 0..comptime![(fours * KEYS / 4).div_ceil(UNITS)] {
            let i = UNIT_POS + comptime![round * UNITS];
            if i < comptime![fours * KEYS / 4] {
                let mut square = Array::<Vector<f32, Const<4>>>::new(4usize);
                #[unroll]
                for j in 0..4u32 {
                    let row = (kv_slots + i / fours * 4 + j) * row_vectors;
                    square[comptime![j as usize]] = cached_vector(keys, row, i % fours, shape.row);
                }
                #[unroll]
                for j in 0..4u32 {
                    let at = i % fours * KEYS_STRIDE + comptime![j * KEYS / 4] + i / fours;
                    tile[at as usize] = transposed(&square, j);
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
                let q = query[((four * 4 + d) * comptime![QUERIES / 4] + query_four) as usize];
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
                let visible = key_position <= position && key_position + args.reach > position;
                seen.insert(j, select(visible, seen.extract(j), f32::new(MASKED)));
            }
            scores[comptime![i as usize]] = seen;
            most = max(most, seen);
        }
        shared[UNIT_POS as usize] = most;
        // The keys are not read after this barrier.
        sync_cube();
        #[unroll]
        for i in 0..SHARERS {
            most = max(most, shared[(query_four * SHARERS + i) as usize]);
        }
        #[unroll]
        for round in 0..comptime![(fours * KEYS).div_ceil(UNITS)] {
            let i = UNIT_POS + comptime![round * UNITS];
            if i < comptime![fours * KEYS] {
                let key = i / fours;
                let mut four = Vector::<f32, Const<4>>::new(0.0f32);
                // Data after the last key may be NaN.
                if number * KEYS + key <= split.last {
                    four = cached_vector(values, (kv_slots + key) * row_vectors, i % fours, shape.row);
                }
                tile[i as usize] = four;
            }
        }
        let rescale = (largest - most).exp();
        largest = most;
        sum *= rescale;
        #[unroll]
        for i in 0..4u32 {
            let prob = (scores[comptime![i as usize]] - most).exp();
            sum += prob;
            probs[(sharer * PROBS_STRIDE + comptime![i * QUERIES / 4] + query_four) as usize] = prob;
        }
        #[unroll]
        for j in 0..4u32 {
            let factor = Vector::<f32, Const<4>>::new(rescale.extract(comptime![j as usize]));
            #[unroll]
            for v in 0..acc_vectors {
                acc[comptime![(j * acc_vectors + v) as usize]] *= factor;
            }
        }
        sync_cube();

        for four in 0..SHARERS {
            #[unroll]
            for i in 0..4u32 {
                let prob = probs[(four * PROBS_STRIDE + comptime![i * QUERIES / 4] + query_four) as usize];
                #[unroll]
                for v in 0..acc_vectors {
                    let column = min(sharer + comptime![v * SHARERS], comptime![fours - 1]);
                    let value = tile[((four * 4 + i) * fours + column) as usize];
                    #[unroll]
                    for j in 0..4u32 {
                        let at = comptime![(j * acc_vectors + v) as usize];
                        let factor = Vector::<f32, Const<4>>::new(prob.extract(comptime![j as usize]));
                        acc[at] = fma(factor, value, acc[at]);
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
        sum += shared[(query_four * SHARERS + i) as usize];
    }
    #[unroll]
    for j in 0..4u32 {
        let number = query_four * 4 + j;
        if number / group < count {
            let head = kv_head * group + number % group;
            let output = (first_row + number / group) * shape.heads + head;
            let mut target = output * dim;
            let mut factor = 1.0f32;
            let most = largest.extract(comptime![j as usize]);
            let total = sum.extract(comptime![j as usize]);
            if comptime![shape.whole] {
                factor = normalizer(most, total, args.sinks[head as usize]);
            } else {
                target = (output * args.splits + CUBE_POS_Y) * comptime![shape.partial_words()];
                if sharer == 0 {
                    args.out[(target + dim) as usize] = most;
                    args.out[(target + dim + 1) as usize] = total;
                }
            }
            #[unroll]
            for v in 0..acc_vectors {
                let four = sharer + comptime![v * SHARERS];
                if four < fours {
                    #[unroll]
                    for i in 0..4u32 {
                        let value = acc[comptime![(j * acc_vectors + v) as usize]].extract(comptime![i as usize]);
                        args.out[(target + four * 4 + i) as usize] = value * factor;
                    }
                }
            }
        }
    }
}
