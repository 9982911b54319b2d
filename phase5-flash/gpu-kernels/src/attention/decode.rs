//! Attention of new tokens over the paged cache, with sinks and windows, split along the keys.
//!
//! A cube handles one row, one key/value head and one split of the keys; all query heads of the group use each key that it reads. A second
//! launch merges the partial results of the splits and adds the sinks. A single split needs no second launch: this kernel then adds the
//! sinks.
//!
//! History:
//! 1. a tile of keys unpacked into shared memory, one lane per key; values read once for all heads of the group: 555 GB/s on an H100 (f32,
//!    depth 4096, 32 splits).
//! 2. a unit loads eight values at once and keeps its sum in a register; one unit per value of a group: 9 µs instead of 11 at depth 0.
//! 3. keys and values both unpacked once into shared memory, in vectors of four; a unit scores a key for four heads and sums a part of the
//!    tile's values: 25.4 µs per launch in a step at depth 4,096 (of 24 launches, half are in full layers) instead of 31.1.
//! 4. with one row per sequence, attention also rotates queries and keys and appends to the cache, which saves a launch. At depth 16,384 a
//!    full layer takes 52 µs more than with an empty cache: 1.3 TB/s.
//! 5. current version: the next keys and values are read, 16 bytes at a time, while a tile is processed; a unit adds the weighted values of
//!    eight keys at once; one unit for every two values of a group. Not measured separately: with the changes to splits, decoding at depth
//!    16,384 reaches 410 tok/s instead of 362 on an H200, and 459 instead of 435 at depth 4,096 (gpt-oss-20b's shape, f32).

use cubecl::prelude::*;

use super::args::{Attention, KvArgs, MASKED, MAX_UNITS, Shape, normalizer};
use super::merge;
use super::split::KvSplit;
use super::tile::{Tile, read_tile, write_tile};
use crate::device::Buffer;
use crate::gpu::Gpu;
use crate::kv::PAGE;
use crate::rope::{append, rotated};
use crate::vec4::sum4;

/// The fewest units of a cube. Otherwise there is one for every two values of a group's output, up to [`MAX_UNITS`].
const MIN_UNITS: u32 = 128;
/// The most keys whose weighted values a unit adds at once.
const MAX_AT_ONCE: u32 = 8;

impl Shape {
    /// Units that hold a group's output, with four values each.
    fn lanes(&self) -> u32 {
        self.group() * self.vectors()
    }

    /// Parts of a tile whose weighted sums are computed in parallel.
    fn parts(&self) -> u32 {
        self.units / self.lanes()
    }

    /// Query heads for which a unit scores a key.
    fn heads_per_unit(&self) -> u32 {
        if self.group().is_multiple_of(4) { 4 } else { 1 }
    }

    /// Keys that are unpacked together: fewer if heads are large, so that they fit the shared memory of every device.
    fn tile_keys(&self) -> u32 {
        (4096 / self.dim().next_power_of_two()).min(PAGE as u32)
    }

    /// In shared memory each key has one extra vector, so that lanes on neighbouring keys access different banks.
    fn tile(&self, pairs: bool) -> Tile {
        Tile { row: self.row, keys: self.tile_keys(), units: self.units, stride: self.vectors() + 1, pairs }
    }

    /// Keys whose weighted values a unit adds at once.
    fn at_once(&self) -> u32 {
        self.tile_keys().div_ceil(self.parts()).min(MAX_AT_ONCE)
    }

    /// Whether the keys of a tile are a multiple of the keys that all parts add at once, so that no bounds check is needed.
    fn weighs_evenly(&self) -> bool {
        self.tile_keys().is_multiple_of(self.parts() * self.at_once())
    }
}

/// Inputs of a launch that also rotates queries and keys, and appends keys and values to the cache.
#[derive(Clone, Copy)]
pub struct Unrotated<'a> {
    /// Queries, keys and values `[inputs, (heads + 2 kv_heads) · head_dim]`.
    pub qkv: &'a Buffer,
    /// Cosines and sines, as in [`Rope`](crate::Rope).
    pub table: &'a Buffer,
}

