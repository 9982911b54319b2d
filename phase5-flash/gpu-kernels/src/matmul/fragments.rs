//! Products of many rows on matrix units: as [`tiles`](super::tiles), but multiplied in 16-bit floats with sums in f32.
//!
//! A tile has 16, 32 or 64 rows, and two times 16 or 32 outputs for each plane, or for each group of planes that
//! [split](super::PlaneLayout) the columns. Weights and inputs become 16-bit floats in shared memory: MXFP4 exactly, Q8_0 and inputs
//! rounded to 11 bits. Each plane unpacks its own weights, so only inputs need a barrier of the cube. The next weights and inputs are
//! loaded while the current ones are multiplied. Matrices outside the range of 16-bit floats use [`tiles`](super::tiles). Inputs above
//! 65,504 become infinite, and the results NaN, which the choice of a token detects. Inputs are not clamped, because this would hide the
//! overflow.
//!
//! History (H100, SPIR-V, gpt-oss-20b's shape, a prompt of 512; gate and up of a layer, down):
//! 1. [`tiles`](super::tiles) in f32: 3.6 ms, 1.9 ms.
//! 2. fragments, 4 planes per cube: 0.84 ms, 0.41 ms.
//! 3. two blocks in shared memory alternately, one barrier per block: a third slower. Reverted.
//! 4. fragments loaded from words, 16 bytes at a time, together with change 3: 1.5 ms. Reverted.
//! 5. tiles of 128 rows, 8 planes: 0.97 ms. An expert has 64 rows on average. Reverted.
//! 6. inputs also stored as 16-bit floats in device memory: 0.79 ms, 0.39 ms, but needs a second, 16-bit version of every buffer. Not used.
//! 7. MXFP4 unpacked in pairs of 16-bit floats, with slots [sorted](crate::moe::SlotSort) in parts: 0.68 ms, 0.39 ms. Dense products are
//!    faster with 2 planes per cube (0.17 ms for q, k and v) than with 4 (0.18), because there are more cubes.
//! 8. current version: planes unpack their own weights, whole blocks at a time. No faster for prompts (gate and up of 24 experts and 2,048
//!    slots, H200: 0.66 ms, before 0.65), but for fewer rows, as the following measurements show.
//!
//! Few rows per expert (H200, gate and up of 24 experts in tiles of 16 rows, 48 slots; 106 MB of each):
//! 1. planes share the unpacked weights, two barriers per block: 378 µs.
//! 2. planes unpack their own weights, two blocks of a row at a time: 301 µs. Without multiplication just as long, without unpacking 105,
//!    without reading weights 167: 32 bytes of a row at a time are slow to read.
//! 3. all blocks of a chunk are read together, 128 bytes of a row: 247 µs.
//!
//! Splitting the columns of q, k and v among 4 planes takes 31 µs for 12 rows, where tiles of 64 rows took 56.
//!
//! Several sequences (H200, tokens/s in total, a whole step; version 7, then version 8): 10 sequences 1,125, then 1,259; 24 sequences 1,196,
//! then 1,704; 32 sequences 1,552, then 2,290; 64 sequences 3,064, then 3,773. In steps of fewer than 24 rows, experts are faster row by
//! row.

use cubecl::cmma::{MatrixIdent, MatrixLayout};
use cubecl::prelude::*;
use half::f16;

use super::layout::{FOURS, FOURS_PER_ROW, TileSize};
use super::operand::{DenseArgs, Outputs, TileRows, dense_args};
use super::staging::{group, input_starts, lane, plane, put_inputs, put_weights, read_inputs, read_weights, split};
use crate::device::cube_grid;
use crate::epilogue::{Epilogue, store_four, store_four_gated};
use crate::gpu::Gpu;
use crate::matrix_units::{Accumulators, Operand, SIDE, operand, sync_lanes};
use crate::moe::SlotTile;
use crate::packed::{PackedPair, Packing};
use crate::product::{ExpertArgs, ExpertProduct, Product, expert_args, most_tiles};

pub(super) fn launch_dense(gpu: &Gpu, product: &Product<'_>, size: TileSize) {
    match size.planes.fragments {
        true => launch_dense_in::<f16>(gpu, product, size),
        false => launch_dense_in::<f32>(gpu, product, size),
    }
}

