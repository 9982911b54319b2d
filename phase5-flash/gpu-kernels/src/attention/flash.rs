//! Attention of several new tokens of a sequence on matrix units: as [`prefill`](super::prefill), but products have 16-bit inputs. Sums are
//! in f32. If matrix units are emulated, inputs are f32, a cube has one plane and blocks of 32 keys, and sums are rescaled for each block.
//!
//! A cube handles 64 queries, 16 per plane, and loops over blocks of 64 keys. Scores go from fragments to shared memory, where the lanes of
//! a plane (two per query if it has 32) compute the softmax, and return as 16-bit probabilities. Sums of values stay in fragments. They are
//! rescaled only when a query's largest score has grown by more than 8, so that probabilities are at most e⁸; this is rare after the first
//! keys. The values of a block are read while its keys are scored, and the next keys while the values are summed; both stay packed in
//! registers until needed.
//!
//! History (H100, SPIR-V, a prompt of 32,768 tokens, 16 heads, f32 cache):
//! 1. [`prefill`](super::prefill): 16.4 TFLOP/s.
//! 2. on matrix units, with keys and values read word by word where they are needed: 25.2.
//! 3. current version: keys and values are read 16 bytes at a time and ahead of use, f16 is not converted, and only blocks with hidden keys
//!    are masked. Not measured separately: with more splits and early submission, a prompt of 512 tokens at depth 16,384 reaches
//!    7,673 tok/s instead of 4,502 on an H200 (gpt-oss-20b's shape, f32).
//!
//! Keys, values and scaled queries above 65,504 become infinite, and the results NaN. This is detected when a token is drawn.

use cubecl::cmma::{MatrixIdent, MatrixLayout};
use cubecl::prelude::*;
use half::f16;

use super::args::{Attention, KvArgs, MASKED, Shape, normalizer};
use super::split::KvSplit;
use super::tile::{Tile, read_tile, write_tile};
use super::tiling::ROW_TILE_WORDS;
use crate::device::{Buffer, Device};
use crate::gpu::Gpu;
use crate::kv::KvRow;
use crate::matrix_units::{Accumulators, MatrixUnits, Operand, Planes, SIDE, operand, sync_lanes};
use crate::vec4::{max4, sum4};

/// How much the largest score may grow before the sums are rescaled: e⁸ fits a 16-bit float.
const GROWTH: f32 = 8.0;
/// The largest head size.
const MAX_DIM: usize = 64;

/// Planes of a cube, and keys per iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Block {
    planes: Planes,
    keys: u32,
    /// Values of a head.
    dim: u32,
}

impl Block {
    fn new(units: MatrixUnits, dim: usize) -> Block {
        // Emulated fragments hold f32 in place of f16, twice the bytes.
        let (planes, keys) = if units.are_emulated() { (1, 32) } else { (4, 64) };
        Block { planes: units.planes(planes), keys, dim: dim as u32 }
    }

    fn queries(self) -> u32 {
        SIDE * self.planes.count
    }

    /// Lanes per query.
    fn sharers(self) -> u32 {
        self.planes.width / SIDE
    }

    /// Distance in vectors between queries, keys or values: two extra, so that the rows of a fragment are in different banks.
    fn stride(self) -> u32 {
        self.dim / 4 + 2
    }

    /// Distance in vectors between the probabilities of two queries.
    fn probs_stride(self) -> u32 {
        self.keys / 4 + 2
    }

    /// Distance in vectors between the scores, or sums of values, of two queries: two extra, so that rows are in different banks here too.
    fn stage_stride(self) -> u32 {
        self.keys.max(self.dim) / 4 + 2
    }

    fn tile(self, row: KvRow) -> Tile {
        let Block { planes, keys, .. } = self;
        Tile { row, keys, units: planes.units(), stride: self.stride(), pairs: planes.fragments }
    }

    /// Start of the probabilities, in vectors. With matrix units, the queries are in registers when probabilities are written, so that the
    /// probabilities may overwrite them in shared memory.
    fn probs(self) -> u32 {
        if self.planes.fragments { 0 } else { self.queries() * self.stride() }
    }

    /// Vectors of queries and probabilities.
    fn queries_and_probs(self) -> u32 {
        (self.queries() * self.stride()).max(self.probs() + self.queries() * self.probs_stride())
    }

