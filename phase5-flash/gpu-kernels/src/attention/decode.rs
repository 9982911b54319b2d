//! Attention of new tokens over the paged cache, with sinks and windows, split along the keys.
//!
//! A cube takes one row, one key/value head and a split of the keys; all query heads of the group use each key it reads. Partial
//! results are merged, and the sinks folded in, by a second launch, which is left out when there is one split.
//!
//! Ladder:
//! 1. a tile of keys unpacked into shared memory, a lane a key; values read once for all heads of the group: 555 GB/s on an H100
//!    (f32, depth 4096, 32 splits).
//! 2. eight values in flight at once, sums in variables, a unit for every value of a group: 9 µs instead of 11 at depth 0.
//! 3. keys and values both unpacked once into shared memory, in vectors of four; a unit scores a key for four heads, and sums up
//!    a part of the tile's values: 25.4 µs a launch in a step at depth 4,096 (of 24, half full) instead of 31.1.
//! 4. here, one row of every sequence: its rotation and its place in the cache are attention's, a launch less.

use cubecl::prelude::*;

use super::args::{Attention, KvArgs, MASKED, MOST_UNITS, Shape, normalizer};
use super::merge;
use super::split::KvSplit;
use crate::device::{Buffer, Device};
use crate::kv::{PAGE, cached_vector};
use crate::rope::{append, rotated};
use crate::vec4::sum4;

/// Units of a cube: one for every value of a group's output, but no fewer, nor more than [`MOST_UNITS`].
const LEAST_UNITS: u32 = 128;

impl Shape {
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
}

/// What attention reads if the rotation is left to it.
#[derive(Clone, Copy)]
pub struct Unrotated<'a> {
    /// Queries, keys and values `[inputs, (heads + 2 kv_heads) · head_dim]`.
    pub qkv: &'a Buffer,
    /// As [`Rope`](crate::Rope)'s.
    pub table: &'a Buffer,
}

impl Attention<'_> {
    /// A cube for every row.
    ///
    /// # Panics
    /// If a buffer is too short.
    pub fn launch(&self, device: &Device) {
        self.check();
        self.check_queries();
        self.launch_rows(device, self.queries, self.queries, false);
    }

    /// The same, of rows that are not rotated and whose keys and values are not in the cache: puts them there. Of every sequence
    /// there may be one row.
    ///
    /// # Panics
    /// If a buffer is too short.
    pub fn launch_unrotated(&self, device: &Device, Unrotated { qkv, table }: Unrotated<'_>) {
        let row = self.cache.pool.row();
        self.check();
        qkv.expect("queries, keys and values", self.inputs * (self.heads + 2 * row.kv_heads()) * row.head_dim());
        table.expect("the rotations", row.head_dim());
        self.launch_rows(device, qkv, table, true);
    }

    fn launch_rows(&self, device: &Device, queries: &Buffer, table: &Buffer, rotate: bool) {
        let pool = self.cache.pool;
        let values = (self.heads / pool.row().kv_heads() * pool.row().head_dim()) as u32;
        let units = device.whole_planes(values.clamp(LEAST_UNITS, MOST_UNITS));
        // SAFETY: lengths are checked. Positions, slots and pages are what the rows and the page table say: the caller's promise.
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
            );
        }
        merge::launch(device, self);
    }
}

