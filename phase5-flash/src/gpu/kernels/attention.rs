//! Attention of new tokens over the paged cache, with sinks and windows, split along the keys.
//!
//! A cube takes one row, one key/value head and a share of the keys; all query heads of the group use each key it reads. Shares
//! are combined, and the sinks folded in, by a second launch, which is left out when there is one share.
//!
//! Ladder:
//! 1. a tile of keys unpacked into shared memory, a lane a key; values read once for all heads of the group: 555 GB/s on an H100
//!    (f32, depth 4096, 32 shares).
//! 2. eight values under way at once, sums in variables, a unit for every value of a group: 9 µs instead of 11 at depth 0.
//! 3. keys and values both unpacked once into shared memory, in vectors of four; a unit scores a key for four heads, and mixes
//!    a part of the tile's values: 25.4 µs a launch in a step at depth 4,096 (of 24, half full) instead of 31.1.
//! 4. here, one row of every sequence: its rotation and its place in the cache are attention's, a launch less.

use cubecl::prelude::*;

use super::cache::{CacheRow, cached_vector};
use super::reduce::sum4;
use super::rope::{append, rotated};
use super::share::Share;
use crate::gpu::cache::{LayerCache, PAGE};
use crate::gpu::device::{Buffer, Gpu};

/// Units of a cube: one for every value of a group's output, within these bounds.
const LEAST_UNITS: u32 = 128;
const MOST_UNITS: u32 = 512;
/// Shares whose words are read at once.
const SHARES_AT_ONCE: u32 = 8;
/// Stands for −∞, which shading languages cannot write: below every score.
pub(super) const NOTHING: f32 = -1.0e30;

/// What a cube is shaped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub row: CacheRow,
    /// Query heads.
    pub heads: u32,
    pub units: u32,
    /// Whether the keys are in one share, so that nothing is left to combine.
    pub whole: bool,
}

impl Shape {
    pub fn dim(&self) -> u32 {
        self.row.head_dim as u32
    }

    /// Query heads that share a key/value head.
    pub fn group(&self) -> u32 {
        self.heads / self.row.kv_heads as u32
    }

    /// Vectors of four values of a head.
    pub fn vectors(&self) -> u32 {
        self.dim() / 4
    }

    /// Units that hold a group's output, four values each.
    fn lanes(&self) -> u32 {
        self.group() * self.vectors()
    }

    /// Parts of a tile that are weighed side by side.
    fn parts(&self) -> u32 {
        self.units / self.lanes()
    }

    /// Query heads that a unit scores a key for.
    fn heads_a_unit(&self) -> u32 {
        if self.group().is_multiple_of(4) { 4 } else { 1 }
    }

    /// Vectors of a tile that a unit unpacks.
    fn vectors_a_unit(&self) -> u32 {
        (self.tile() * self.vectors()).div_ceil(self.units)
    }

    /// Keys that are unpacked together: fewer of long heads, so that they fit shared memory everywhere.
    fn tile(&self) -> u32 {
        (4096 / self.dim().next_power_of_two()).min(PAGE as u32)
    }

    /// Words of a share's output for one head: the weighted sum, the largest score and the sum of exponentials.
    pub fn share_words(&self) -> u32 {
        self.dim() + 2
    }
}

fn units(values: usize) -> u32 {
    (values as u32).clamp(LEAST_UNITS, MOST_UNITS)
}

/// The most values of the query heads that share a key/value head: a unit holds four.
pub(crate) const MAX_GROUP: usize = 4 * MOST_UNITS as usize;
/// The most values of a head: a tile holds at least sixteen.
pub(crate) const MAX_HEAD_DIM: usize = 256;

/// What attention reads if the rotation is left to it.
#[derive(Clone, Copy)]
pub(crate) struct Unrotated<'a> {
    /// Queries, keys and values `[inputs, (heads + 2 kv_heads) · head_dim]`.
    pub qkv: &'a Buffer,
    /// As [`Rope`](super::rope::Rope)'s.
    pub table: &'a Buffer,
}