fn launch_dense_in<T: Float>(gpu: &Gpu, product: &Product<'_>, size: TileSize) {
    let epilogue = Epilogue { biased: product.bias.is_some(), add: product.add, gated: false };
    for part in product.matrix.parts() {
        let (y, z) = cube_grid((part.rows as u32).div_ceil(2 * size.half()));
        // SAFETY: lengths were checked; rows, inputs and blocks are bounded in the kernel.
        unsafe {
            dense::launch_unchecked::<T>(
                gpu.device.client(),
                CubeCount::Static((product.inputs as u32).div_ceil(size.rows), y, z),
                CubeDim::new_1d(size.units()),
                dense_args(product, part),
                part.codes.arg4(),
                gpu.packing(product.matrix.storage()),
                size,
                epilogue,
            );
        }
    }
}

pub(super) fn launch_experts(gpu: &Gpu, product: &ExpertProduct<'_>, size: TileSize) {
    match size.planes.fragments {
        true => launch_experts_in::<f16>(gpu, product, size),
        false => launch_experts_in::<f32>(gpu, product, size),
    }
}

fn launch_experts_in<T: Float>(gpu: &Gpu, product: &ExpertProduct<'_>, size: TileSize) {
    let (weight, up) = (&product.experts.weight, product.up.unwrap_or(product.experts));
    let gated = product.up.is_some();
    let outputs = if gated { size.half() } else { 2 * size.half() };
    // SAFETY: lengths were checked; tiles name existing slots and experts, and the kernel bounds rows.
    unsafe {
        experts::launch_unchecked::<T>(
            gpu.device.client(),
            CubeCount::Static((weight.rows() as u32).div_ceil(outputs), most_tiles(product, size.rows), 1),
            CubeDim::new_1d(size.units()),
            expert_args(product),
            weight.whole().codes.arg4(),
            up.weight.whole().codes.arg4(),
            gpu.packing(weight.storage()),
            size,
            gated,
        );
    }
}

#[cube(launch_unchecked)]
fn dense<T: Float>(
    mut args: DenseArgs,
    codes: &[Vector<u32, Const<4>>],
    #[comptime] packing: Packing,
    #[comptime] size: TileSize,
    #[comptime] epilogue: Epilogue,
) {
    let row = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * comptime![2 * size.half()];
    let rows = TileRows::dense(CUBE_POS_X * size.rows, args.inputs, size.rows);
    if row < args.rows {
        let weights = PackedPair::one(codes, &args.scales, args.rows - 1);
        let outputs =
            Outputs { width: args.out_width, first: args.first_row, first_bias: args.first_row, columns: args.rows };
        multiply_tile::<T>(
            &args.x,
            &rows,
            &weights,
            row,
            row + size.half(),
            args.blocks,
            &mut args.out,
            &outputs,
            row,
            &args.bias,
            &args.bias,
            packing,
            size,
            epilogue,
        );
    }
}

/// A tile of slots of one expert. With `gated`, the low half of its outputs is gate's and the high half up's, and their SwiGLU is written;
/// otherwise both halves are of one matrix.
#[cube(launch_unchecked)]
fn experts<T: Float>(
    mut args: ExpertArgs,
    codes: &[Vector<u32, Const<4>>],
    second_codes: &[Vector<u32, Const<4>>],
    #[comptime] packing: Packing,
    #[comptime] size: TileSize,
    #[comptime] gated: bool,
) {
    let SlotTile { expert, first, count } = SlotTile::read(&args.tiles, CUBE_POS_Y);
    if count > 0 {
        let rows = TileRows::slots(&args.sorted_slots, first, count, args.slots_per_input, size.rows);
        let row = CUBE_POS_X * comptime![if gated { size.half() } else { 2 * size.half() }];
        let start = expert * args.stride;
        let high_row = start + row + comptime![if gated { 0 } else { size.half() }];
        let weights = PackedPair::two(codes, &args.scales, second_codes, &args.up_scales, start + args.rows - 1);
        let outputs =
            Outputs { width: args.rows, first: 0u32.runtime(), first_bias: expert * args.rows, columns: args.rows };
        multiply_tile::<T>(
            &args.x,
            &rows,
            &weights,
            start + row,
            high_row,
            args.blocks,
            &mut args.out,
            &outputs,
            row,
            &args.bias,
            &args.up_bias,
            packing,
            size,
            comptime![Epilogue { biased: true, add: false, gated }],
        );
    }
}

/// A plane's sums for the outputs of both halves of a tile, for each square of outputs; one square of sums per 16 rows.
#[derive(CubeType)]
struct Sums {
    low: Sequence<Accumulators>,
    high: Sequence<Accumulators>,
}

