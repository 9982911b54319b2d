//! Copies weights and inputs of a [fragments](super::fragments) tile to registers, and from there to shared memory: as 16-bit floats or,
//! in tests that emulate matrix units, as f32.

use cubecl::prelude::*;

use super::layout::TileSize;
use super::operand::TileRows;
use crate::packed::{PackedPair, Packing, load_blocks, packed_f16_pair, packed_f16_scale, packed_scale, packed_values};

/// Index of this unit's plane.
#[cube]
pub(super) fn plane(#[comptime] size: TileSize) -> u32 {
    UNIT_POS / size.planes.width
}

#[cube]
pub(super) fn lane(#[comptime] size: TileSize) -> u32 {
    UNIT_POS % size.planes.width
}

/// Index of this plane among those with the same columns; planes of one group have the same outputs.
#[cube]
pub(super) fn group(#[comptime] size: TileSize) -> u32 {
    plane(size) % size.groups()
}

/// Index of this plane among those with the same outputs; planes of one split have the same columns.
#[cube]
pub(super) fn split(#[comptime] size: TileSize) -> u32 {
    plane(size) / size.groups()
}

/// Index of the unit's `i`-th group of eight columns among those of its split.
#[cube]
fn eight_place(#[comptime] i: u32, #[comptime] size: TileSize) -> u32 {
    UNIT_POS % size.split_units() + comptime![i * size.split_units()]
}

/// The vector of `x` at which each of this unit's groups of eight columns begins, in block 0.
#[cube]
pub(super) fn input_starts(rows: &TileRows, blocks: u32, #[comptime] size: TileSize) -> Array<u32> {
    let mut starts = Array::<u32>::new(comptime![size.eights_per_unit() as usize]);
    #[unroll]
    for i in 0..size.eights_per_unit() {
        let place = eight_place(i, size);
        let source = rows.sources[(place / size.eights_per_row() % size.rows) as usize];
        starts[comptime![i as usize]] = source * blocks * 8 + place % size.eights_per_row() * 2;
    }
    starts
}

/// Reads this unit's groups of eight columns of the chunk that begins at block `first`. Rows past the tile's last, and blocks past the
/// inputs' last, are zeros.
#[cube]
pub(super) fn read_inputs(
    x: &[Vector<f32, Const<4>>],
    rows: &TileRows,
    starts: &Array<u32>,
    first: u32,
    blocks: u32,
    fours: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] size: TileSize,
) {
    #[unroll]
    for i in 0..size.eights_per_unit() {
        let place = eight_place(i, size);
        let at = starts[comptime![i as usize]] + first * 8;
        let mut low = Vector::<f32, Const<4>>::new(0.0f32);
        let mut high = Vector::<f32, Const<4>>::new(0.0f32);
        if place / size.eights_per_row() < rows.count && first + place % size.eights_per_row() / 4 < blocks {
            low = x[at as usize];
            high = x[(at + 1) as usize];
        }
        fours[comptime![(2 * i) as usize]] = low;
        fours[comptime![(2 * i + 1) as usize]] = high;
    }
}

/// Writes the result of [`read_inputs`] to shared memory.
#[cube]
pub(super) fn put_inputs<T: Float>(
    fours: &Array<Vector<f32, Const<4>>>,
    inputs: &mut Shared<[Vector<T, Const<4>>]>,
    #[comptime] size: TileSize,
) {
    let eights = comptime![size.rows * size.eights_per_row()];
    #[unroll]
    for i in 0..size.eights_per_unit() {
        let place = eight_place(i, size);
        if comptime![eights.is_multiple_of(size.split_units())] || place < eights {
            let row = split(size) * size.rows + place / size.eights_per_row();
            let at = row * size.inputs_stride() + place % size.eights_per_row() * 2;
            let first = Vector::<T, Const<4>>::cast_from(fours[comptime![(2 * i) as usize]]);
            let second = Vector::<T, Const<4>>::cast_from(fours[comptime![(2 * i + 1) as usize]]);
            put_eight(inputs, at, first, second);
        }
    }
}

/// Writes eight columns in the order 0 4 1 5 2 6 3 7, which is the order in which a word of MXFP4 is unpacked to pairs of codes.
#[cube]
fn put_eight<T: Float>(
    shared: &mut Shared<[Vector<T, Const<4>>]>,
    at: u32,
    first: Vector<T, Const<4>>,
    second: Vector<T, Const<4>>,
) {
    #[unroll]
    for half in 0..2u32 {
        let mut four = Vector::<T, Const<4>>::empty();
        #[unroll]
        for i in 0..2u32 {
            four.insert(comptime![(2 * i) as usize], first.extract(comptime![(2 * half + i) as usize]));
            four.insert(comptime![(2 * i + 1) as usize], second.extract(comptime![(2 * half + i) as usize]));
        }
        shared[(at + half) as usize] = four;
    }
}

/// Index of the lane's `i`-th block of weights in its plane's step. The blocks of an output are next to each other.
#[cube]
fn block_place(#[comptime] i: u32, #[comptime] size: TileSize) -> u32 {
    lane(size) + comptime![i * size.planes.width]
}