    /// Shared memory of a cube, in bytes.
    fn shared_bytes(self) -> usize {
        let operands = self.queries_and_probs() + 2 * self.keys * self.stride();
        let sums = 16 * self.queries() * self.stage_stride() + 4 * self.planes.units();
        (4 * self.planes.operand_bytes() * operands + sums) as usize
    }
}

/// The block size, if the device has matrix units and enough shared memory, and this kernel supports the heads' shape.
pub(super) fn block(gpu: &Gpu, row: KvRow, heads: usize) -> Option<Block> {
    let (group, head_dim) = (heads / row.kv_heads(), row.head_dim());
    let block = Block::new(gpu.matrix_units()?, head_dim);
    let fits = head_dim.is_multiple_of(SIDE as usize)
        && head_dim <= MAX_DIM
        && group <= block.queries() as usize
        && block.shared_bytes() <= gpu.device.shared_bytes();
    fits.then_some(block)
}

/// Rows per tile; `None` if this kernel [cannot be used](block).
pub(super) fn rows_per_tile(gpu: &Gpu, row: KvRow, heads: usize) -> Option<usize> {
    block(gpu, row, heads).map(|block| block.queries() as usize / (heads / row.kv_heads()))
}

/// Runs attention over `count` tiles without merging partial results. Lengths must have been checked.
pub(super) fn launch(device: &Device, attention: &Attention<'_>, tiles: &Buffer, count: usize, block: Block) {
    match block.planes.fragments {
        true => launch_in::<f16>(device, attention, tiles, count, block),
        false => launch_in::<f32>(device, attention, tiles, count, block),
    }
}

fn launch_in<T: Float>(device: &Device, attention: &Attention<'_>, tiles: &Buffer, count: usize, block: Block) {
    let units = block.planes.units();
    // SAFETY: lengths were checked. Rows, positions, slots and pages come from tiles, rows and the page table; the caller promises that
    // they are in range.
    unsafe {
        flash::launch_unchecked::<T>(
            device.client(),
            attention.cubes(count),
            CubeDim::new_1d(units),
            attention.args(),
            attention.cache.pool.keys().arg4(),
            attention.cache.pool.values().arg4(),
            attention.queries.arg4(),
            tiles.arg(),
            attention.shape(units),
            block,
        );
    }
}