/// Attention of `inputs` rows.
pub(crate) struct Attention<'a> {
    /// Rotated queries `[inputs, heads · head_dim]`.
    pub queries: &'a Buffer,
    pub rows: &'a Buffer,
    pub cache: LayerCache<'a>,
    /// `[heads]`
    pub sinks: &'a Buffer,
    /// `[inputs, heads · head_dim]`
    pub out: &'a Buffer,
    /// Room for `inputs · heads · splits · (head_dim + 2)` values, if there are several shares.
    pub shares: &'a Buffer,
    pub splits: usize,
    pub heads: usize,
    pub shape: CacheRow,
    /// Keys that a query sees at most, its own among them.
    pub reach: usize,
    pub inputs: usize,
}

impl Attention<'_> {
    fn shape(&self, gpu: &Gpu) -> Shape {
        Shape {
            row: self.shape,
            heads: self.heads as u32,
            units: units(self.heads / self.shape.kv_heads * self.shape.head_dim).next_multiple_of(gpu.plane),
            whole: self.splits == 1,
        }
    }

    /// A cube a key/value head, a share of its keys, and a row or tile of `count`.
    pub(super) fn cubes(&self, count: usize) -> CubeCount {
        CubeCount::Static(self.shape.kv_heads as u32, self.splits as u32, count as u32)
    }

    /// What the cubes write: the result, or shares of it.
    pub(super) fn target(&self) -> &Buffer {
        if self.splits == 1 { self.out } else { self.shares }
    }

    /// [`Attention::reach`] as kernels count with it.
    pub(super) fn reach_word(&self) -> u32 {
        self.reach.min(1 << 30) as u32
    }

    /// What scores are multiplied by: 1 / √head_dim.
    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.shape.head_dim as f32).sqrt()
    }

    pub fn launch(&self, gpu: &Gpu) {
        let shape = self.shape(gpu);
        // SAFETY: a row's pages were reserved up to its position, and every output has its place in the buffers.
        unsafe {
            attention::launch_unchecked(
                &gpu.client,
                self.cubes(self.inputs),
                CubeDim::new_1d(shape.units),
                self.queries.arg4(),
                self.rows.arg(),
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

    /// The same, of rows that are not rotated and whose keys and values are not in the cache: puts them there. Of every sequence
    /// there may be one row.
    pub fn launch_unrotated(&self, gpu: &Gpu, Unrotated { qkv, table }: Unrotated<'_>) {
        let shape = self.shape(gpu);
        // SAFETY: as above, and positions are below the table's.
        unsafe {
            attention_unrotated::launch_unchecked(
                &gpu.client,
                self.cubes(self.inputs),
                CubeDim::new_1d(shape.units),
                qkv.arg(),
                table.arg2(),
                self.rows.arg(),
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

    /// Adds up the shares, if there are several.
    pub(super) fn combine_shares(&self, gpu: &Gpu, shape: Shape) {
        if self.splits == 1 {
            return;
        }
        // SAFETY: every output has its place in the buffers.
        unsafe {
            combine::launch_unchecked(
                &gpu.client,
                CubeCount::Static(self.heads as u32, self.inputs as u32, 1),
                CubeDim::new_1d((self.shape.head_dim as u32).next_multiple_of(gpu.plane)),
                self.shares.arg(),
                self.sinks.arg(),
                self.out.arg(),
                self.splits as u32,
                shape,
            );
        }
    }
}

#[cube(launch_unchecked)]
fn attention(
    queries: &[Vector<f32, Const<4>>],
    rows: &[u32],
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
    let group = comptime![shape.group()];
    let vectors = comptime![shape.vectors()];
    let mut query = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(group * vectors) as usize]);
    let share = Share::new(rows, CUBE_POS_Z, 1u32, reach, splits, shape.tile());
    let mut i = UNIT_POS;
    while i < comptime![group * vectors] {
        let at = (CUBE_POS_Z * shape.heads + CUBE_POS_X * group) * vectors + i;
        query[i as usize] = queries[at as usize] * Vector::<f32, Const<4>>::new(scale);
        i += shape.units;
    }
    attend(&query, &share, pages, keys, values, sinks, out, columns, ring_pages, splits, shape);
}

#[cube(launch_unchecked)]
fn attention_unrotated(
    qkv: &[f32],
    table: &[Vector<f32, Const<2>>],
    rows: &[u32],
    pages: &[u32],
    keys: &mut [u32],
    values: &mut [u32],
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
    let group = comptime![shape.group()];
    let vectors = comptime![shape.vectors()];
    let granules = comptime![dim / shape.row.granule() as u32];
    let mut query = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(group * vectors) as usize]);
    let share = Share::new(rows, CUBE_POS_Z, 1u32, reach, splits, shape.tile());
    let start = CUBE_POS_Z * comptime![(shape.heads + 2 * shape.row.kv_heads as u32) * dim];
    let mut i = UNIT_POS;
    while i < comptime![group * vectors] {
        let first = (CUBE_POS_X * group * vectors + i) * 4;
        let mut four = Vector::<f32, Const<4>>::empty();
        #[unroll]
        for j in 0..4u32 {
            four.insert(comptime![j as usize], rotated(qkv, table, start, first + j, share.position, dim));
        }
        query[i as usize] = four * Vector::<f32, Const<4>>::new(scale);
        i += shape.units;
    }
    // The cube that reads the row's own key puts it there; no other does.
    if share.has_last(shape.tile()) {
        let page = pages[(share.slot * columns + share.position / comptime![PAGE as u32] % ring_pages) as usize];
        let keys_start = start + comptime![shape.heads * dim];
        let mut i = UNIT_POS;
        while i < comptime![2 * granules] {
            let first = CUBE_POS_X * dim + i % granules * comptime![shape.row.granule() as u32];
            append(qkv, table, keys_start, keys, values, page, share.position, i < granules, first, shape.row);
            i += shape.units;
        }
        sync_storage();
    }
    attend(&query, &share, pages, &*keys, &*values, sinks, out, columns, ring_pages, splits, shape);
}

/// What a cube does with its share.
#[cube]
#[allow(clippy::too_many_arguments)]
fn attend(
    query: &Shared<[Vector<f32, Const<4>>]>,
    share: &Share,
    pages: &[u32],
    keys: &[u32],
    values: &[u32],
    sinks: &[f32],
    out: &mut [f32],
    columns: u32,
    ring_pages: u32,
    splits: u32,
    #[comptime] shape: Shape,
) {
    let dim = comptime![shape.dim()];
    let group = comptime![shape.group()];
    let tile = comptime![shape.tile()];
    let kv_heads = comptime![shape.row.kv_heads as u32];
    let vectors = comptime![shape.vectors()];
    // One more vector a key, so that lanes on neighbouring keys hit different banks.
    let stride = comptime![vectors + 1];
    // Keys, then values, then the parts' sums.
    let mut unpacked =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(tile * stride).max(shape.units) as usize]);
    let mut scores = Shared::<[f32]>::new_slice(comptime![(group * tile) as usize]);
    let mut largest = Shared::<[f32]>::new_slice(comptime![group as usize]);
    let mut sum = Shared::<[f32]>::new_slice(comptime![group as usize]);
    let mut rescale = Shared::<[f32]>::new_slice(comptime![group as usize]);

    let kv_head = CUBE_POS_X;
    let split = CUBE_POS_Y;
    let row = CUBE_POS_Z;
    let (position, first) = (share.position, share.first_key);
    let first_head = kv_head * group;
    if UNIT_POS < group {
        largest[UNIT_POS as usize] = f32::new(NOTHING);
        sum[UNIT_POS as usize] = 0.0f32;
    }

    let lane = UNIT_POS % comptime![shape.lanes()];
    let part = UNIT_POS / comptime![shape.lanes()];
    let my_head = lane / vectors;
    let my_vector = lane % vectors;
    let mut mixed = Vector::<f32, Const<4>>::new(0.0f32);

    let mut number = share.start;
    while number < share.end {
        let cells = share.cells(number, pages, columns, ring_pages, kv_heads, tile);
        let last_key = min(position - number * tile, tile - 1);
        let mut key_vectors = Array::<Vector<f32, Const<4>>>::new(comptime![shape.vectors_a_unit() as usize]);
        let mut value_vectors = Array::<Vector<f32, Const<4>>>::new(comptime![shape.vectors_a_unit() as usize]);
        read_tile(keys, cells, last_key, &mut key_vectors, shape);
        read_tile(values, cells, last_key, &mut value_vectors, shape);
        write_tile(&key_vectors, &mut unpacked, shape);
        sync_cube();

        let mut pair = UNIT_POS;
        while pair < comptime![group * tile / shape.heads_a_unit()] {
            let key = pair % tile;
            let head = pair / tile * comptime![shape.heads_a_unit()];
            let mut products = Array::<Vector<f32, Const<4>>>::new(comptime![shape.heads_a_unit() as usize]);
            #[unroll]
            for h in 0..comptime![shape.heads_a_unit()] {
                products[comptime![h as usize]] = Vector::<f32, Const<4>>::new(0.0f32);
            }
            #[unroll]
            for v in 0..vectors {
                let key_vector = unpacked[(key * stride + v) as usize];
                #[unroll]
                for h in 0..comptime![shape.heads_a_unit()] {
                    products[comptime![h as usize]] += key_vector * query[((head + h) * vectors + v) as usize];
                }
            }
            let key_position = number * tile + key;
            let visible = key_position <= position && key_position >= first;
            #[unroll]
            for h in 0..comptime![shape.heads_a_unit()] {
                let score = sum4(products[comptime![h as usize]]);
                scores[((head + h) * tile + key) as usize] = select(visible, score, f32::new(NOTHING));
            }
            pair += shape.units;
        }
        sync_cube();

        write_tile(&value_vectors, &mut unpacked, shape);
        // A plane takes a head at a time.
        let mut head = PLANE_POS;
        while head < group {
            let mut most = f32::new(NOTHING);
            let mut key = UNIT_POS_PLANE;
            while key < tile {
                most = max(most, scores[(head * tile + key) as usize]);
                key += PLANE_DIM;
            }
            let before = largest[head as usize];
            let most = max(plane_max(most), before);
            let mut added = 0.0f32;
            let mut key = UNIT_POS_PLANE;
            while key < tile {
                let p = (scores[(head * tile + key) as usize] - most).exp();
                scores[(head * tile + key) as usize] = p;
                added += p;
                key += PLANE_DIM;
            }
            let added = plane_sum(added);
            if UNIT_POS_PLANE == 0 {
                let factor = (before - most).exp();
                rescale[head as usize] = factor;
                sum[head as usize] = sum[head as usize] * factor + added;
                largest[head as usize] = most;
            }
            head += CUBE_DIM / PLANE_DIM;
        }
        sync_cube();

        if part < comptime![shape.parts()] {
            mixed *= Vector::<f32, Const<4>>::new(rescale[my_head as usize]);
            let mut key = part;
            while key <= last_key {
                let score = Vector::<f32, Const<4>>::new(scores[(my_head * tile + key) as usize]);
                mixed += score * unpacked[(key * stride + my_vector) as usize];
                key += comptime![shape.parts()];
            }
        }
        sync_cube();
        number += 1;
    }
    if part < comptime![shape.parts()] {
        unpacked[UNIT_POS as usize] = mixed;
    }
    sync_cube();

    if part == 0 {
        #[unroll]
        for other in 1..comptime![shape.parts()] {
            mixed += unpacked[(lane + comptime![other * shape.lanes()]) as usize];
        }
        let query_head = first_head + my_head;
        if comptime![shape.whole] {
            let sink = sinks[query_head as usize];
            let factor = with_sink(largest[my_head as usize], sum[my_head as usize], sink);
            mixed *= Vector::<f32, Const<4>>::new(factor);
            #[unroll]
            for i in 0..4u32 {
                let at = (row * shape.heads + query_head) * dim + my_vector * 4 + i;
                out[at as usize] = mixed.extract(comptime![i as usize]);
            }
        } else {
            let target = ((row * shape.heads + query_head) * splits + split) * comptime![shape.share_words()];
            #[unroll]
            for i in 0..4u32 {
                out[(target + my_vector * 4 + i) as usize] = mixed.extract(comptime![i as usize]);
            }
            if my_vector == 0 {
                out[(target + dim) as usize] = largest[my_head as usize];
                out[(target + dim + 1) as usize] = sum[my_head as usize];
            }
        }
    }
}