impl Attention<'_> {
    /// Launches one cube per row, key/value head and split.
    ///
    /// # Panics
    /// If the heads are not supported, a buffer is too short, the page table has no columns, or `splits` or `reach` is 0.
    pub fn launch(&self, gpu: &Gpu) {
        self.check();
        self.check_queries();
        self.launch_rows(gpu, self.queries, self.queries, false);
    }

    /// As [`Attention::launch`], for rows that are not yet rotated and not in the cache: rotates them, and appends their keys and values to
    /// the cache. There must be at most one row per sequence.
    ///
    /// # Panics
    /// If the heads are not supported, a buffer is too short, the page table has no columns, or `splits` or `reach` is 0.
    pub fn launch_unrotated(&self, gpu: &Gpu, Unrotated { qkv, table }: Unrotated<'_>) {
        let row = self.cache.pool.row();
        self.check();
        qkv.expect("queries, keys and values", self.inputs * (self.heads + 2 * row.kv_heads()) * row.head_dim());
        table.expect("the rotations", row.head_dim());
        self.launch_rows(gpu, qkv, table, true);
    }

    fn launch_rows(&self, gpu: &Gpu, queries: &Buffer, table: &Buffer, rotate: bool) {
        let (device, pool) = (&gpu.device, self.cache.pool);
        let values = (self.heads / pool.row().kv_heads() * pool.row().head_dim()) as u32;
        let units = device.whole_planes((values / 2).clamp(MIN_UNITS, MAX_UNITS));
        // SAFETY: lengths are checked. Positions, slots and pages come from the rows and the page table; the caller promises that they are
        // in range.
        unsafe {
            attention::launch_unchecked(
                device.client(),
                self.cubes(self.inputs),
                CubeDim::new_1d(units),
                self.args(),
                pool.keys().arg4(),
                pool.values().arg4(),
                queries.arg(),
                table.arg2(),
                self.shape(units),
                rotate,
                gpu.has_f16_pairs(),
            );
        }
        merge::launch(device, self);
    }
}

/// `queries` holds rotated queries; with `rotate`, it holds queries, keys and values that this kernel rotates. With `pairs`, words are
/// reinterpreted as pairs of 16-bit floats.
#[cube(launch_unchecked)]
fn attention(
    mut args: KvArgs,
    keys: &mut [Vector<u32, Const<4>>],
    values: &mut [Vector<u32, Const<4>>],
    queries: &[f32],
    table: &[Vector<f32, Const<2>>],
    #[comptime] shape: Shape,
    #[comptime] rotate: bool,
    #[comptime] pairs: bool,
) {
    let dim = comptime![shape.dim()];
    let group = comptime![shape.group()];
    let vectors = comptime![shape.vectors()];
    let tile = comptime![shape.tile(pairs)];
    let split = KvSplit::new(&args, CUBE_POS_Z, 1u32, tile.keys);
    let width = comptime![(shape.heads + if rotate { 2 * shape.kv_heads() } else { 0 }) * dim];
    let start = CUBE_POS_Z * width;
    if comptime![rotate] {
        // Only the cube whose split contains the row's own key appends it.
        if split.has_last(tile.keys) {
            let column = split.position / comptime![PAGE as u32] % args.ring_pages;
            let page = args.pages[(split.slot * args.columns + column) as usize];
            let keys_start = start + comptime![shape.heads * dim];
            let piece = comptime![shape.row.piece_values() as u32];
            let pieces = comptime![shape.row.pieces()];
            let mut i = UNIT_POS;
            while i < comptime![2 * pieces] {
                let first = CUBE_POS_X * dim + i % pieces * piece;
                let is_key = i < pieces;
                append(queries, table, keys_start, keys, values, page, split.position, is_key, first, shape.row);
                i += shape.units;
            }
            sync_storage();
        }
    }

    // The first keys and values are being loaded while the queries are rotated.
    let mut key_read = Array::<Vector<u32, Const<4>>>::new(comptime![tile.vectors_per_unit()]);
    let mut value_read = Array::<Vector<u32, Const<4>>>::new(comptime![tile.vectors_per_unit()]);
    if split.start < split.end {
        let kv_slots = split.kv_slots(&args, split.start, shape.kv_heads(), tile.keys);
        let last_key = min(split.position - split.start * tile.keys, comptime![tile.keys - 1]);
        read_tile(&*keys, kv_slots, last_key, &mut key_read, tile);
        read_tile(&*values, kv_slots, last_key, &mut value_read, tile);
    }
    let mut query = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(group * vectors) as usize]);
    let mut i = UNIT_POS;
    while i < comptime![group * vectors] {
        let first = (CUBE_POS_X * group * vectors + i) * 4;
        let mut four = Vector::<f32, Const<4>>::empty();
        #[unroll]
        for j in 0..4u32 {
            let value = if comptime![rotate] {
                rotated(queries, table, start, first + j, split.position, dim)
            } else {
                queries[(start + first + j) as usize]
            };
            four.insert(comptime![j as usize], value);
        }
        query[i as usize] = four * Vector::<f32, Const<4>>::new(args.scale);
        i += shape.units;
    }
    attend(&query, &split, &mut args, &*keys, &*values, &mut key_read, &mut value_read, shape, tile);
}

