//! Building blocks of the mat-vec kernels: the iteration over rows, which several lanes share, and a lane's products with its inputs.

use cubecl::prelude::*;
use half::f16;

use super::inputs::LaneInputs;
use super::plan::MatvecPlan;
use crate::matrix::ROW_GROUP;
use crate::packed::{PAIRS, PackedPair, load_blocks, packed_pair, packed_scale, packed_values, scale_value};
use crate::reduce::plane_sums;
use crate::vec4::sum4;

/// Terms that are summed in 16 bits, before the sum is converted to f32.
const CHAIN: u32 = 8;

/// Reads the codes and scales of a lane's rows from row `row` on, at block `block`: of the first matrix, then of the second. Past the last
/// row or block, the last ones are read again; the inputs of such blocks are zeros.
#[cube]
pub(crate) fn load_rows(
    weights: &PackedPair<'_>,
    row: u32,
    block: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    scale_words: &mut Array<u32>,
    #[comptime] plan: MatvecPlan,
) {
    let together = comptime![plan.tile.rows.min(ROW_GROUP as u32)];
    let block = min(block, comptime![plan.blocks - 1]);
    #[unroll]
    for matrix in 0..plan.matrices {
        #[unroll]
        for group in 0..comptime![plan.tile.rows / together] {
            let start = min(row + comptime![group * together], weights.last_row / together * together);
            let first = comptime![matrix * plan.tile.rows + group * together];
            let storage = comptime![plan.packing.storage];
            if comptime![matrix == 0] {
                let (codes, scales) = (weights.codes, weights.scales);
                load_blocks(codes, scales, start, block, plan.blocks, words, scale_words, first, together, storage);
            } else {
                let (codes, scales) = (weights.second_codes, weights.second_scales);
                load_blocks(codes, scales, start, block, plan.blocks, words, scale_words, first, together, storage);
            }
        }
    }
}

/// Iterates over a cube's rows from row `first` on, of which the first must have been [read](load_rows) into `held` and `scale_words`.
/// Stores the plane sums of the products with all inputs, each times `weight`, in `shared: [planes, places]` from column `place` on: row
/// after row of the first matrix, then of the second.
#[cube]
pub(crate) fn multiply_cube_rows(
    weights: &PackedPair<'_>,
    first: u32,
    lane: u32,
    held: &mut Array<Vector<u32, Const<4>>>,
    scale_words: &mut Array<u32>,
    inputs: &LaneInputs,
    weight: f32,
    shared: &mut Shared<[f32]>,
    #[comptime] place: u32,
    #[comptime] places: u32,
    #[comptime] plan: MatvecPlan,
) {
    let mut sums = Array::<f32>::new(comptime![plan.sums() as usize]);
    for step in 0..plan.tile.steps {
        zero(&mut sums, plan.sums());
        multiply_rows(weights, first + step * plan.tile.rows, lane, held, scale_words, inputs, &mut sums, weight, plan);
        #[unroll]
        for matrix in 0..plan.matrices {
            let at = comptime![place + matrix * plan.cube_matrix_sums()] + step * plan.matrix_sums();
            plane_sums(&sums, shared, comptime![matrix * plan.matrix_sums()], at, plan.matrix_sums(), places);
        }
    }
}

/// Adds this lane's products of the inputs with the held rows, each times `weight`, to `sums`. If a cube takes several steps, the rows of
/// the next step are read meanwhile and are held afterwards.
#[cube]
fn multiply_rows(
    weights: &PackedPair<'_>,
    row: u32,
    lane: u32,
    held: &mut Array<Vector<u32, Const<4>>>,
    scale_words: &mut Array<u32>,
    inputs: &LaneInputs,
    sums: &mut Array<f32>,
    weight: f32,
    #[comptime] plan: MatvecPlan,
) {
    let mut next = Array::<Vector<u32, Const<4>>>::new(comptime![plan.vectors() as usize]);
    let mut next_scales = Array::<u32>::new(comptime![plan.rows() as usize]);
    if comptime![plan.tile.steps > 1] {
        load_rows(weights, row + plan.tile.rows, lane, &mut next, &mut next_scales, plan);
    }
    add_products(&*held, &*scale_words, inputs, sums, 0u32, weight, plan);
    #[unroll]
    for i in 1..comptime![plan.blocks_per_lane()] {
        let block = lane + comptime![i * plan.lanes];
        load_rows(weights, row, block, held, scale_words, plan);
        add_products(&*held, &*scale_words, inputs, sums, i, weight, plan);
    }
    if comptime![plan.tile.steps > 1] {
        copy(&next, held, plan.vectors());
        copy(&next_scales, scale_words, plan.rows());
    }
}