#[cube(launch_unchecked)]
fn flash<T: Float>(
    mut args: KvArgs,
    keys: &[Vector<u32, Const<4>>],
    values: &[Vector<u32, Const<4>>],
    queries: &[Vector<f32, Const<4>>],
    tiles: &[u32],
    #[comptime] shape: Shape,
    #[comptime] block: Block,
) {
    let dim = comptime![shape.dim()];
    let fours = comptime![shape.vectors()];
    let group = comptime![shape.group()];
    let planes = comptime![block.planes];
    let units = comptime![planes.units()];
    let stride = comptime![block.stride()];
    let probs_stride = comptime![block.probs_stride()];
    let stage_stride = comptime![block.stage_stride()];
    let sharers = comptime![block.sharers()];
    let dims = comptime![(dim / SIDE) as usize];
    let tile = comptime![block.tile(shape.row)];
    let most_key = comptime![block.keys - 1];
    let key_fours = comptime![block.keys / 4];
    let key_squares = comptime![(block.keys / SIDE) as usize];

    let mut queries_and_probs =
        Shared::<[Vector<T, Const<4>>]>::new_slice(comptime![block.queries_and_probs() as usize]);
    let mut key_tile = Shared::<[Vector<T, Const<4>>]>::new_slice(comptime![(block.keys * stride) as usize]);
    let mut value_tile = Shared::<[Vector<T, Const<4>>]>::new_slice(comptime![(block.keys * stride) as usize]);
    let mut stage = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(block.queries() * stage_stride) as usize]);
    let mut shared = Shared::<[f32]>::new_slice(comptime![units as usize]);

    let kv_head = CUBE_POS_X;
    let first_row = tiles[(CUBE_POS_Z * comptime![ROW_TILE_WORDS as u32]) as usize];
    let count = tiles[(CUBE_POS_Z * comptime![ROW_TILE_WORDS as u32] + 1) as usize];
    let split = KvSplit::new(&args, first_row, count, block.keys);

    let mut read = Array::<Vector<u32, Const<4>>>::new(comptime![tile.vectors_per_unit()]);
    let mut kv_slots = 0u32;
    if split.start < split.end {
        kv_slots = split.kv_slots(&args, split.start, shape.kv_heads(), block.keys);
        read_tile(keys, kv_slots, min(split.last - split.start * block.keys, most_key), &mut read, tile);
    }

    let mut i = UNIT_POS;
    while i < comptime![block.queries() * fours] {
        let number = i / fours;
        let row = first_row + min(number / group, count - 1);
        let head = kv_head * group + number % group;
        let four = queries[((row * shape.heads + head) * fours + i % fours) as usize];
        let four = four * Vector::<f32, Const<4>>::new(args.scale);
        queries_and_probs[(number * stride + i % fours) as usize] = Vector::<T, Const<4>>::cast_from(four);
        i += units;
    }
    sync_cube();
    let first_query = UNIT_POS / planes.width * SIDE;
    let mut query = Sequence::<Operand<T>>::new();
    #[unroll]
    for d in 0..dims {
        let first = first_query * stride + d as u32 * comptime![SIDE / 4];
        query.push(operand::<T>(&queries_and_probs, first, stride, MatrixIdent::A, MatrixLayout::RowMajor, planes));
    }
    write_tile::<T>(&read, &mut key_tile, tile);
    sync_cube();

    // This lane's query, shared with neighbouring lanes.
    let number = first_query + UNIT_POS % planes.width / sharers;
    let sharer = UNIT_POS % sharers;
    let position = split.position + min(number / group, count - 1);

    let mut largest = f32::new(MASKED);
    let mut sum = 0.0f32;
    let mut acc = Accumulators::zeros(comptime![dim / SIDE], planes);
    let mut at = split.start;
    while at < split.end {
        // Shared memory already contains the keys of this tile, whose first key has the index `kv_slots` in the pool.
        read_tile(values, kv_slots, min(split.last - at * block.keys, most_key), &mut read, tile);
        let next = min(at + 1, split.end - 1);
        kv_slots = split.kv_slots(&args, next, shape.kv_heads(), block.keys);

        let mut scores = Accumulators::zeros(comptime![block.keys / SIDE], planes);
        #[unroll(planes.fragments)]
        for k in 0..key_squares {
            #[unroll(planes.fragments)]
            for d in 0..dims {
                let along = d as u32 * comptime![SIDE / 4];
                let first = k as u32 * comptime![SIDE * stride] + along;
                let b = operand::<T>(&key_tile, first, stride, MatrixIdent::B, MatrixLayout::ColMajor, planes);
                if comptime![planes.fragments] {
                    let a = &query[d];
                    scores.add::<T>(k, &queries_and_probs, a, stride, &key_tile, &b, stride, true, planes);
                } else {
                    let first = first_query * stride + along;
                    let a =
                        operand::<T>(&queries_and_probs, first, stride, MatrixIdent::A, MatrixLayout::RowMajor, planes);
                    scores.add::<T>(k, &queries_and_probs, &a, stride, &key_tile, &b, stride, true, planes);
                }
            }
            let first = first_query * stage_stride + k as u32 * comptime![SIDE / 4];
            scores.store(k, &mut stage, first, stage_stride, planes);
        }
        sync_lanes(planes);

        let mut seen = Array::<Vector<f32, Const<4>>>::new(comptime![(key_fours / sharers) as usize]);
        #[unroll]
        for v in 0..comptime![key_fours / sharers] {
            let four = sharer + comptime![v * sharers];
            seen[comptime![v as usize]] = stage[(number * stage_stride + four) as usize];
        }
        // Most tiles need no mask, because all their keys precede the first query and are in the window of the last.
        if at * block.keys + most_key > split.position || at * block.keys + args.reach <= split.last {
            #[unroll]
            for v in 0..comptime![key_fours / sharers] {
                let four = sharer + comptime![v * sharers];
                let mut score = seen[comptime![v as usize]];
                #[unroll]
                for j in 0..4u32 {
                    let key_position = at * block.keys + four * 4 + j;
                    let visible = key_position <= position && key_position + args.reach > position;
                    let one = select(visible, score.extract(comptime![j as usize]), f32::new(MASKED));
                    score.insert(comptime![j as usize], one);
                }
                seen[comptime![v as usize]] = score;
            }
        }
        let mut largest_four = Vector::<f32, Const<4>>::new(f32::new(MASKED));
        #[unroll]
        for v in 0..comptime![key_fours / sharers] {
            largest_four = max(largest_four, seen[comptime![v as usize]]);
        }
        let mut most = max4(largest_four);
        shared[UNIT_POS as usize] = most;
        sync_lanes(planes);
        #[unroll]
        for i in 0..sharers {
            most = max(most, shared[(UNIT_POS / sharers * sharers + i) as usize]);
        }
        let grows =
            if comptime![planes.fragments] { plane_max(most - largest) > f32::new(GROWTH) } else { true.runtime() };
        if grows {
            let grown = max(largest, most);
            let factor = (largest - grown).exp();
            largest = grown;
            sum *= factor;
            #[unroll(planes.fragments)]
            for d in 0..dims {
                let first = first_query * stage_stride + d as u32 * comptime![SIDE / 4];
                acc.store(d, &mut stage, first, stage_stride, planes);
            }
            sync_lanes(planes);
            #[unroll]
            for v in 0..comptime![fours / sharers] {
                let place = (number * stage_stride + sharer + comptime![v * sharers]) as usize;
                stage[place] *= Vector::<f32, Const<4>>::new(factor);
            }
            sync_lanes(planes);
            #[unroll(planes.fragments)]
            for d in 0..dims {
                let first = first_query * stage_stride + d as u32 * comptime![SIDE / 4];
                acc.load(d, &stage, first, stage_stride, planes);
            }
        }
        #[unroll]
        for v in 0..comptime![key_fours / sharers] {
            let prob = (seen[comptime![v as usize]] - Vector::<f32, Const<4>>::new(largest)).exp();
            sum += sum4(prob);
            let place = comptime![block.probs()] + number * probs_stride + sharer + comptime![v * sharers];
            queries_and_probs[place as usize] = Vector::<T, Const<4>>::cast_from(prob);
        }
        write_tile::<T>(&read, &mut value_tile, tile);
        sync_cube();

        // All planes have finished reading the keys.
        if at < next {
            read_tile(keys, kv_slots, min(split.last - next * block.keys, most_key), &mut read, tile);
        }
        #[unroll(planes.fragments)]
        for k in 0..key_squares {
            let first = comptime![block.probs()] + k as u32 * comptime![SIDE / 4] + first_query * probs_stride;
            let a =
                operand::<T>(&queries_and_probs, first, probs_stride, MatrixIdent::A, MatrixLayout::RowMajor, planes);
            #[unroll(planes.fragments)]
            for d in 0..dims {
                let first = k as u32 * comptime![SIDE * stride] + d as u32 * comptime![SIDE / 4];
                let b = operand::<T>(&value_tile, first, stride, MatrixIdent::B, MatrixLayout::RowMajor, planes);
                acc.add::<T>(d, &queries_and_probs, &a, probs_stride, &value_tile, &b, stride, false, planes);
            }
        }
        if at < next {
            write_tile::<T>(&read, &mut key_tile, tile);
        }
        sync_cube();
        at += 1;
    }

    shared[UNIT_POS as usize] = sum;
    #[unroll(planes.fragments)]
    for d in 0..dims {
        let first = first_query * stage_stride + d as u32 * comptime![SIDE / 4];
        acc.store(d, &mut stage, first, stage_stride, planes);
    }
    sync_cube();
    let mut total = 0.0f32;
    #[unroll]
    for i in 0..sharers {
        total += shared[(UNIT_POS / sharers * sharers + i) as usize];
    }
    if number / group < count {
        let head = kv_head * group + number % group;
        let output = (first_row + number / group) * shape.heads + head;
        let mut target = output * dim;
        let mut factor = 1.0f32;
        if comptime![shape.whole] {
            factor = normalizer(largest, total, args.sinks[head as usize]);
        } else {
            target = (output * args.splits + CUBE_POS_Y) * comptime![shape.partial_words()];
            if sharer == 0 {
                args.out[(target + dim) as usize] = largest;
                args.out[(target + dim + 1) as usize] = total;
            }
        }
        #[unroll]
        for v in 0..comptime![fours / sharers] {
            let four = sharer + comptime![v * sharers];
            let value = stage[(number * stage_stride + four) as usize] * Vector::<f32, Const<4>>::new(factor);
            #[unroll]
            for i in 0..4u32 {
                args.out[(target + four * 4 + i) as usize] = value.extract(comptime![i as usize]);
            }
        }
    }
}
