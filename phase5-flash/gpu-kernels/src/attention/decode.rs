//! Attention of new tokens over the paged cache, with sinks and windows, split along the keys.
//!
//! A cube handles one row, one key/value head and one split of the keys; all query heads of the group use each key that it reads. A second
//! launch merges partial results and adds the sinks; with a single split it is not needed.
//!
//! History:
//! 1. a tile of keys unpacked into shared memory, one lane per key; values read once for all heads of the group: 555 GB/s on an H100 (f32,
//!    depth 4096, 32 splits).
//! 2. eight values in flight at once, sums in variables, one unit for every value of a group: 9 µs instead of 11 at depth 0.
//! 3. keys and values both unpacked once into shared memory, in vectors of four; a unit scores a key for four heads and sums a part of the
//!    tile's values: 25.4 µs per launch in a step at depth 4,096 (of 24 launches, half are in full layers) instead of 31.1.
//! 4. current version: with one row per sequence, attention also rotates and appends, which saves a launch.

use cubecl::prelude::*;

use super::args::{Attention, KvArgs, MASKED, MOST_UNITS, Shape, normalizer};
use super::merge;
use super::split::KvSplit;
use crate::device::{Buffer, Device};
use crate::kv::{PAGE, cached_vector};
use crate::rope::{append, rotated};
use crate::vec4::sum4;

/// The fewest units of a cube. Otherwise there is one for every value of a group's output, up to [`MOST_UNITS`].
const LEAST_UNITS: u32 = 128;

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
    fn heads_a_unit(&self) -> u32 {
        if self.group().is_multiple_of(4) { 4 } else { 1 }
    }

    /// Vectors of a tile that a unit unpacks.
    fn vectors_a_unit(&self) -> u32 {
        (self.tile() * self.vectors()).div_ceil(self.units)
    }

    /// Keys that are unpacked together: fewer if heads are long, so that they fit the shared memory of every device.
    fn tile(&self) -> u32 {
        (4096 / self.dim().next_power_of_two()).min(PAGE as u32)
    }
}

/// Inputs of a launch that rotates and appends as well.
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
    /// If a buffer is too short.
    pub fn launch(&self, device: &Device) {
        self.check();
        self.check_queries();
        self.launch_rows(device, self.queries, self.queries, false);
    }

    /// As [`Attention::launch`], for rows that are not rotated and not in the cache: rotates them, and appends their keys and values. At
    /// most one row per sequence.
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
        let row = self.cache.pool.row();
        let values = (self.heads / row.kv_heads() * row.head_dim()) as u32;
        let units = device.whole_planes(values.clamp(LEAST_UNITS, MOST_UNITS));
        // SAFETY: lengths are checked. Positions, slots and pages come from the rows and the page table; the caller promises that they are
        // in range.
        unsafe {
            attention::launch_unchecked(
                device.client(),
                self.cubes(self.inputs),
                CubeDim::new_1d(units),
                self.args(),
                queries.arg(),
                table.arg2(),
                self.shape(units),
                rotate,
            );
        }
        merge::launch(device, self);
    }
}

/// `queries` holds rotated queries; with `rotate`, queries, keys and values to be rotated here.
#[cube(launch_unchecked)]
fn attention(
    mut args: KvArgs,
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
        // Only the cube whose split contains the row's own key appends it.
        if split.has_last(shape.tile()) {
            let column = split.position / comptime![PAGE as u32] % args.ring_pages;
            let page = args.pages[(split.slot * args.columns + column) as usize];
            let keys_start = start + comptime![shape.heads * dim];
            let granule = comptime![shape.row.granule() as u32];
            let granules = comptime![dim / granule];
            let mut i = UNIT_POS;
            while i < comptime![2 * granules] {
                let first = CUBE_POS_X * dim + i % granules * granule;
                append(
                    queries,
                    table,
                    keys_start,
                    &mut args.keys,
                    &mut args.values,
                    page,
                    split.position,
                    i < granules,
                    first,
                    shape.row,
                );
                i += shape.units;
            }
            sync_storage();
        }
    }
    attend(&query, &split, &mut args, shape);
}

/// Attention of a cube over its split of the keys.
#[cube]
fn attend(query: &Shared<[Vector<f32, Const<4>>]>, split: &KvSplit, args: &mut KvArgs, #[comptime] shape: Shape) {
    let dim = comptime![shape.dim()];
    let group = comptime![shape.group()];
    let tile = comptime![shape.tile()];
    let vectors = comptime![shape.vectors()];
    // One extra vector per key, so that lanes on neighbouring keys access different banks.
    let stride = comptime![vectors + 1];
    // First keys, then values, then the sums of the parts.
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
        read_tile(&args.keys, kv_slots, last_key, &mut key_vectors, shape);
        read_tile(&args.values, kv_slots, last_key, &mut value_vectors, shape);
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
        // Each plane handles one head at a time.
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

/// Reads this unit's vectors of a tile of keys or values that begins at `kv_slots`. Data after `last_key` may be NaN: instead, the last key
/// is read and multiplied by zero.
#[cube]
fn read_tile(
    pool: &[u32],
    kv_slots: u32,
    last_key: u32,
    found: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] shape: Shape,
) {
    let words = comptime![shape.words()];
    #[unroll]
    for round in 0..comptime![shape.vectors_a_unit()] {
        let i = UNIT_POS + comptime![round * shape.units];
        let key = i / comptime![shape.vectors()];
        let vector =
            cached_vector(pool, (kv_slots + min(key, last_key)) * words, i % comptime![shape.vectors()], shape.row);
        let kept = select(key <= last_key, 1.0f32, 0.0f32);
        found[comptime![round as usize]] = vector * Vector::<f32, Const<4>>::new(kept);
    }
}

/// Writes the vectors of [`read_tile`] to shared memory.
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