/// Adds the products of the held rows with block number `round` of this lane's blocks of every input, each times `weight`, to `sums`.
#[cube]
fn add_products(
    words: &Array<Vector<u32, Const<4>>>,
    scale_words: &Array<u32>,
    inputs: &LaneInputs,
    sums: &mut Array<f32>,
    #[comptime] round: u32,
    weight: f32,
    #[comptime] plan: MatvecPlan,
) {
    #[unroll]
    for r in 0..comptime![plan.rows()] {
        let scale_word = scale_words[comptime![r as usize]];
        let (first_word, first_sum) = comptime![(r * plan.packing.vectors(), r * plan.inputs)];
        if comptime![plan.pairs] {
            let scale = weight * packed_scale(scale_word, plan.packing);
            add_pair_dots(words, first_word, inputs, round, scale, sums, first_sum, plan);
        } else {
            let scale = weight * scale_value(scale_word, plan.packing.storage);
            add_dots(words, first_word, inputs, round, scale, sums, first_sum, plan);
        }
    }
}

/// Adds `scale · Σ code · x` over a block to `sums`, from index `first_sum` on: one sum for each input. Each code is converted to a float
/// once.
#[cube]
fn add_dots(
    words: &Array<Vector<u32, Const<4>>>,
    #[comptime] first_word: u32,
    inputs: &LaneInputs,
    #[comptime] round: u32,
    scale: f32,
    sums: &mut Array<f32>,
    #[comptime] first_sum: u32,
    #[comptime] plan: MatvecPlan,
) {
    let mut products = Array::<Vector<f32, Const<4>>>::new(comptime![plan.inputs as usize]);
    #[unroll]
    for q in 0..plan.inputs {
        products[comptime![q as usize]] = Vector::<f32, Const<4>>::new(0.0f32);
    }
    #[unroll]
    for i in 0..8u32 {
        let values = packed_values(words, first_word, i, plan.packing);
        #[unroll]
        for q in 0..plan.inputs {
            let block = comptime![q * plan.blocks_per_lane() + round];
            products[comptime![q as usize]] += values * inputs.floats[comptime![(block * 8 + i) as usize]];
        }
    }
    #[unroll]
    for q in 0..plan.inputs {
        let mut sum = sum4(products[comptime![q as usize]]);
        if comptime![plan.packing.factor() != 1.0] {
            sum *= f32::new(comptime![plan.packing.factor()]);
        }
        sums[comptime![(first_sum + q) as usize]] += scale * sum;
    }
}

/// As [`add_dots`], in pairs of 16-bit floats: each sum in 16 bits has [`CHAIN`] terms. `scale` includes the factor of the codes.
#[cube]
fn add_pair_dots(
    words: &Array<Vector<u32, Const<4>>>,
    #[comptime] first_word: u32,
    inputs: &LaneInputs,
    #[comptime] round: u32,
    scale: f32,
    sums: &mut Array<f32>,
    #[comptime] first_sum: u32,
    #[comptime] plan: MatvecPlan,
) {
    let chains = comptime![PAIRS / CHAIN];
    let mut products = Array::<Vector<f16, Const<2>>>::new(comptime![(plan.inputs * chains) as usize]);
    #[unroll]
    for i in 0..PAIRS {
        let values = packed_pair(words, first_word, i, plan.packing);
        #[unroll]
        for q in 0..plan.inputs {
            let block = comptime![q * plan.blocks_per_lane() + round];
            let x = inputs.pairs[comptime![(block * PAIRS + i) as usize]];
            let at = comptime![(q * chains + i / CHAIN) as usize];
            products[at] = if comptime![i % CHAIN == 0] { values * x } else { fma(values, x, products[at]) };
        }
    }
    #[unroll]
    for q in 0..plan.inputs {
        let mut sum = 0.0f32;
        #[unroll]
        for chain in 0..chains {
            let both = Vector::<f32, Const<2>>::cast_from(products[comptime![(q * chains + chain) as usize]]);
            sum += both.extract(0usize) + both.extract(1usize);
        }
        let block = comptime![q * plan.blocks_per_lane() + round];
        sums[comptime![(first_sum + q) as usize]] += scale * inputs.factors[comptime![block as usize]] * sum;
    }
}

#[cube]
fn zero(values: &mut Array<f32>, #[comptime] count: u32) {
    #[unroll]
    for i in 0..count {
        values[comptime![i as usize]] = 0.0f32;
    }
}

#[cube]
fn copy<T: CubePrimitive>(from: &Array<T>, to: &mut Array<T>, #[comptime] count: u32) {
    #[unroll]
    for i in 0..count {
        to[comptime![i as usize]] = from[comptime![i as usize]];
    }
}