#[cube]
impl Sums {
    fn zeros(#[comptime] size: TileSize) -> Sums {
        let mut low = Sequence::<Accumulators>::new();
        let mut high = Sequence::<Accumulators>::new();
        #[unroll]
        for _ in 0..size.squares {
            low.push(Accumulators::zeros(comptime![size.rounds()], comptime![size.planes]));
            high.push(Accumulators::zeros(comptime![size.rounds()], comptime![size.planes]));
        }
        Sums { low, high }
    }
}

/// Multiplies the rows of a tile with rows of the first matrix from `low_row` on, and of the second from `high_row` on: 16 or 32 of each
/// ([`TileSize::plane_half`]) per group of planes. The tile's first output is `column`.
#[cube]
fn multiply_tile<T: Float>(
    x: &[Vector<f32, Const<4>>],
    rows: &TileRows,
    weights: &PackedPair<'_>,
    low_row: u32,
    high_row: u32,
    blocks: u32,
    out: &mut [f32],
    outputs: &Outputs,
    column: u32,
    bias: &[f32],
    up_bias: &[f32],
    #[comptime] packing: Packing,
    #[comptime] size: TileSize,
    #[comptime] epilogue: Epilogue,
) {
    let mut sums = Sums::zeros(size);
    let mut stage = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(size.planes.count * FOURS) as usize]);
    add_products::<T>(x, rows, weights, low_row, high_row, blocks, &mut sums, packing, size);
    #[unroll(size.planes.fragments)]
    for round in 0..comptime![size.rounds() as usize] {
        let first_member = round as u32 * SIDE;
        if first_member < rows.count {
            #[unroll]
            for square in 0..size.squares {
                store_square(&sums, &mut stage, square, round, size);
                // The planes of a group share the work of adding their sums.
                let mut place = split(size) * size.planes.width + lane(size);
                while place < comptime![FOURS / 2] {
                    let member = first_member + place / comptime![FOURS_PER_ROW / 2];
                    let output = place % comptime![FOURS_PER_ROW / 2];
                    let at = place / comptime![FOURS_PER_ROW / 2] * FOURS_PER_ROW + output;
                    let low = group_sum(&stage, at, size);
                    let high = group_sum(&stage, at + comptime![FOURS_PER_ROW / 2], size);
                    if member < rows.count {
                        let start = rows.targets[member as usize] * outputs.width + outputs.first;
                        let column = column + group(size) * size.plane_half() + comptime![square * SIDE] + output * 4;
                        let (first_bias, columns) = (outputs.first_bias, outputs.columns);
                        if comptime![epilogue.gated] {
                            store_four_gated(out, start, low, high, bias, up_bias, first_bias, column, columns);
                        } else {
                            store_four(out, start, low, bias, first_bias, column, columns, epilogue);
                            let column = column + size.half();
                            store_four(out, start, high, bias, first_bias, column, columns, epilogue);
                        }
                    }
                    place += comptime![size.splits * size.planes.width];
                }
                sync_cube();
            }
        }
    }
}

/// Sums `4 place` to `4 place + 3`, added over the planes of this plane's group.
#[cube]
fn group_sum(stage: &Shared<[Vector<f32, Const<4>>]>, place: u32, #[comptime] size: TileSize) -> Vector<f32, Const<4>> {
    let mut sum = stage[(group(size) * FOURS + place) as usize];
    #[unroll]
    for split in 1..size.splits {
        sum += stage[((group(size) + comptime![split * size.groups()]) * FOURS + place) as usize];
    }
    sum
}

/// Writes this plane's sums of 16 rows and one square of each half to shared memory, where all lanes can read them.
#[cube]
fn store_square(
    sums: &Sums,
    stage: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] square: u32,
    round: usize,
    #[comptime] size: TileSize,
) {
    let first = plane(size) * FOURS;
    let square = comptime![square as usize];
    sums.low[square].store(round, stage, first, FOURS_PER_ROW, comptime![size.planes]);
    sums.high[square].store(round, stage, first + comptime![SIDE / 4], FOURS_PER_ROW, comptime![size.planes]);
    sync_cube();
}

