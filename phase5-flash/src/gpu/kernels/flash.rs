//! Attention of several new tokens of a sequence on matrix units: [`prefill`](super::prefill)'s in 16-bit floats, added up in f32.
//!
//! A cube takes 64 queries and, again and again, 64 keys; each of its planes has 16 of the queries. Scores go from fragments to
//! shared memory, where two lanes have a query's softmax, and back as 16-bit probabilities. Sums of values stay in fragments: they are rescaled only when a
//! query's largest score has grown by more than e⁸, so that probabilities are at most that, and seldom after the first keys.
//!
//! Ladder (H100, SPIR-V, a prompt of 32,768, 16 heads, f32 cache): [`prefill`](super::prefill) 16.4 TFLOP/s, here 25.2.

use cubecl::cmma::{MatrixIdent, MatrixLayout};
use cubecl::prelude::*;
use half::f16;
use phase1_loading::GptOssConfig;

use super::attention::{Attention, NOTHING, Shape, with_sink};
use super::cache::cached_vector;
use super::fragments::{Piece, Planes, SIDE, Squares, piece, sync_lanes};
use super::prefill::TILE_WORDS;
use super::reduce::sum4;
use super::share::Share;
use crate::gpu::device::{Buffer, Gpu};

/// How much a largest score may grow before what was added up is rescaled: e⁸ fits a 16-bit float.
const GROWTH: f32 = 8.0;
/// The most dimensions of a head: keys and values of more would not fit shared memory.
const MOST_DIM: usize = 64;

/// Planes of a cube, and keys that it works on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Block {
    planes: Planes,
    keys: u32,
    /// Values of a head.
    dim: u32,
}

impl Block {
    fn new(planes: Planes, dim: usize) -> Block {
        // Fragments that are played are twice as large.
        let (planes, keys) = if planes.fragments { (planes.by(4), 64) } else { (Planes { count: 1, ..planes }, 32) };
        Block { planes, keys, dim: dim as u32 }
    }

    fn queries(self) -> u32 {
        SIDE * self.planes.count
    }

    /// Lanes that share a query.
    fn sharers(self) -> u32 {
        self.planes.width / SIDE
    }

    /// Vectors from a query, key or value to the next: two too many, so that a fragment's rows lie in different banks.
    fn stride(self) -> u32 {
        self.dim / 4 + 2
    }

    /// Vectors from a query's probabilities to the next one's.
    fn chances_stride(self) -> u32 {
        self.keys / 4 + 2
    }

    /// Vectors from a query's scores, or sums of values, to the next one's.
    fn stage_stride(self) -> u32 {
        self.keys.max(self.dim) / 4 + 1
    }

    /// Where probabilities begin: fragments of queries are loaded once, and leave their room to them.
    fn chances(self) -> u32 {
        if self.planes.fragments { 0 } else { self.queries() * self.stride() }
    }

    /// Vectors of queries and probabilities.
    fn own(self) -> u32 {
        (self.queries() * self.stride()).max(self.chances() + self.queries() * self.chances_stride())
    }
}

/// Bytes of shared memory that a cube takes at most: no kernel on matrix units takes more.
pub(crate) fn shared_bytes(planes: Planes) -> usize {
    let block = Block::new(planes, MOST_DIM);
    let halves = block.own() + 2 * block.keys * block.stride();
    (8 * halves + 16 * block.queries() * block.stage_stride() + 4 * block.planes.units()) as usize
}

/// Rows that a tile holds; `None` if heads have a shape that this kernel does not take.
pub(crate) fn rows_a_tile(planes: Planes, config: &GptOssConfig) -> Option<usize> {
    let GptOssConfig { heads, kv_heads, head_dim, .. } = *config;
    let (group, queries) = (heads / kv_heads, Block::new(planes, head_dim).queries() as usize);
    let fits = head_dim.is_multiple_of(SIDE as usize) && head_dim <= MOST_DIM && group <= queries;
    fits.then(|| queries / group)
}