/// Reads the codes and scales of this lane's blocks, in the chunk that begins at block `first`, for outputs from `low_row` of the first
/// matrix and from `high_row` of the second on. Past the last row or block, the last ones are read; the inputs of such blocks are zeros.
#[cube]
pub(super) fn read_weights(
    weights: &PackedPair<'_>,
    low_row: u32,
    high_row: u32,
    first: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    factors: &mut Array<u32>,
    #[comptime] packing: Packing,
    #[comptime] size: TileSize,
) {
    let storage = comptime![packing.storage];
    #[unroll]
    for i in 0..size.blocks_per_lane() {
        let place = block_place(i, size);
        let output = place / size.step;
        let row = group(size) * size.plane_half() + output % size.plane_half();
        // The blocks of a row are read together: memory is slow to change between rows.
        #[unroll]
        for step in 0..size.steps {
            let block = min(first + comptime![step * size.step] + place % size.step, blocks - 1);
            let at = comptime![step * size.blocks_per_lane() + i];
            if output < size.plane_half() {
                let row = min(low_row + row, weights.last_row);
                load_blocks(weights.codes, weights.scales, row, block, blocks, words, factors, at, 1u32, storage);
            } else {
                let row = min(high_row + row, weights.last_row);
                let (codes, scales) = (weights.second_codes, weights.second_scales);
                load_blocks(codes, scales, row, block, blocks, words, factors, at, 1u32, storage);
            }
        }
    }
}

/// Unpacks the result of [`read_weights`] for step `step` to shared memory.
#[cube]
pub(super) fn put_weights<T: Float>(
    words: &Array<Vector<u32, Const<4>>>,
    factors: &Array<u32>,
    weights: &mut Shared<[Vector<T, Const<4>>]>,
    #[comptime] step: u32,
    #[comptime] packing: Packing,
    #[comptime] size: TileSize,
) {
    #[unroll]
    for i in 0..size.blocks_per_lane() {
        let place = block_place(i, size);
        if comptime![size.plane_blocks().is_multiple_of(size.planes.width)] || place < size.plane_blocks() {
            let first_row = plane(size) * size.plane_weights();
            let at = first_row + place / size.step * size.weights_stride() + place % size.step * 8;
            let block = comptime![step * size.blocks_per_lane() + i];
            let factor = factors[comptime![block as usize]];
            if comptime![size.planes.fragments && packing.has_f16_pairs()] {
                put_pairs(words[comptime![block as usize]], factor, weights, at, size);
            } else {
                put_values(words, factor, weights, at, block, packing);
            }
        }
    }
}

/// Unpacks a block of MXFP4 to the vectors from `at` on, two codes at a time.
#[cube]
fn put_pairs<T: Float>(
    words: Vector<u32, Const<4>>,
    factor: u32,
    weights: &mut Shared<[Vector<T, Const<4>>]>,
    at: u32,
    #[comptime] size: TileSize,
) {
    let scale = packed_f16_scale(factor);
    // Half of the lanes write the second four columns of eight first, because the other lanes' rows are in the same banks.
    let other = if comptime![size.step == 2] { lane(size) % 2 } else { lane(size) / 8 % 2 };
    #[unroll]
    for eight in 0..4u32 {
        #[unroll]
        for half in 0..2u32 {
            let half = half ^ other;
            // Shifted by two codes, pairs 2 and 3 are in the place of pairs 0 and 1.
            let codes = words.extract(comptime![eight as usize]) >> (8 * half);
            let mut four = Vector::<T, Const<4>>::empty();
            #[unroll]
            for j in 0..2u32 {
                let pair = Vector::<T, Const<2>>::cast_from(packed_f16_pair(codes, scale, j));
                four.insert(comptime![(2 * j) as usize], pair.extract(0usize));
                four.insert(comptime![(2 * j + 1) as usize], pair.extract(1usize));
            }
            weights[(at + 2 * eight + half) as usize] = four;
        }
    }
}

/// Unpacks block number `block` of those that the lane read to the vectors from `at` on.
#[cube]
fn put_values<T: Float>(
    words: &Array<Vector<u32, Const<4>>>,
    factor: u32,
    weights: &mut Shared<[Vector<T, Const<4>>]>,
    at: u32,
    #[comptime] block: u32,
    #[comptime] packing: Packing,
) {
    let scale = Vector::<f32, Const<4>>::new(packed_scale(factor, packing));
    let first_word = comptime![block * packing.vectors()];
    #[unroll]
    for eight in 0..4u32 {
        let first = packed_values(words, first_word, comptime![2 * eight], packing) * scale;
        let second = packed_values(words, first_word, comptime![2 * eight + 1], packing) * scale;
        let (first, second) = (Vector::<T, Const<4>>::cast_from(first), Vector::<T, Const<4>>::cast_from(second));
        put_eight(weights, at + 2 * eight, first, second);
    }
}