/// `queries` are rotated ones; or, to `rotate` them here, queries, keys and values.
#[cube(launch_unchecked)]
fn attention(
    mut args: KvArgs,
    keys: &mut [Vector<u32, Const<4>>],
    values: &mut [Vector<u32, Const<4>>],
    queries: &[f32],
    table: &[Vector<f32, Const<2>>],
    #[comptime] shape: Shape,
    #[comptime] rotate: bool,
) {
    let dim = comptime![shape.dim()];
    let group = comptime![shape.group()];
    let vectors = comptime![shape.vectors()];
    let mut query = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(group * vectors) as usize]);
    let split = KvSplit::new(&args, CUBE_POS_Z, 1u32, shape.tile());
    let width = comptime![(shape.heads + if rotate { 2 * shape.kv_heads() } else { 0 }) * dim];
    let start = CUBE_POS_Z * width;
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
    if comptime![rotate] {
        // The cube that reads the row's own key puts it there; no other does.
        if split.has_last(shape.tile()) {
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
    attend(&query, &split, &mut args, &*keys, &*values, shape);
}

/// What a cube does with its split of the keys.
#[cube]
fn attend(
    query: &Shared<[Vector<f32, Const<4>>]>,
    split: &KvSplit,
    args: &mut KvArgs,
    keys: &[Vector<u32, Const<4>>],
    values: &[Vector<u32, Const<4>>],
    #[comptime] shape: Shape,
) {
    let dim = comptime![shape.dim()];
    let group = comptime![shape.group()];
    let tile = comptime![shape.tile()];
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

    let row = CUBE_POS_Z;
    let (position, first) = (split.position, split.first_key);
    let first_head = CUBE_POS_X * group;
    if UNIT_POS < group {
        largest[UNIT_POS as usize] = f32::new(MASKED);
        sum[UNIT_POS as usize] = 0.0f32;
    }

    let lane = UNIT_POS % comptime![shape.lanes()];
    let part = UNIT_POS / comptime![shape.lanes()];
    let my_head = lane / vectors;
    let my_vector = lane % vectors;
    let mut acc = Vector::<f32, Const<4>>::new(0.0f32);

    let mut number = split.start;
    while number < split.end {
        let kv_slots = split.kv_slots(&*args, number, shape.kv_heads(), tile);
        let last_key = min(position - number * tile, tile - 1);
        let mut key_vectors = Array::<Vector<f32, Const<4>>>::new(comptime![shape.vectors_a_unit() as usize]);
        let mut value_vectors = Array::<Vector<f32, Const<4>>>::new(comptime![shape.vectors_a_unit() as usize]);
        read_tile(keys, kv_slots, last_key, &mut key_vectors, shape);
        read_tile(values, kv_slots, last_key, &mut value_vectors, shape);
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
                scores[((head + h) * tile + key) as usize] = select(visible, score, f32::new(MASKED));
            }
            pair += shape.units;
        }
        sync_cube();

        write_tile(&value_vectors, &mut unpacked, shape);
        // A plane takes a head at a time.
        let mut head = PLANE_POS;
        while head < group {
            let mut most = f32::new(MASKED);
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
            acc *= Vector::<f32, Const<4>>::new(rescale[my_head as usize]);
            let mut key = part;
            while key <= last_key {
                let score = Vector::<f32, Const<4>>::new(scores[(my_head * tile + key) as usize]);
                acc += score * unpacked[(key * stride + my_vector) as usize];
                key += comptime![shape.parts()];
            }
        }
        sync_cube();
        number += 1;
    }
    if part < comptime![shape.parts()] {
        unpacked[UNIT_POS as usize] = acc;
    }
    sync_cube();

    if part == 0 {
        #[unroll]
        for other in 1..comptime![shape.parts()] {
            acc += unpacked[(lane + comptime![other * shape.lanes()]) as usize];
        }
        let query_head = first_head + my_head;
        if comptime![shape.whole] {
            let sink = args.sinks[query_head as usize];
            let factor = normalizer(largest[my_head as usize], sum[my_head as usize], sink);
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
                args.out[(target + dim + 1) as usize] = sum[my_head as usize];
            }
        }
    }
}

/// This unit's vectors of a tile of keys or values that begins at `kv_slots`. What lies past `last_key` may be NaN: the last key is read
/// in its place, times zero.
#[cube]
fn read_tile(
    pool: &[Vector<u32, Const<4>>],
    kv_slots: u32,
    last_key: u32,
    found: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] shape: Shape,
) {
    let row_vectors = comptime![shape.row.vectors()];
    #[unroll]
    for round in 0..comptime![shape.vectors_a_unit()] {
        let i = UNIT_POS + comptime![round * shape.units];
        let key = i / comptime![shape.vectors()];
        let row = (kv_slots + min(key, last_key)) * row_vectors;
        let vector = cached_vector(pool, row, i % comptime![shape.vectors()], shape.row);
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
