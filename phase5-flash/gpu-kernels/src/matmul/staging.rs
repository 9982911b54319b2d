//! Copies a block of 32 columns of a [fragments](super::fragments) tile to registers, and from there to shared memory as 16-bit floats.

use cubecl::prelude::*;

use super::operand::WeightRows;
use crate::matrix_units::{Planes, SIDE};
use crate::packed::{Packing, load_eights, packed_f16_pair, packed_scale, packed_values};

/// Vectors per row in shared memory: a block's eight and two extra, so that the rows of a fragment are in different banks.
pub(super) const STRIDE: u32 = 10;

/// The size of a tile. Each plane computes 16 outputs of the tile's low half and 16 of its high half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TileSize {
    pub planes: Planes,
    /// Rows of the inputs: 16, 32 or 64.
    pub rows: u32,
}

impl TileSize {
    pub const fn units(self) -> u32 {
        self.planes.units()
    }

    /// Fragments along the rows.
    pub const fn rounds(self) -> u32 {
        self.rows / SIDE
    }

    /// Outputs in each half of a tile.
    pub const fn half(self) -> u32 {
        SIDE * self.planes.count
    }

    /// Vectors of a tile in shared memory: rows of inputs, then of low and then of high outputs.
    pub const fn vectors(self) -> u32 {
        (self.rows + 2 * self.half()) * STRIDE
    }

    /// Groups of eight columns of the inputs that a unit reads per block.
    pub const fn eights_per_unit(self) -> u32 {
        (self.rows * 4).div_ceil(self.units())
    }

    /// Outputs for which a unit unpacks eight columns.
    pub const fn outputs_per_unit(self) -> u32 {
        2 * self.half() * 4 / self.units()
    }
}

/// Reads this unit's groups of eight columns of a block of the inputs.
#[cube]
pub(super) fn read_inputs(
    x: &[Vector<f32, Const<4>>],
    starts: &Array<u32>,
    block: u32,
    fours: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] size: TileSize,
) {
    #[unroll]
    for i in 0..size.eights_per_unit() {
        let at = starts[comptime![i as usize]] + block * 8;
        fours[comptime![(2 * i) as usize]] = x[at as usize];
        fours[comptime![(2 * i + 1) as usize]] = x[(at + 1) as usize];
    }
}

/// Writes the result of [`read_inputs`] to shared memory.
#[cube]
pub(super) fn put_inputs<T: Float>(
    fours: &Array<Vector<f32, Const<4>>>,
    tile: &mut Shared<[Vector<T, Const<4>>]>,
    #[comptime] size: TileSize,
) {
    #[unroll]
    for i in 0..size.eights_per_unit() {
        let place = UNIT_POS + comptime![i * size.units()];
        if comptime![(size.rows * 4).is_multiple_of(size.units())] || place < comptime![size.rows * 4] {
            let first = Vector::<T, Const<4>>::cast_from(fours[comptime![(2 * i) as usize]]);
            let second = Vector::<T, Const<4>>::cast_from(fours[comptime![(2 * i + 1) as usize]]);
            put_eight(tile, place / 4, place % 4, first, second);
        }
    }
}

/// Writes eight columns of a row in the order 0 4 1 5 2 6 3 7, which is the order in which a word of MXFP4 is unpacked to pairs of codes.
#[cube]
fn put_eight<T: Float>(
    tile: &mut Shared<[Vector<T, Const<4>>]>,
    row: u32,
    eight: u32,
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
        tile[(row * STRIDE + eight * 2 + half) as usize] = four;
    }
}

/// Reads the codes and scales of eight columns of a block, for this unit's outputs.
#[cube]
pub(super) fn read_weights(
    low: &WeightRows<'_>,
    high: &WeightRows<'_>,
    last_row: u32,
    block: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    factors: &mut Array<u32>,
    #[comptime] packing: Packing,
    #[comptime] size: TileSize,
) {
    let output = UNIT_POS / 4 * size.outputs_per_unit();
    if output < size.half() {
        read_outputs(low, output, last_row, block, blocks, words, factors, packing, size);
    } else {
        read_outputs(high, output - size.half(), last_row, block, blocks, words, factors, packing, size);
    }
}

#[cube]
fn read_outputs(
    weights: &WeightRows<'_>,
    output: u32,
    last_row: u32,
    block: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    factors: &mut Array<u32>,
    #[comptime] packing: Packing,
    #[comptime] size: TileSize,
) {
    let (count, storage) = comptime![(size.outputs_per_unit(), packing.storage)];
    let row = min(weights.row + output, last_row / count * count);
    let eight = UNIT_POS % 4;
    load_eights(weights.codes, weights.scales, row, eight, block, blocks, words, factors, count, storage);
}

/// Unpacks the result of [`read_weights`] to shared memory.
#[cube]
pub(super) fn put_weights<T: Float>(
    words: &Array<Vector<u32, Const<4>>>,
    factors: &Array<u32>,
    tile: &mut Shared<[Vector<T, Const<4>>]>,
    #[comptime] packing: Packing,
    #[comptime] size: TileSize,
) {
    let row = size.rows + UNIT_POS / 4 * size.outputs_per_unit();
    #[unroll]
    for r in 0..size.outputs_per_unit() {
        let factor = factors[comptime![r as usize]];
        if comptime![size.planes.fragments && packing.has_f16_pairs()] {
            let codes = words[comptime![(2 * r) as usize]].extract(0usize);
            #[unroll]
            for half in 0..2u32 {
                let mut four = Vector::<T, Const<4>>::empty();
                #[unroll]
                for i in 0..2u32 {
                    let pair =
                        Vector::<T, Const<2>>::cast_from(packed_f16_pair(codes, factor, comptime![2 * half + i]));
                    four.insert(comptime![(2 * i) as usize], pair.extract(0usize));
                    four.insert(comptime![(2 * i + 1) as usize], pair.extract(1usize));
                }
                tile[((row + r) * STRIDE + UNIT_POS % 4 * 2 + half) as usize] = four;
            }
        } else {
            let scale = Vector::<f32, Const<4>>::new(packed_scale(factor, packing));
            let first = packed_values(words, comptime![2 * r], 0u32, packing) * scale;
            let second = packed_values(words, comptime![2 * r], 1u32, packing) * scale;
            let (first, second) = (Vector::<T, Const<4>>::cast_from(first), Vector::<T, Const<4>>::cast_from(second));
            put_eight(tile, row + r, UNIT_POS % 4, first, second);
        }
    }
}
