//! Products of many rows: weights are unpacked into shared memory, a block of 32 columns at a time, and used for 64 rows. For dense
//! projections, and for experts over [sorted slots](crate::moe::SlotSort).
//!
//! History (H100, gpt-oss-20b's gate and up, f32):
//! 1. row by row, as in decoding: 5.4 TFLOP/s at 64 rows.
//! 2. tiles of 64 rows by 128 outputs, 256 units with 4 × 8 sums each, in arrays: 12.9 TFLOP/s at 512 rows.
//! 3. the same sums in variables instead of arrays: 12.8 TFLOP/s. No gain; reverted.
//! 4. current version: 128 units with 8 × 8 sums, each value unpacked by only one unit, and planes skip rows past a tile's last: 18.2
//!    TFLOP/s, dense 23.2 (Q8_0, SPIR-V).

use cubecl::prelude::*;

use super::operand::{DenseArgs, Outputs, TILE, TileRows, dense_args};
use crate::device::cube_grid;
use crate::epilogue::{Epilogue, store_four, store_four_gated};
use crate::gpu::Gpu;
use crate::moe::SlotTile;
use crate::packed::{Packing, load_eights, packed_scale, packed_values};
use crate::product::{ExpertArgs, ExpertProduct, Product, expert_args, most_tiles};
use crate::vec4::transposed;

/// Units per cube: two by two groups, each of four by eight units, for 32 rows by two times 32 outputs.
const UNITS: u32 = 128;
/// Outputs in each half of a tile.
const HALF: u32 = 64;
/// Distance in vectors between groups of four columns of a tile's inputs: one extra, so that lanes store to different banks.
const INPUTS_STRIDE: u32 = 4 * TILE / 4 + 1;
/// Distance in vectors between groups of eight columns of a tile's weights: two extra, so that lanes store to different banks here too.
const WEIGHTS_STRIDE: u32 = 8 * 2 * HALF / 4 + 2;

/// A packed matrix from row `row` on.
#[derive(CubeType)]
struct WeightRows<'a> {
    codes: &'a [u32],
    scales: &'a [u32],
    row: u32,
}

#[cube]
impl<'a> WeightRows<'a> {
    fn new(codes: &'a [u32], scales: &'a [u32], row: u32) -> WeightRows<'a> {
        WeightRows::<'a> { codes, scales, row }
    }
}

pub(super) fn launch_dense(gpu: &Gpu, product: &Product<'_>) {
    let epilogue = Epilogue { biased: product.bias.is_some(), add: product.add, gated: false };
    for part in product.matrix.parts() {
        let (y, z) = cube_grid((part.rows as u32).div_ceil(2 * HALF));
        // SAFETY: lengths were checked; rows, inputs and blocks are bounded in the kernel.
        unsafe {
            dense::launch_unchecked(
                gpu.device.client(),
                CubeCount::Static((product.inputs as u32).div_ceil(TILE), y, z),
                CubeDim::new_1d(UNITS),
                dense_args(product, part),
                part.codes.arg(),
                gpu.packing(product.matrix.storage()),
                epilogue,
            );
        }
    }
}

/// Tiles of sorted slots have up to `rows` rows.
pub(super) fn launch_experts(gpu: &Gpu, product: &ExpertProduct<'_>, rows: u32) {
    let (weight, up) = (&product.experts.weight, product.up.unwrap_or(product.experts));
    let gated = product.up.is_some();
    let outputs = if gated { HALF } else { 2 * HALF };
    // SAFETY: lengths were checked; tiles name existing slots and experts, and the kernel bounds rows.
    unsafe {
        experts::launch_unchecked(
            gpu.device.client(),
            CubeCount::Static((weight.rows() as u32).div_ceil(outputs), most_tiles(product, rows), 1),
            CubeDim::new_1d(UNITS),
            expert_args(product),
            weight.whole().codes.arg(),
            up.weight.whole().codes.arg(),
            gpu.packing(weight.storage()),
            gated,
        );
    }
}

