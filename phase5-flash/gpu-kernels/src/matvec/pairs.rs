//! Products with experts for a few rows per expert, over [sorted slots](crate::moe::SlotSort): two slots of an expert share reading and
//! unpacking its weights. Lanes share the blocks of a row and hold the inputs of both slots in registers.

use cubecl::prelude::*;

use super::inputs::{load_inputs, prepare_inputs};
use super::plan::{MatvecChoice, MatvecPlan, RowTile};
use super::rows::{load_rows, multiply_cube_rows};
use crate::epilogue::swiglu;
use crate::gpu::Gpu;
use crate::moe::SlotTile;
use crate::packed::PackedPair;
use crate::product::{ExpertArgs, ExpertProduct, expert_args, most_tiles, tile_words};
use crate::reduce::total;

/// The most slots that share one read of the weights.
pub const PAIR: u32 = 2;

impl ExpertProduct<'_> {
    /// Launches the product for up to [`PAIR`] slots at a time. [`ExpertProduct::tiles`] must have been written for that size.
    ///
    /// # Panics
    /// If a buffer is too short, a stack of matrices is in several parts, or gate and up differ in shape or format.
    pub fn launch_pairs(&self, gpu: &Gpu, choice: MatvecChoice) {
        let product = self;
        product.check(tile_words(product, PAIR));
        let (weight, up) = (&product.experts.weight, product.up.unwrap_or(product.experts));
        let pairs = product.slots().div_ceil(PAIR as usize);
        let tile = RowTile::new(choice, weight.storage(), weight.rows() * pairs, product.slots());
        let matrices = 1 + u32::from(product.up.is_some());
        let plan = MatvecPlan { inputs: PAIR, matrices, ..MatvecPlan::new(gpu, weight, tile) };
        let (y, z) = plan.cubes(weight.rows());
        // SAFETY: lengths were checked; tiles name existing slots and experts, and the kernel bounds rows.
        unsafe {
            experts::launch_unchecked(
                gpu.device.client(),
                CubeCount::Static(most_tiles(product, PAIR), y, z),
                CubeDim::new_1d(plan.lanes),
                expert_args(product),
                weight.whole().codes.arg4(),
                up.weight.whole().codes.arg4(),
                plan,
            );
        }
    }
}

#[cube(launch_unchecked)]
fn experts(
    mut args: ExpertArgs,
    codes: &[Vector<u32, Const<4>>],
    up_codes: &[Vector<u32, Const<4>>],
    #[comptime] plan: MatvecPlan,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![(plan.planes * plan.cube_sums()) as usize]);
    let tile = SlotTile::read(&args.tiles, CUBE_POS_X);
    // Kernels are compiled for one slot and for two. In unused tiles, the count is 0.
    #[unroll]
    for slots in 1..comptime![PAIR + 1] {
        if tile.count == slots {
            multiply(&mut args, codes, up_codes, &tile, &mut shared, comptime![MatvecPlan { inputs: slots, ..plan }]);
        }
    }
}

/// The products of a tile's slots, `plan.inputs` in number, with the rows of the cube.
#[cube]
fn multiply(
    args: &mut ExpertArgs,
    codes: &[Vector<u32, Const<4>>],
    up_codes: &[Vector<u32, Const<4>>],
    tile: &SlotTile,
    shared: &mut Shared<[f32]>,
    #[comptime] plan: MatvecPlan,
) {
    let first = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * comptime![plan.tile.cube_rows()];
    let row = tile.expert * args.stride + first;
    let last_row = tile.expert * args.stride + args.rows - 1;
    let weights = PackedPair::two(codes, &args.scales, up_codes, &args.up_scales, last_row);
    let mut held = Array::<Vector<u32, Const<4>>>::new(comptime![plan.vectors() as usize]);
    let mut scale_words = Array::<u32>::new(comptime![plan.rows() as usize]);
    load_rows(&weights, row, UNIT_POS, &mut held, &mut scale_words, plan);
    let mut floats = Sequence::<Vector<f32, Const<4>>>::new();
    #[unroll]
    for q in 0..plan.inputs {
        let source = args.sorted_slots[(tile.first + q) as usize] / args.slots_per_input;
        load_inputs(&args.x, source * plan.blocks, UNIT_POS, &mut floats, plan);
    }
    let inputs = prepare_inputs(floats, plan);
    let places = comptime![plan.cube_sums()];
    multiply_cube_rows(
        &weights,
        row,
        UNIT_POS,
        &mut held,
        &mut scale_words,
        &inputs,
        1.0f32,
        shared,
        0u32,
        places,
        plan,
    );
    sync_cube();
    let sums = comptime![plan.cube_matrix_sums()];
    let mut i = UNIT_POS;
    while i < sums {
        let row = first + i / plan.inputs;
        if row < args.rows {
            let slot = args.sorted_slots[(tile.first + i % plan.inputs) as usize];
            let bias = (tile.expert * args.rows + row) as usize;
            let mut y = total(&*shared, i, places) + args.bias[bias];
            if comptime![plan.matrices == 2] {
                y = swiglu(y, total(&*shared, i + sums, places) + args.up_bias[bias]);
            }
            args.out[(slot * args.rows + row) as usize] = y;
        }
        i += CUBE_DIM;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::checks::check_experts;
    use crate::testing::{F16_EXPERTS, F32, Random, matvec_choice};

    const SHAPES: [(usize, usize, usize, usize, usize); 4] =
        [(10, 3, 96, 64, 2), (5, 8, 32, 96, 4), (2, 2, 32, 32, 1), (23, 40, 160, 544, 3)];

    #[test]
    fn equal_single_expert_products() {
        let mut random = Random::fresh();
        check_experts(F32, &SHAPES, PAIR, "pairs in f32", |gpu, product| {
            product.launch_pairs(&gpu.clone().in_f32(), matvec_choice(&mut random));
        });
    }

    #[test]
    fn equal_single_expert_products_in_16_bits() {
        let mut random = Random::fresh();
        check_experts(F16_EXPERTS, &SHAPES, PAIR, "pairs in 16 bits", |gpu, product| {
            product.launch_pairs(gpu, matvec_choice(&mut random));
        });
    }
}