/// Adds the products of the columns of step `step` of a chunk, for the first `16 rounds` rows of a tile.
#[cube]
fn multiply<T: Float>(
    inputs: &Shared<[Vector<T, Const<4>>]>,
    weights: &Shared<[Vector<T, Const<4>>]>,
    sums: &mut Sums,
    #[comptime] step: u32,
    #[comptime] rounds: u32,
    #[comptime] size: TileSize,
) {
    let (by_rows, by_columns) = (MatrixLayout::RowMajor, MatrixLayout::ColMajor);
    let (inputs_stride, stride) = comptime![(size.inputs_stride(), size.weights_stride())];
    let first_input = split(size) * comptime![size.rows * inputs_stride] + comptime![8 * step * size.step];
    let first_weight = plane(size) * size.plane_weights();
    #[unroll(size.planes.fragments)]
    for along in 0..comptime![2 * size.step] {
        let along = along * comptime![SIDE / 4];
        let mut low = Sequence::<Operand<T>>::new();
        let mut high = Sequence::<Operand<T>>::new();
        #[unroll]
        for square in 0..size.squares {
            let first = first_weight + comptime![square * SIDE * stride] + along;
            low.push(operand::<T>(weights, first, stride, MatrixIdent::B, by_columns, comptime![size.planes]));
            let first = first + comptime![size.plane_half() * stride];
            high.push(operand::<T>(weights, first, stride, MatrixIdent::B, by_columns, comptime![size.planes]));
        }
        #[unroll(size.planes.fragments)]
        for round in 0..comptime![rounds as usize] {
            let first = first_input + round as u32 * comptime![SIDE * inputs_stride] + along;
            let rows = operand::<T>(inputs, first, inputs_stride, MatrixIdent::A, by_rows, comptime![size.planes]);
            #[unroll]
            for square in 0..comptime![size.squares as usize] {
                let (low, high) = (&low[square], &high[square]);
                let planes = comptime![size.planes];
                let low_sums = &mut sums.low[square];
                low_sums.add::<T>(round, inputs, &rows, inputs_stride, weights, low, stride, true, planes);
                let high_sums = &mut sums.high[square];
                high_sums.add::<T>(round, inputs, &rows, inputs_stride, weights, high, stride, true, planes);
            }
        }
    }
}

/// Adds the products of a tile's rows with the weights from `low_row` and from `high_row` on. A split of the planes has every `splits`-th
/// chunk of columns. The inputs of a chunk are shared by the split's planes; each plane unpacks its own weights, one step after another.
#[cube]
fn add_products<T: Float>(
    x: &[Vector<f32, Const<4>>],
    rows: &TileRows,
    weights: &PackedPair<'_>,
    low_row: u32,
    high_row: u32,
    blocks: u32,
    sums: &mut Sums,
    #[comptime] packing: Packing,
    #[comptime] size: TileSize,
) {
    let mut inputs = Shared::<[Vector<T, Const<4>>]>::new_slice(comptime![size.inputs() as usize]);
    let mut unpacked =
        Shared::<[Vector<T, Const<4>>]>::new_slice(comptime![(size.planes.count * size.plane_weights()) as usize]);
    let starts = input_starts(rows, blocks, size);
    let mut fours = Array::<Vector<f32, Const<4>>>::new(comptime![(2 * size.eights_per_unit()) as usize]);
    let blocks_per_chunk = comptime![size.blocks_per_lane() * size.steps];
    let mut words = Array::<Vector<u32, Const<4>>>::new(comptime![(blocks_per_chunk * packing.vectors()) as usize]);
    let mut factors = Array::<u32>::new(comptime![blocks_per_chunk as usize]);
    let mut first = split(size) * size.chunk();
    read_inputs(x, rows, &starts, first, blocks, &mut fours, size);
    read_weights(weights, low_row, high_row, first, blocks, &mut words, &mut factors, packing, size);
    for _ in 0..blocks.div_ceil(comptime![size.chunk() * size.splits]) {
        put_inputs::<T>(&fours, &mut inputs, size);
        sync_split(size);
        // The inputs of the next chunk are loaded while this one is multiplied; the weights, while its last step is.
        first += comptime![size.chunk() * size.splits];
        read_inputs(x, rows, &starts, first, blocks, &mut fours, size);
        #[unroll]
        for step in 0..size.steps {
            put_weights::<T>(&words, &factors, &mut unpacked, step, packing, size);
            sync_lanes(comptime![size.planes]);
            if comptime![step + 1 == size.steps] {
                read_weights(weights, low_row, high_row, first, blocks, &mut words, &mut factors, packing, size);
            }
            if comptime![size.rounds() == 1] {
                multiply::<T>(&inputs, &unpacked, sums, step, 1u32, size);
            } else if rows.count > comptime![size.rows / 2] {
                multiply::<T>(&inputs, &unpacked, sums, step, comptime![size.rounds()], size);
            } else {
                multiply::<T>(&inputs, &unpacked, sums, step, comptime![size.rounds() / 2], size);
            }
            if comptime![size.groups() > 1 && step + 1 == size.steps] {
                sync_cube();
            } else {
                sync_lanes(comptime![size.planes]);
            }
        }
    }
}