#[cube(launch_unchecked)]
fn dense(mut args: DenseArgs, codes: &[u32], #[comptime] packing: Packing, #[comptime] epilogue: Epilogue) {
    let row = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * comptime![2 * HALF];
    let rows = TileRows::dense(CUBE_POS_X * TILE, args.inputs, TILE);
    if row < args.rows {
        let low = WeightRows::new(codes, &args.scales, row);
        let high = WeightRows::new(codes, &args.scales, row + HALF);
        let outputs =
            Outputs { width: args.out_width, first: args.first_row, first_bias: args.first_row, columns: args.rows };
        multiply_tile(
            &args.x,
            &rows,
            &low,
            &high,
            args.rows - 1,
            args.blocks,
            &mut args.out,
            &outputs,
            row,
            &args.bias,
            &args.bias,
            packing,
            epilogue,
        );
    }
}

/// A tile of slots of one expert. With `gated`, the low half of its outputs is gate's and the high half up's, and their SwiGLU is written;
/// otherwise both halves are of one matrix.
#[cube(launch_unchecked)]
fn experts(
    mut args: ExpertArgs,
    low_codes: &[u32],
    high_codes: &[u32],
    #[comptime] packing: Packing,
    #[comptime] gated: bool,
) {
    let SlotTile { expert, first, count } = SlotTile::read(&args.tiles, CUBE_POS_Y);
    if count > 0 {
        let rows = TileRows::slots(&args.sorted_slots, first, count, args.slots_per_input, TILE);
        let row = CUBE_POS_X * comptime![if gated { HALF } else { 2 * HALF }];
        let start = expert * args.stride;
        let low = WeightRows::new(low_codes, &args.scales, start + row);
        let high = WeightRows::new(high_codes, &args.up_scales, start + row + comptime![if gated { 0 } else { HALF }]);
        let outputs =
            Outputs { width: args.rows, first: 0u32.runtime(), first_bias: expert * args.rows, columns: args.rows };
        multiply_tile(
            &args.x,
            &rows,
            &low,
            &high,
            start + args.rows - 1,
            args.blocks,
            &mut args.out,
            &outputs,
            row,
            &args.bias,
            &args.up_bias,
            packing,
            comptime![Epilogue { biased: true, add: false, gated }],
        );
    }
}

/// Multiplies the rows of a tile with 64 rows from `low_weights.row` on of one matrix and 64 from `high_weights.row` on of the same or
/// another matrix.
/// Weights after `last_row` belong to no output. The tile's first output is `column`.
#[cube]
fn multiply_tile(
    x: &[Vector<f32, Const<4>>],
    rows: &TileRows,
    low_weights: &WeightRows<'_>,
    high_weights: &WeightRows<'_>,
    last_row: u32,
    blocks: u32,
    out: &mut [f32],
    outputs: &Outputs,
    column: u32,
    bias: &[f32],
    up_bias: &[f32],
    #[comptime] packing: Packing,
    #[comptime] epilogue: Epilogue,
) {
    let mut low = Array::<Vector<f32, Const<4>>>::new(8usize);
    let mut high = Array::<Vector<f32, Const<4>>>::new(8usize);
    add_products(x, rows, low_weights, high_weights, last_row, blocks, &mut low, &mut high, packing);
    let column = column + output_four() * 4;
    #[unroll]
    for i in 0..8u32 {
        let member = member_row(i);
        if member < rows.count {
            let start = rows.targets[member as usize] * outputs.width + outputs.first;
            let (low, high) = (low[comptime![i as usize]], high[comptime![i as usize]]);
            let (first_bias, columns) = (outputs.first_bias, outputs.columns);
            if comptime![epilogue.gated] {
                store_four_gated(out, start, low, high, bias, up_bias, first_bias, column, columns);
            } else {
                store_four(out, start, low, bias, first_bias, column, columns, epilogue);
                store_four(out, start, high, bias, first_bias, column + HALF, columns, epilogue);
            }
        }
    }
}

/// Index, in groups of four, of this unit's first four tile rows; its other four begin four groups later.
#[cube]
fn member_four() -> u32 {
    UNIT_POS / 64 * 8 + UNIT_POS % 32 / 8
}