impl Attention<'_> {
    /// As [`Attention::launch_tiles`], on matrix units.
    pub fn launch_flash(&self, gpu: &Gpu, tiles: &Buffer, count: usize, planes: Planes) {
        match planes.fragments {
            true => self.launch_flash_in::<f16>(gpu, tiles, count, planes),
            false => self.launch_flash_in::<f32>(gpu, tiles, count, planes),
        }
    }

    fn launch_flash_in<T: Float>(&self, gpu: &Gpu, tiles: &Buffer, count: usize, planes: Planes) {
        let block = Block::new(planes, self.shape.head_dim);
        let units = block.planes.units();
        let shape = Shape { row: self.shape, heads: self.heads as u32, units, whole: self.splits == 1 };
        // SAFETY: a row's pages were reserved up to its position, and every output has its place in the buffers.
        unsafe {
            flash::launch_unchecked::<T>(
                &gpu.client,
                self.cubes(count),
                CubeDim::new_1d(units),
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
                block,
            );
        }
        self.combine_shares(gpu, shape);
    }
}

#[cube(launch_unchecked)]
fn flash<T: Float>(
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
    #[comptime] block: Block,
) {
    let dim = comptime![shape.dim()];
    let fours = comptime![shape.vectors()];
    let group = comptime![shape.group()];
    let kv_heads = comptime![shape.row.kv_heads as u32];
    let words = comptime![shape.row.words() as u32];
    let planes = comptime![block.planes];
    let units = comptime![planes.units()];
    let stride = comptime![block.stride()];
    let chances_stride = comptime![block.chances_stride()];
    let stage_stride = comptime![block.stage_stride()];
    let sharers = comptime![block.sharers()];
    let dims = comptime![dim / SIDE];
    let cells_fours = comptime![block.keys * fours];
    let key_fours = comptime![block.keys / 4];
    let key_squares = comptime![block.keys / SIDE];

    let mut own = Shared::<[Vector<T, Const<4>>]>::new_slice(comptime![block.own() as usize]);
    let mut key_tile = Shared::<[Vector<T, Const<4>>]>::new_slice(comptime![(block.keys * stride) as usize]);
    let mut value_tile = Shared::<[Vector<T, Const<4>>]>::new_slice(comptime![(block.keys * stride) as usize]);
    let mut stage = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(block.queries() * stage_stride) as usize]);
    let mut shared = Shared::<[f32]>::new_slice(comptime![units as usize]);

    let kv_head = CUBE_POS_X;
    let split = CUBE_POS_Y;
    let first_row = tiles[(CUBE_POS_Z * comptime![TILE_WORDS as u32]) as usize];
    let count = tiles[(CUBE_POS_Z * comptime![TILE_WORDS as u32] + 1) as usize];
    let share = Share::new(rows, first_row, count, reach, splits, block.keys);

    let mut i = UNIT_POS;
    while i < comptime![block.queries() * fours] {
        let number = i / fours;
        let row = first_row + min(number / group, count - 1);
        let head = kv_head * group + number % group;
        let four = queries[((row * shape.heads + head) * fours + i % fours) as usize];
        let four = four * Vector::<f32, Const<4>>::new(scale);
        own[(number * stride + i % fours) as usize] = Vector::<T, Const<4>>::cast_from(four);
        i += units;
    }
    sync_cube();
    let first_query = UNIT_POS / planes.width * SIDE;
    let mut query = Sequence::<Piece<T>>::new();
    #[unroll]
    for d in 0..dims {
        let first = first_query * stride + comptime![d * SIDE / 4];
        query.push(piece::<T>(&own, first, stride, MatrixIdent::A, MatrixLayout::RowMajor, planes));
    }
    sync_cube();

    // The query of this lane, which it shares with its neighbours.
    let number = first_query + UNIT_POS % planes.width / sharers;
    let sharer = UNIT_POS % sharers;
    let position = share.position + min(number / group, count - 1);

    let mut largest = f32::new(NOTHING);
    let mut sum = 0.0f32;
    let mut mixed = Squares::zeros(dims, planes);
    let mut at = share.start;
    while at < share.end {
        let cells = share.cells(at, pages, columns, ring_pages, kv_heads, block.keys);
        let mut i = UNIT_POS;
        while i < cells_fours {
            let cell = i / fours;
            let mut key = Vector::<f32, Const<4>>::new(0.0f32);
            let mut value = Vector::<f32, Const<4>>::new(0.0f32);
            // What lies past the last key need not be a number.
            if at * block.keys + cell <= share.last {
                key = cached_vector(keys, (cells + cell) * words, i % fours, shape.row);
                value = cached_vector(values, (cells + cell) * words, i % fours, shape.row);
            }
            key_tile[(cell * stride + i % fours) as usize] = Vector::<T, Const<4>>::cast_from(key);
            value_tile[(cell * stride + i % fours) as usize] = Vector::<T, Const<4>>::cast_from(value);
            i += units;
        }
        sync_cube();

        let mut scores = Squares::zeros(key_squares, planes);
        #[unroll]
        for k in 0..key_squares {
            #[unroll]
            for d in 0..dims {
                let first = (k * comptime![SIDE * stride] + comptime![d * SIDE / 4]).runtime();
                let b = piece::<T>(&key_tile, first, stride, MatrixIdent::B, MatrixLayout::ColMajor, planes);
                let a = &query[comptime![d as usize]];
                scores.add::<T>(k, &own, a, stride, &key_tile, &b, stride, true, planes);
            }
            let first = first_query * stage_stride + comptime![k * SIDE / 4];
            scores.show(k, &mut stage, first, stage_stride, planes);
        }
        sync_lanes(planes);

        let mut seen = Array::<Vector<f32, Const<4>>>::new(comptime![(key_fours / sharers) as usize]);
        let mut most = f32::new(NOTHING);
        #[unroll]
        for v in 0..comptime![key_fours / sharers] {
            let four = sharer + comptime![v * sharers];
            let mut score = stage[(number * stage_stride + four) as usize];
            #[unroll]
            for j in 0..4u32 {
                let key_position = at * block.keys + four * 4 + j;
                let visible = key_position <= position && key_position + reach > position;
                let one = select(visible, score.extract(comptime![j as usize]), f32::new(NOTHING));
                score.insert(comptime![j as usize], one);
                most = max(most, one);
            }
            seen[comptime![v as usize]] = score;
        }
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
            #[unroll]
            for d in 0..dims {
                let first = first_query * stage_stride + comptime![d * SIDE / 4];
                mixed.show(d, &mut stage, first, stage_stride, planes);
            }
            sync_lanes(planes);
            #[unroll]
            for v in 0..comptime![fours / sharers] {
                let place = (number * stage_stride + sharer + comptime![v * sharers]) as usize;
                stage[place] *= Vector::<f32, Const<4>>::new(factor);
            }
            sync_lanes(planes);
            #[unroll]
            for d in 0..dims {
                let first = first_query * stage_stride + comptime![d * SIDE / 4];
                mixed.take(d, &stage, first, stage_stride, planes);
            }
        }
        #[unroll]
        for v in 0..comptime![key_fours / sharers] {
            let chance = (seen[comptime![v as usize]] - Vector::<f32, Const<4>>::new(largest)).exp();
            sum += sum4(chance);
            let place = comptime![block.chances()] + number * chances_stride + sharer + comptime![v * sharers];
            own[place as usize] = Vector::<T, Const<4>>::cast_from(chance);
        }
        sync_lanes(planes);

        #[unroll]
        for k in 0..key_squares {
            let first = comptime![block.chances() + k * SIDE / 4] + first_query * chances_stride;
            let a = piece::<T>(&own, first, chances_stride, MatrixIdent::A, MatrixLayout::RowMajor, planes);
            #[unroll]
            for d in 0..dims {
                let first = (k * comptime![SIDE * stride] + comptime![d * SIDE / 4]).runtime();
                let b = piece::<T>(&value_tile, first, stride, MatrixIdent::B, MatrixLayout::RowMajor, planes);
                mixed.add::<T>(d, &own, &a, chances_stride, &value_tile, &b, stride, false, planes);
            }
        }
        sync_cube();
        at += 1;
    }

    shared[UNIT_POS as usize] = sum;
    #[unroll]
    for d in 0..dims {
        let first = first_query * stage_stride + comptime![d * SIDE / 4];
        mixed.show(d, &mut stage, first, stage_stride, planes);
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
            factor = with_sink(largest, total, sinks[head as usize]);
        } else {
            target = (output * splits + split) * comptime![shape.share_words()];
            if sharer == 0 {
                out[(target + dim) as usize] = largest;
                out[(target + dim + 1) as usize] = total;
            }
        }
        #[unroll]
        for v in 0..comptime![fours / sharers] {
            let four = sharer + comptime![v * sharers];
            let value = stage[(number * stage_stride + four) as usize] * Vector::<f32, Const<4>>::new(factor);
            #[unroll]
            for i in 0..4u32 {
                out[(target + four * 4 + i) as usize] = value.extract(comptime![i as usize]);
            }
        }
    }
}