/// Attention of a cube over its split of the keys. Each unit has already read its part of the first tile.
#[cube]
fn attend(
    query: &Shared<[Vector<f32, Const<4>>]>,
    split: &KvSplit,
    args: &mut KvArgs,
    keys: &[Vector<u32, Const<4>>],
    values: &[Vector<u32, Const<4>>],
    key_read: &mut Array<Vector<u32, Const<4>>>,
    value_read: &mut Array<Vector<u32, Const<4>>>,
    #[comptime] shape: Shape,
    #[comptime] tile: Tile,
) {
    let dim = comptime![shape.dim()];
    let group = comptime![shape.group()];
    let tile_keys = comptime![tile.keys];
    let vectors = comptime![shape.vectors()];
    let stride = comptime![tile.stride];
    // Holds keys, then values, and at the end the sums of the parts.
    let mut unpacked =
        Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(tile_keys * stride).max(shape.units) as usize]);
    let mut scores = Shared::<[f32]>::new_slice(comptime![(group * tile_keys) as usize]);
    let mut totals = Shared::<[f32]>::new_slice(comptime![shape.units as usize]);
    let mut largest = Shared::<[f32]>::new_slice(comptime![group as usize]);
    let mut rescale = Shared::<[f32]>::new_slice(comptime![group as usize]);

    let row = CUBE_POS_Z;
    let (position, first) = (split.position, split.first_key);
    let first_head = CUBE_POS_X * group;
    if UNIT_POS < group {
        largest[UNIT_POS as usize] = f32::new(MASKED);
    }

    let lane = UNIT_POS % comptime![shape.lanes()];
    let part = UNIT_POS / comptime![shape.lanes()];
    let parts = comptime![shape.parts()];
    let my_head = lane / vectors;
    let my_vector = lane % vectors;
    let mut acc = Vector::<f32, Const<4>>::new(0.0f32);
    let mut total = 0.0f32;

    let mut number = split.start;
    // The address of the next tile is computed before it is needed, because it depends on the page table.
    let mut next_slots = 0u32;
    if number + 1 < split.end {
        next_slots = split.kv_slots(&*args, number + 1, shape.kv_heads(), tile_keys);
    }
    while number < split.end {
        let last_key = min(position - number * tile_keys, comptime![tile_keys - 1]);
        let next = min(number + 1, split.end - 1);
        let next_last = min(position - next * tile_keys, comptime![tile_keys - 1]);
        write_tile::<f32>(&*key_read, &mut unpacked, tile);
        if number < next {
            read_tile(keys, next_slots, next_last, key_read, tile);
        }
        sync_cube();

        let mut pair = UNIT_POS;
        while pair < comptime![group * tile_keys / shape.heads_per_unit()] {
            let key = pair % tile_keys;
            let head = pair / tile_keys * comptime![shape.heads_per_unit()];
            let mut products = Array::<Vector<f32, Const<4>>>::new(comptime![shape.heads_per_unit() as usize]);
            #[unroll]
            for h in 0..comptime![shape.heads_per_unit()] {
                products[comptime![h as usize]] = Vector::<f32, Const<4>>::new(0.0f32);
            }
            #[unroll]
            for v in 0..vectors {
                let key_vector = unpacked[(key * stride + v) as usize];
                #[unroll]
                for h in 0..comptime![shape.heads_per_unit()] {
                    products[comptime![h as usize]] += key_vector * query[((head + h) * vectors + v) as usize];
                }
            }
            let key_position = number * tile_keys + key;
            let visible = key_position <= position && key_position >= first;
            #[unroll]
            for h in 0..comptime![shape.heads_per_unit()] {
                let score = sum4(products[comptime![h as usize]]);
                scores[((head + h) * tile_keys + key) as usize] = select(visible, score, f32::new(MASKED));
            }
            pair += shape.units;
        }
        sync_cube();

        write_tile::<f32>(&*value_read, &mut unpacked, tile);
        if number < next {
            read_tile(values, next_slots, next_last, value_read, tile);
            next_slots = split.kv_slots(&*args, min(next + 1, split.end - 1), shape.kv_heads(), tile_keys);
        }
        // Each plane handles one head at a time.
        let mut head = PLANE_POS;
        while head < group {
            let mut most = f32::new(MASKED);
            let mut key = UNIT_POS_PLANE;
            while key < tile_keys {
                most = max(most, scores[(head * tile_keys + key) as usize]);
                key += PLANE_DIM;
            }
            let before = largest[head as usize];
            let most = max(plane_max(most), before);
            let mut key = UNIT_POS_PLANE;
            while key < tile_keys {
                let score = scores[(head * tile_keys + key) as usize];
                scores[(head * tile_keys + key) as usize] = (score - most).exp();
                key += PLANE_DIM;
            }
            if UNIT_POS_PLANE == 0 {
                rescale[head as usize] = (before - most).exp();
                largest[head as usize] = most;
            }
            head += CUBE_DIM / PLANE_DIM;
        }
        sync_cube();

        if part < parts {
            let factor = rescale[my_head as usize];
            acc *= Vector::<f32, Const<4>>::new(factor);
            total *= factor;
            // The last round may go past `last_key`, which changes nothing: the probabilities there are zero.
            let mut done = 0u32;
            while done * parts <= last_key {
                #[unroll]
                for j in 0..comptime![shape.at_once()] {
                    let key = part + (done + j) * parts;
                    let there = if comptime![shape.weighs_evenly()] { key } else { min(key, comptime![tile_keys - 1]) };
                    let prob = scores[(my_head * tile_keys + there) as usize];
                    let prob = if comptime![shape.weighs_evenly()] { prob } else { select(key == there, prob, 0.0f32) };
                    total += prob;
                    acc += Vector::<f32, Const<4>>::new(prob) * unpacked[(there * stride + my_vector) as usize];
                }
                done += comptime![shape.at_once()];
            }
        }
        sync_cube();
        number += 1;
    }
    if part < parts {
        unpacked[UNIT_POS as usize] = acc;
        totals[UNIT_POS as usize] = total;
    }
    sync_cube();

    if part == 0 {
        #[unroll]
        for other in 1..parts {
            acc += unpacked[(lane + comptime![other * shape.lanes()]) as usize];
            total += totals[(lane + comptime![other * shape.lanes()]) as usize];
        }
        let query_head = first_head + my_head;
        if comptime![shape.whole] {
            let sink = args.sinks[query_head as usize];
            let factor = normalizer(largest[my_head as usize], total, sink);
            acc *= Vector::<f32, Const<4>>::new(factor);
            #[unroll]
            for i in 0..4u32 {
                let at = (row * shape.heads + query_head) * dim + my_vector * 4 + i;
                args.out[at as usize] = acc.extract(comptime![i as usize]);
            }
        } else {
            let target =
                ((row * shape.heads + query_head) * args.splits + CUBE_POS_Y) * comptime![shape.partial_words()];
            #[unroll]
            for i in 0..4u32 {
                args.out[(target + my_vector * 4 + i) as usize] = acc.extract(comptime![i as usize]);
            }
            if my_vector == 0 {
                args.out[(target + dim) as usize] = largest[my_head as usize];
                args.out[(target + dim + 1) as usize] = total;
            }
        }
    }
}