/// Tile row number of this unit's row `i` of eight.
#[cube]
fn member_row(#[comptime] i: u32) -> u32 {
    (member_four() + comptime![i / 4 * 4]) * 4 + comptime![i % 4]
}

/// Index, in groups of four, of this unit's outputs in each half.
#[cube]
fn output_four() -> u32 {
    UNIT_POS / 32 % 2 * 8 + UNIT_POS % 8
}

/// Adds the products of a tile's rows. The result of a unit is the sums of its eight [`member_row`]s and of four outputs from 4 ·
/// [`output_four`] on, in each half.
#[cube]
fn add_products(
    x: &[Vector<f32, Const<4>>],
    tile_rows: &TileRows,
    low_weights: &WeightRows<'_>,
    high_weights: &WeightRows<'_>,
    last_row: u32,
    blocks: u32,
    low: &mut Array<Vector<f32, Const<4>>>,
    high: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] packing: Packing,
) {
    // `[8 × 4 columns, 64 rows]` and `[4 × 8 columns, 64 low and 64 high outputs]`.
    let mut inputs = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(8 * INPUTS_STRIDE) as usize]);
    let mut weights = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(4 * WEIGHTS_STRIDE) as usize]);
    #[unroll]
    for i in 0..8usize {
        low[i] = Vector::<f32, Const<4>>::new(0.0f32);
        high[i] = Vector::<f32, Const<4>>::new(0.0f32);
    }
    let rows = member_four();
    let output = output_four();
    let mut block = 0u32;
    while block < blocks {
        load_inputs(x, &tile_rows.sources, block, blocks, &mut inputs);
        let eight = UNIT_POS % 4;
        let fours = UNIT_POS / 4;
        if fours < comptime![HALF / 4] {
            let row = min(low_weights.row / 4 + fours, last_row / 4);
            unpack(low_weights, row, eight, fours, block, blocks, &mut weights, packing);
        } else {
            let row = min(high_weights.row / 4 + fours - comptime![HALF / 4], last_row / 4);
            unpack(high_weights, row, eight, fours, block, blocks, &mut weights, packing);
        }
        sync_cube();

        // The condition is the same for all lanes of a plane of 32.
        if UNIT_POS / 64 * 32 < tile_rows.count {
            for eight in 0..4u32 {
                #[unroll]
                for k in 0..8u32 {
                    let at = (eight * 2 + comptime![k / 4]) * INPUTS_STRIDE + comptime![k % 4 * TILE / 4] + rows;
                    let first = inputs[at as usize];
                    let second = inputs[(at + 4) as usize];
                    let at = eight * WEIGHTS_STRIDE + comptime![k * 2 * HALF / 4] + output;
                    let a = weights[at as usize];
                    let b = weights[(at + comptime![HALF / 4]) as usize];
                    #[unroll]
                    for i in 0..4u32 {
                        let factor = Vector::<f32, Const<4>>::new(first.extract(comptime![i as usize]));
                        low[comptime![i as usize]] = fma(factor, a, low[comptime![i as usize]]);
                        high[comptime![i as usize]] = fma(factor, b, high[comptime![i as usize]]);
                    }
                    #[unroll]
                    for i in 4..8u32 {
                        let factor = Vector::<f32, Const<4>>::new(second.extract(comptime![(i - 4) as usize]));
                        low[comptime![i as usize]] = fma(factor, a, low[comptime![i as usize]]);
                        high[comptime![i as usize]] = fma(factor, b, high[comptime![i as usize]]);
                    }
                }
            }
        }
        sync_cube();
        block += 1;
    }
}

/// Reads a block of 64 rows and transposes it; each unit handles a square of four rows by four columns.
#[cube]
fn load_inputs(
    x: &[Vector<f32, Const<4>>],
    sources: &Shared<[u32]>,
    block: u32,
    blocks: u32,
    inputs: &mut Shared<[Vector<f32, Const<4>>]>,
) {
    let columns = UNIT_POS % 8;
    let rows = UNIT_POS / 8;
    let mut square = Array::<Vector<f32, Const<4>>>::new(4usize);
    #[unroll]
    for i in 0..4u32 {
        let source = sources[(rows * 4 + i) as usize];
        square[comptime![i as usize]] = x[((source * blocks + block) * 8 + columns) as usize];
    }
    #[unroll]
    for j in 0..4u32 {
        inputs[(columns * INPUTS_STRIDE + comptime![j * TILE / 4] + rows) as usize] = transposed(&square, j);
    }
}