/// This unit's vectors of a tile whose rows begin at cell `cells`. What lies past `last_key` need not be a number: it is read as zeros.
#[cube]
fn read_tile(
    pool: &[u32],
    cells: u32,
    last_key: u32,
    found: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] shape: Shape,
) {
    let words = comptime![shape.row.words() as u32];
    #[unroll]
    for round in 0..comptime![shape.vectors_a_unit()] {
        let i = UNIT_POS + comptime![round * shape.units];
        let key = i / comptime![shape.vectors()];
        let vector =
            cached_vector(pool, (cells + min(key, last_key)) * words, i % comptime![shape.vectors()], shape.row);
        let kept = select(key <= last_key, 1.0f32, 0.0f32);
        found[comptime![round as usize]] = vector * Vector::<f32, Const<4>>::new(kept);
    }
}

/// Puts the vectors that [`read_tile`] found where all units see them.
#[cube]
fn write_tile(
    found: &Array<Vector<f32, Const<4>>>,
    tile: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for round in 0..comptime![shape.vectors_a_unit()] {
        let i = UNIT_POS + comptime![round * shape.units];
        if i < comptime![shape.tile() * shape.vectors()] {
            let at = i / comptime![shape.vectors()] * comptime![shape.vectors() + 1] + i % comptime![shape.vectors()];
            tile[at as usize] = found[comptime![round as usize]];
        }
    }
}