/// Waits until all planes of a split see each other's writes.
#[cube]
fn sync_split(#[comptime] size: TileSize) {
    if comptime![size.groups() > 1] {
        sync_cube();
    } else {
        sync_lanes(comptime![size.planes]);
    }
}

#[cfg(test)]
mod tests {
    use formats::Storage;

    use crate::gpu::Gpu;
    use crate::matmul::checks::{check_dense, check_experts};
    use crate::matmul::{PlaneLayout, TILE, TILE_ROWS};
    use crate::matrix_units::MatrixUnits;
    use crate::product::Product;
    use crate::testing::{F16, F16_EXPERTS, Random, assert_within, gpu, matrix, poisoned};

    /// Emulated matrix units use at most two planes.
    const LAYOUTS: [PlaneLayout; 6] = [
        PlaneLayout { planes: 2, splits: 2, squares: 1, step: 1, steps: 2 },
        PlaneLayout { planes: 4, splits: 1, squares: 2, step: 1, steps: 2 },
        PlaneLayout { planes: 8, splits: 4, squares: 1, step: 1, steps: 4 },
        PlaneLayout { planes: 4, splits: 4, squares: 1, step: 2, steps: 2 },
        PlaneLayout { planes: 2, splits: 2, squares: 2, step: 1, steps: 2 },
        PlaneLayout::PAIRS,
    ];

    /// Uses the adapter's matrix units, or emulated ones.
    fn with_units(gpu: &Gpu) -> Gpu {
        let units = gpu.matrix_units().unwrap_or(MatrixUnits::EMULATED);
        gpu.clone().with_matrix_units(Some(units))
    }

    #[test]
    fn dense_products_equal_f64() {
        let shapes = [(64, 128, 64), (1, 1, 32), (70, 131, 96), (3, 67, 2880), (130, 5, 32)];
        let mut layouts = LAYOUTS.into_iter().cycle();
        let mut rows = TILE_ROWS.into_iter().cycle();
        check_dense(F16, &shapes, "fragments", |gpu, product| {
            let (layout, rows) = (layouts.next().expect("endless"), rows.next().expect("endless"));
            product.launch_tiled(&with_units(gpu), layout, rows);
        });
    }

    #[test]
    fn sorted_expert_products_equal_single_expert_products() {
        let shapes = [
            (40, 3, 96, 64, 2),
            (5, 8, 32, 96, 4),
            (80, 3, 96, 64, 2),
            (1, 2, 32, 32, 1),
            (80, 3, 96, 64, 2),
            (33, 40, 160, 32, 3),
        ];
        let mut layouts = LAYOUTS.into_iter().cycle();
        for (shapes, rows) in shapes.chunks(2).zip(TILE_ROWS) {
            check_experts(F16_EXPERTS, shapes, rows, "fragments", |gpu, product| {
                product.launch_tiled(&with_units(gpu), layouts.next().expect("endless"), rows);
            });
        }
    }

    /// Weights outside the range of 16-bit floats are multiplied in f32.
    #[test]
    fn weights_beyond_f16_are_multiplied_in_f32() {
        let gpu = with_units(&gpu());
        let (device, mut random) = (&gpu.device, Random::fresh());
        for (storage, size) in [(Storage::Mxfp4, 1e9), (Storage::Mxfp4, 1e-12), (Storage::F32, 1e7)] {
            let (inputs, rows, columns) = (3, 40, 64);
            let values = random.values(rows * columns, size);
            let (values, matrix) = matrix(device, storage, [1, rows, columns], &values);
            let x = random.values(inputs * columns, 1.0);
            let out = poisoned(device, inputs * rows);
            let x_buffer = device.upload_f32(&x);
            Product { matrix: &matrix, x: &x_buffer, bias: None, out: &out, add: false, inputs }.launch_tiled(
                &gpu,
                PlaneLayout::PAIRS,
                TILE,
            );
            let found = device.read_f32(&out).expect("reads");
            for input in 0..inputs {
                for row in 0..rows {
                    let terms = values[row * columns..][..columns].iter().zip(&x[input * columns..]);
                    let (sum, bound) = terms.fold((0.0, 0.0), |(sum, bound), (&w, &x)| {
                        let term = f64::from(w) * f64::from(x);
                        (sum + term, bound + term.abs())
                    });
                    let context = format!("{storage:?} {size} {random:?}");
                    assert_within(1e-6, found[input * rows + row], sum, bound, &context);
                }
            }
        }
    }
}