/// Unpacks columns `8 eight` to `8 eight + 7` of a block, of the four rows from `4 row_four` on. Stores them transposed, as group `fours`
/// of the tile's outputs.
#[cube]
fn unpack(
    rows: &WeightRows<'_>,
    row_four: u32,
    eight: u32,
    fours: u32,
    block: u32,
    blocks: u32,
    weights: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] packing: Packing,
) {
    let mut words = Array::<Vector<u32, Const<4>>>::new(8usize);
    let mut factors = Array::<u32>::new(4usize);
    let storage = comptime![packing.storage];
    load_eights(rows.codes, rows.scales, row_four * 4, eight, block, blocks, &mut words, &mut factors, storage);
    #[unroll]
    for half in 0..2u32 {
        let mut square = Array::<Vector<f32, Const<4>>>::new(4usize);
        #[unroll]
        for i in 0..4u32 {
            let scale = packed_scale(factors[comptime![i as usize]], packing);
            square[comptime![i as usize]] =
                packed_values(&words, comptime![2 * i], half, packing) * Vector::<f32, Const<4>>::new(scale);
        }
        #[unroll]
        for j in 0..4u32 {
            let at = eight * WEIGHTS_STRIDE + comptime![(half * 4 + j) * 2 * HALF / 4] + fours;
            weights[at as usize] = transposed(&square, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::Storage;

    use crate::gpu::Gpu;
    use crate::matmul::checks::{check_dense, check_experts};
    use crate::matmul::{PlaneLayout, TILE};
    use crate::product::Product;
    use crate::testing::{F32, Random, gpu, matrix, matvec_choice, poisoned};

    #[test]
    fn dense_products_equal_f64() {
        let shapes = [(64, 128, 64), (1, 1, 32), (70, 131, 96), (3, 67, 2880), (130, 5, 32)];
        check_dense(F32, &shapes, "tiles", |gpu, product| {
            product.launch_tiled(&gpu.clone().with_matrix_units(None), PlaneLayout::PAIRS, TILE);
        });
    }

    #[test]
    fn sorted_expert_products_equal_single_expert_products() {
        let shapes = [(80, 3, 96, 64, 2), (5, 8, 32, 96, 4), (1, 2, 32, 32, 1), (33, 40, 160, 32, 3)];
        check_experts(F32, &shapes, TILE, "tiles", |gpu, product| {
            product.launch_tiled(&gpu.clone().with_matrix_units(None), PlaneLayout::PAIRS, TILE);
        });
    }

    /// A matrix in several parts, as the head may be, gives the same outputs as one in a single part.
    #[test]
    fn parts_of_a_matrix_are_stored_side_by_side() {
        let gpu = gpu();
        let gpu = Gpu::with_matrix_units(gpu, None);
        let device = &gpu.device;
        let mut random = Random::fresh();
        let (inputs, columns) = (3, 64);
        let values = random.values(200 * columns, 1.0);
        let small = device.clone().with_binding_bytes((columns * 4 * 72) as u64);
        let [whole, split] = [device, &small].map(|device| matrix(device, Storage::F32, [1, 200, columns], &values).1);
        assert_eq!((whole.parts().len(), split.parts().len()), (1, 3));
        let x = device.upload_f32(&random.values(inputs * columns, 1.0));
        let choice = matvec_choice(&mut random);
        let outs = [&whole, &split].map(|matrix| {
            let [tiled, single] = [(); 2].map(|()| poisoned(device, inputs * 200));
            let product = |out| Product { matrix, x: &x, bias: None, out, add: false, inputs };
            product(&tiled).launch_tiled(&gpu, PlaneLayout::PAIRS, TILE);
            product(&single).launch_matvec(&gpu, None, choice);
            [tiled, single].map(|out| device.read_f32(&out).expect("reads"))
        });
        assert_eq!(outs[0], outs[1], "{choice:?} {random:?}");
    }
}