/// What values, weighed by exponentials of scores less `largest`, are multiplied by in the end: the exponentials' sum is `total`, and
/// the sink's is one more.
#[cube]
pub(super) fn with_sink(largest: f32, total: f32, sink: f32) -> f32 {
    let most = max(largest, sink);
    let factor = (largest - most).exp();
    factor / (total * factor + (sink - most).exp())
}

/// Adds up the shares of each head, and the sink.
#[cube(launch_unchecked)]
fn combine(shares: &[f32], sinks: &[f32], out: &mut [f32], splits: u32, #[comptime] shape: Shape) {
    let dim = comptime![shape.dim()];
    let words = comptime![shape.share_words()];
    let head = CUBE_POS_X;
    let row = CUBE_POS_Y;
    let start = (row * shape.heads + head) * (splits * words);
    let sink = sinks[head as usize];
    let column = min(UNIT_POS, dim - 1);
    let mut most = sink;
    let mut total = 1.0f32;
    let mut mixed = 0.0f32;
    let mut done = 0u32;
    while done < splits {
        let mut maxima = Array::<f32>::new(comptime![SHARES_AT_ONCE as usize]);
        let mut sums = Array::<f32>::new(comptime![SHARES_AT_ONCE as usize]);
        let mut values = Array::<f32>::new(comptime![SHARES_AT_ONCE as usize]);
        #[unroll]
        for i in 0..SHARES_AT_ONCE {
            let split = done + i;
            let share = start + min(split, splits - 1) * words;
            let largest = shares[(share + dim) as usize];
            maxima[comptime![i as usize]] = select(split < splits, largest, f32::new(2.0 * NOTHING));
            sums[comptime![i as usize]] = shares[(share + dim + 1) as usize];
            values[comptime![i as usize]] = shares[(share + column) as usize];
        }
        let before = most;
        #[unroll]
        for i in 0..SHARES_AT_ONCE {
            most = max(most, maxima[comptime![i as usize]]);
        }
        let factor = (before - most).exp();
        total *= factor;
        mixed *= factor;
        #[unroll]
        for i in 0..SHARES_AT_ONCE {
            let factor = (maxima[comptime![i as usize]] - most).exp();
            total += factor * sums[comptime![i as usize]];
            mixed += factor * values[comptime![i as usize]];
        }
        done += SHARES_AT_ONCE;
    }
    if UNIT_POS < dim {
        out[((row * shape.heads + head) * dim + UNIT_POS) as usize] = mixed / total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::cache::Cache;
    use crate::gpu::kernels::cache::CacheRow;
    use crate::gpu::kernels::flash;
    use crate::gpu::kernels::fragments::Planes;
    use crate::gpu::kernels::prefill::{self, rows_a_tile, tiles};
    use crate::gpu::kernels::rope::Rope;
    use crate::gpu::kernels::testing::{F16, F32, Random, assert_close, assert_within, gpu, heads_config, poisoned};
    use crate::gpu::rows::Row;
    use phase1_loading::AttentionKind;
    use phase3_kvcache::CacheType;

    /// Appends two sequences' tokens in passes of several lengths through the real cache, and compares what the last two passes
    /// attend to with softmax over everything in f64: one of several tokens, one of a token each. Keys and values are read back, so
    /// that only attention is judged.
    fn check(heads: usize, kv_heads: usize, head_dim: usize, kind: CacheType, splits: usize) {
        let gpu = gpu();
        let mut random = Random::fresh();
        let window = 1 + random.below(150);
        let kinds = vec![AttentionKind::Sliding, AttentionKind::Full];
        let config = heads_config([heads, kv_heads, head_dim], window, kinds);
        let context = format!("{heads} {kv_heads} {head_dim} {kind} {splits} {window} {random:?}");
        let width = (heads + 2 * kv_heads) * head_dim;
        let (longest, passes) = (70, 7);
        let row = CacheRow::new(kind, &config).expect("whole blocks");
        let mut cache = Cache::new(&gpu, &config, row, 64, longest);
        let angles: Vec<f32> =
            (0..passes * longest * head_dim / 2).flat_map(|i| [(i as f32).cos(), (i as f32).sin()]).collect();
        let table = gpu.upload_f32(&angles);
        let sinks = random.values(heads, 2.0);
        let mut lengths = [0usize; 2];
        for pass in 0..passes {
            let new = match pass {
                0 => [longest, 1],
                6 => [1, 1],
                _ => [(); 2].map(|()| 2 + random.below(longest - 1)),
            };
            let mut rows = Vec::new();
            for sequence in 0..2 {
                let positions = lengths[sequence]..lengths[sequence] + new[sequence];
                cache.extend(&gpu, &[(sequence as u64, positions.end)]).expect("room");
                let slot = cache.slot(sequence as u64);
                rows.extend(positions.map(|position| Row { token: Some(0), position: position as u32, slot }));
                lengths[sequence] += new[sequence];
            }
            let inputs = rows.len();
            let qkv = random.values(inputs * width, 1.0);
            let row_words = gpu.upload(rows.iter().flat_map(|row| row.words()).collect());
            let qkv_buffer = gpu.upload_f32(&qkv);
            for layer in 0..2 {
                let queries = poisoned(&gpu, inputs * heads * head_dim);
                let (out, tiled) = (poisoned(&gpu, queries.len), poisoned(&gpu, queries.len));
                let shares = poisoned(&gpu, inputs * heads * splits * (head_dim + 2));
                let reach = if layer == 0 { window } else { usize::MAX };
                let attention = Attention {
                    queries: &queries,
                    rows: &row_words,
                    cache: cache.layer(layer),
                    sinks: &gpu.upload_f32(&sinks),
                    out: &out,
                    shares: &shares,
                    splits,
                    heads,
                    shape: cache.row,
                    reach,
                    inputs,
                };
                let pool = || {
                    let pool = cache.layer(layer).pool;
                    [&pool.keys, &pool.values].map(|part| gpu.read(part).expect("reads"))
                };
                let mut outs = Vec::new();
                let alone = (inputs == 2).then(|| {
                    let (out, shares) = (poisoned(&gpu, queries.len), poisoned(&gpu, shares.len));
                    let attention = Attention { out: &out, shares: &shares, cache: cache.layer(layer), ..attention };
                    attention.launch_unrotated(&gpu, Unrotated { qkv: &qkv_buffer, table: &table });
                    outs.push((F32, gpu.read_f32(&out).expect("reads")));
                    pool()
                });
                Rope {
                    qkv: &qkv_buffer,
                    table: &table,
                    rows: &row_words,
                    cache: cache.layer(layer),
                    queries: &queries,
                    heads,
                    shape: cache.row,
                    inputs,
                }
                .launch(&gpu);
                assert!(alone.is_none_or(|alone| alone == pool()), "{context}: another cache");
                attention.launch(&gpu);
                outs.push((F32, gpu.read_f32(&out).expect("reads")));
                if let Some(most) = rows_a_tile(&config) {
                    let words = tiles(&rows, most);
                    let shares = poisoned(&gpu, shares.len);
                    let count = words.len() / prefill::TILE_WORDS;
                    Attention { out: &tiled, shares: &shares, cache: cache.layer(layer), ..attention }.launch_tiles(
                        &gpu,
                        &gpu.upload(words),
                        count,
                    );
                    outs.push((F32, gpu.read_f32(&tiled).expect("reads")));
                }
                let planes = gpu.planes.unwrap_or(Planes::PLAYED);
                if let Some(most) = flash::rows_a_tile(planes, &config) {
                    let words = tiles(&rows, most);
                    let (tiled, shares) = (poisoned(&gpu, queries.len), poisoned(&gpu, shares.len));
                    let count = words.len() / prefill::TILE_WORDS;
                    let attention = Attention { out: &tiled, shares: &shares, ..attention };
                    attention.launch_flash(&gpu, &gpu.upload(words), count, planes);
                    let limit = if planes.fragments { F16 } else { F32 };
                    outs.push((limit, gpu.read_f32(&tiled).expect("reads")));
                }
                let queries = gpu.read_f32(&queries).expect("reads");
                // The rotation: checked on the queries.
                for (input, row) in rows.iter().enumerate() {
                    for head in 0..heads {
                        let q = &qkv[input * width + head * head_dim..][..head_dim];
                        for i in 0..head_dim {
                            let half = head_dim / 2;
                            let angle = 2 * (row.position as usize * half + i % half);
                            let (cos, sin) = (f64::from(angles[angle]), f64::from(angles[angle + 1]));
                            let partner = if i < half { -q[i + half] } else { q[i - half] };
                            let expected = f64::from(q[i]) * cos + f64::from(partner) * sin;
                            let found = queries[(input * heads + head) * head_dim + i];
                            assert_close(found, expected, 2.0, &context);
                        }
                    }
                }
                if pass + 2 < passes {
                    continue;
                }
                let [keys, values] = pool();
                for (input, row) in rows.iter().enumerate() {
                    let position = row.position as usize;
                    let sequence = (0..2).find(|&s| cache.slot(s) == row.slot).expect("a sequence");
                    let places = cache.places_up_to(sequence, layer, lengths[sequence as usize]);
                    for head in 0..heads {
                        let first = (position + 1).saturating_sub(reach);
                        let kv_head = head / (heads / kv_heads);
                        let read = |pool: &[u32], place: usize| {
                            let words = cache.row.words();
                            cache.row.decode(&pool[(place + kv_head * crate::gpu::cache::PAGE) * words..][..words])
                        };
                        let q = &queries[(input * heads + head) * head_dim..][..head_dim];
                        let seen: Vec<&(usize, usize)> =
                            places.iter().filter(|(p, _)| (first..=position).contains(p)).collect();
                        assert_eq!(seen.len(), position + 1 - first, "{context}");
                        let mut total = f64::from(sinks[head]).exp();
                        let mut mixed = vec![0.0; head_dim];
                        for &&(_, place) in &seen {
                            let key = read(&keys, place);
                            let score: f64 = q.iter().zip(&key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                            let p = (score / (head_dim as f64).sqrt()).exp();
                            total += p;
                            for (mixed, value) in mixed.iter_mut().zip(read(&values, place)) {
                                *mixed += p * f64::from(value);
                            }
                        }
                        for (i, mixed) in mixed.into_iter().enumerate() {
                            let context = format!("{context} layer {layer} row {input} {row:?}");
                            for (limit, found) in &outs {
                                let found = found[(input * heads + head) * head_dim + i];
                                assert_within(*limit, found, mixed / total, 5.0, &context);
                            }
                        }
                    }
                }
            }
            for (sequence, &length) in (0..).zip(&lengths) {
                cache.pages.advance(sequence, length);
            }
        }
    }

    #[test]
    fn equals_f64_for_every_head_shape() {
        // Each kernel takes a software rasterizer seconds to compile: shapes take turns with one share of the keys and with three.
        for (heads, kv_heads, head_dim, splits) in
            [(8, 1, 64, 3), (6, 2, 32, 1), (2, 2, 64, 1), (3, 1, 4, 3), (5, 5, 48, 3), (16, 2, 128, 1)]
        {
            check(heads, kv_heads, head_dim, CacheType::F32, splits);
        }
    }

    #[test]
    fn equals_f64_for_every_cache_type() {
        for kind in [CacheType::F16, CacheType::Q8_0] {
            for (heads, kv_heads, head_dim) in [(8, 1, 64), (6, 2, 32)] {
                check(heads, kv_heads, head_dim, kind, 2);
            }
        }
    }
}
