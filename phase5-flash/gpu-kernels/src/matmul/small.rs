//! Products of a few rows: a block of weights is read and unpacked once, and multiplied with up to eight inputs. For dense projections, and
//! for experts over [sorted slots](crate::moe::SlotSort).
//!
//! A cube handles 32 rows of a matrix, and eight or more units share the blocks of a row. Consecutive units have different rows and the
//! same columns, so that the lanes of a plane read the same inputs from shared memory.
//!
//! History (H100, ten sequences of gpt-oss-20b, a whole step): each input separately 19 ms, this kernel 54 ms. With 64 inputs this
//! kernel took 49 ms, and tiles 159 ms. So passes with very few inputs use the mat-vec kernels. A variant on matrix units, with inputs as
//! sums of two 16-bit floats and 16 rows per tile, took 23.4 ms for ten sequences, when each input separately took 11.4 ms. The variant is
//! not used.

use cubecl::prelude::*;
use serde::{Deserialize, Serialize};

use super::operand::{DenseArgs, Outputs, TileRows, dense_args};
use crate::device::cube_grid;
use crate::epilogue::{Epilogue, store_one, swiglu};
use crate::gpu::Gpu;
use crate::moe::SlotTile;
use crate::packed::{PackedPair, Packing, load_blocks, packed_scale, packed_values};
use crate::product::{ExpertArgs, ExpertProduct, Product, expert_args, most_tiles};
use crate::vec4::sum4;

/// The most inputs that share one read of the weights.
pub const SMALL_BATCH: u32 = 8;
/// Rows per cube.
const ROWS: u32 = 32;

/// How units share the blocks of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowSplit {
    /// Units per row; at least [`SMALL_BATCH`], so that each of a row's sums has a unit.
    pub shares: u32,
    /// Blocks that a unit loads at once.
    pub ahead: u32,
}

impl RowSplit {
    /// The splits that are worth measuring. More shares or more blocks ahead would need more shared memory.
    pub const ALL: [RowSplit; 3] = [
        RowSplit { shares: SMALL_BATCH, ahead: 1 },
        RowSplit { shares: SMALL_BATCH, ahead: 2 },
        RowSplit { shares: SMALL_BATCH + 4, ahead: 1 },
    ];

    fn units(&self) -> u32 {
        ROWS * self.shares
    }

    /// Vectors of an input that are in shared memory at once.
    fn staged(&self) -> u32 {
        8 * self.shares * self.ahead
    }
}

pub(super) fn launch_dense(gpu: &Gpu, product: &Product<'_>, split: RowSplit) {
    // All tiles have the same size, except perhaps the last, and read the same weights in parallel.
    let inputs = product.inputs as u32;
    let tiles = inputs.div_ceil(SMALL_BATCH);
    let epilogue = Epilogue { biased: product.bias.is_some(), add: product.add, gated: false };
    for part in product.matrix.parts() {
        let (y, z) = cube_grid((part.rows as u32).div_ceil(ROWS));
        // SAFETY: lengths were checked; rows, inputs and blocks are bounded in the kernel.
        unsafe {
            dense::launch_unchecked(
                gpu.device.client(),
                CubeCount::Static(tiles, y, z),
                CubeDim::new_1d(split.units()),
                dense_args(product, part),
                part.codes.arg4(),
                inputs.div_ceil(tiles),
                gpu.packing(product.matrix.storage()),
                epilogue,
                split,
            );
        }
    }
}

pub(super) fn launch_experts(gpu: &Gpu, product: &ExpertProduct<'_>, split: RowSplit) {
    let (weight, up) = (&product.experts.weight, product.up.unwrap_or(product.experts));
    // SAFETY: lengths were checked; tiles name existing slots and experts, and the kernel bounds rows.
    unsafe {
        experts::launch_unchecked(
            gpu.device.client(),
            CubeCount::Static((weight.rows() as u32).div_ceil(ROWS), most_tiles(product, SMALL_BATCH), 1),
            CubeDim::new_1d(split.units()),
            expert_args(product),
            weight.whole().codes.arg4(),
            up.weight.whole().codes.arg4(),
            gpu.packing(weight.storage()),
            product.up.is_some(),
            split,
        );
    }
}

#[cube(launch_unchecked)]
fn dense(
    mut args: DenseArgs,
    codes: &[Vector<u32, Const<4>>],
    #[comptime] size: u32,
    #[comptime] packing: Packing,
    #[comptime] epilogue: Epilogue,
    #[comptime] split: RowSplit,
) {
    let first_row = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * ROWS;
    let rows = TileRows::dense(CUBE_POS_X * size, args.inputs, size);
    let mut staged = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(split.staged() * size) as usize]);
    let mut partial = Shared::<[f32]>::new_slice(comptime![(split.units() * size) as usize]);
    if first_row < args.rows {
        let weights = PackedPair::one(codes, &args.scales, args.rows - 1);
        let row = first_row + UNIT_POS % ROWS;
        let (y, up) =
            sums(&args.x, &rows, &weights, row, args.blocks, &mut staged, &mut partial, size, packing, false, split);
        let outputs =
            Outputs { width: args.out_width, first: args.first_row, first_bias: args.first_row, columns: args.rows };
        store(&mut args.out, &rows, &outputs, y, up, row, &args.bias, &args.bias, epilogue);
    }
}

/// A tile of slots of one expert: the SwiGLU of two matrices if `gated`, otherwise one product.
#[cube(launch_unchecked)]
fn experts(
    mut args: ExpertArgs,
    codes: &[Vector<u32, Const<4>>],
    up_codes: &[Vector<u32, Const<4>>],
    #[comptime] packing: Packing,
    #[comptime] gated: bool,
    #[comptime] split: RowSplit,
) {
    let mut staged = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(split.staged() * SMALL_BATCH) as usize]);
    let mut partial = Shared::<[f32]>::new_slice(comptime![(split.units() * SMALL_BATCH) as usize]);
    let SlotTile { expert, first, count } = SlotTile::read(&args.tiles, CUBE_POS_Y);
    if count > 0 {
        let rows = TileRows::slots(&args.sorted_slots, first, count, args.slots_per_input, SMALL_BATCH);
        let start = expert * args.stride;
        let weights = PackedPair::two(codes, &args.scales, up_codes, &args.up_scales, start + args.rows - 1);
        let row = CUBE_POS_X * ROWS + UNIT_POS % ROWS;
        let mut y = 0.0f32;
        let mut up = 0.0f32;
        // Computes only as many sums as the tile needs, rounded up to 2, 4 or 8.
        #[unroll]
        for size in 0..3u32 {
            let least = comptime![(1u32 << size) + if size == 0 { 0 } else { 1 }];
            let most = comptime![2u32 << size];
            if count >= least && count <= most {
                let (first_sum, second_sum) = sums(
                    &args.x,
                    &rows,
                    &weights,
                    start + row,
                    args.blocks,
                    &mut staged,
                    &mut partial,
                    most,
                    packing,
                    gated,
                    split,
                );
                y = first_sum;
                up = second_sum;
            }
        }
        let outputs =
            Outputs { width: args.rows, first: 0u32.runtime(), first_bias: expert * args.rows, columns: args.rows };
        let epilogue = comptime![Epilogue { biased: true, add: false, gated }];
        store(&mut args.out, &rows, &outputs, y, up, row, &args.bias, &args.up_bias, epilogue);
    }
}

/// Writes unit u's sums, which belong to input u / 32 of the tile, to output `column`.
#[cube]
fn store(
    out: &mut [f32],
    rows: &TileRows,
    outputs: &Outputs,
    y: f32,
    up: f32,
    column: u32,
    bias: &[f32],
    up_bias: &[f32],
    #[comptime] epilogue: Epilogue,
) {
    let member = UNIT_POS / ROWS;
    if member < rows.count && column < outputs.columns {
        let at = (rows.targets[member as usize] * outputs.width + outputs.first + column) as usize;
        let column = outputs.first_bias + column;
        if comptime![epilogue.gated] {
            out[at] = swiglu(y + bias[column as usize], up + up_bias[column as usize]);
        } else {
            store_one(out, at, y, bias, column, epilogue);
        }
    }
}

/// The products of the first `inputs` inputs of a tile with row `row` of one or two matrices, where unit u returns those of input u / 32.
#[cube]
fn sums(
    x: &[Vector<f32, Const<4>>],
    rows: &TileRows,
    weights: &PackedPair<'_>,
    row: u32,
    blocks: u32,
    staged: &mut Shared<[Vector<f32, Const<4>>]>,
    partial: &mut Shared<[f32]>,
    #[comptime] inputs: u32,
    #[comptime] packing: Packing,
    #[comptime] two: bool,
    #[comptime] split: RowSplit,
) -> (f32, f32) {
    let mut sums = Array::<f32>::new(comptime![if two { 2 * inputs as usize } else { inputs as usize }]);
    let row = min(row, weights.last_row);
    add_products(x, &rows.sources, weights, row, blocks, staged, &mut sums, inputs, packing, two, split);
    let first = total(&sums, 0u32, partial, inputs, split);
    let mut second = 0.0f32;
    if comptime![two] {
        second = total(&sums, inputs, partial, inputs, split);
    }
    (first, second)
}

/// Multiplies rows `sources` of `x` with row `row` of one or two matrices; each unit handles a part of the row's blocks. The result is the
/// sums of the first matrix with every input, then those of the second.
#[cube]
fn add_products(
    x: &[Vector<f32, Const<4>>],
    sources: &Shared<[u32]>,
    weights: &PackedPair<'_>,
    row: u32,
    blocks: u32,
    staged: &mut Shared<[Vector<f32, Const<4>>]>,
    sums: &mut Array<f32>,
    #[comptime] inputs: u32,
    #[comptime] packing: Packing,
    #[comptime] two: bool,
    #[comptime] split: RowSplit,
) {
    let share = UNIT_POS / ROWS;
    #[unroll]
    for i in 0..comptime![if two { 2 * inputs } else { inputs }] {
        sums[comptime![i as usize]] = 0.0f32;
    }
    let mut first = 0u32;
    while first < blocks {
        let count = comptime![split.ahead as usize];
        let mut words = Array::<Vector<u32, Const<4>>>::new(comptime![count * packing.vectors() as usize]);
        let mut second_words = Array::<Vector<u32, Const<4>>>::new(comptime![count * packing.vectors() as usize]);
        let mut factors = Array::<u32>::new(count);
        let mut second_factors = Array::<u32>::new(count);
        let block = first + share;
        read_blocks(weights.codes, weights.scales, row, block, blocks, &mut words, &mut factors, packing, split);
        if comptime![two] {
            read_blocks(
                weights.second_codes,
                weights.second_scales,
                row,
                block,
                blocks,
                &mut second_words,
                &mut second_factors,
                packing,
                split,
            );
        }
        stage(x, sources, first, blocks, staged, inputs, split);
        sync_cube();
        add_blocks(first, blocks, &words, &factors, staged, sums, 0u32, inputs, packing, split);
        if comptime![two] {
            add_blocks(first, blocks, &second_words, &second_factors, staged, sums, inputs, inputs, packing, split);
        }
        sync_cube();
        first += comptime![split.shares * split.ahead];
    }
}

/// Reads the codes and scales of a unit's next blocks, from `block` on. Past the end, the last block is repeated.
#[cube]
fn read_blocks(
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    row: u32,
    block: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    factors: &mut Array<u32>,
    #[comptime] packing: Packing,
    #[comptime] split: RowSplit,
) {
    #[unroll]
    for i in 0..split.ahead {
        let block = min(block + comptime![i * split.shares], blocks - 1);
        load_blocks(codes, scales, row, block, blocks, words, factors, i, 1u32, packing.storage);
    }
}

/// Copies the inputs' blocks from `first` on into shared memory, one input after another.
#[cube]
fn stage(
    x: &[Vector<f32, Const<4>>],
    sources: &Shared<[u32]>,
    first: u32,
    blocks: u32,
    staged: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] inputs: u32,
    #[comptime] split: RowSplit,
) {
    let width = comptime![split.staged()];
    #[unroll]
    for round in 0..comptime![(inputs * width).div_ceil(split.units())] {
        let i = UNIT_POS + comptime![round * split.units()];
        let column = first * 8 + i % width;
        if i < comptime![inputs * width] && column < blocks * 8 {
            staged[i as usize] = x[(sources[(i / width) as usize] * blocks * 8 + column) as usize];
        }
    }
}

/// Adds the products of a unit's blocks to `sums`, from index `first_sum` on.
#[cube]
fn add_blocks(
    first: u32,
    blocks: u32,
    words: &Array<Vector<u32, Const<4>>>,
    factors: &Array<u32>,
    staged: &mut Shared<[Vector<f32, Const<4>>]>,
    sums: &mut Array<f32>,
    #[comptime] first_sum: u32,
    #[comptime] inputs: u32,
    #[comptime] packing: Packing,
    #[comptime] split: RowSplit,
) {
    #[unroll]
    for ahead in 0..split.ahead {
        let place = UNIT_POS / ROWS + comptime![ahead * split.shares];
        if first + place < blocks {
            let mut parts = Array::<Vector<f32, Const<4>>>::new(comptime![inputs as usize]);
            #[unroll]
            for i in 0..inputs {
                parts[comptime![i as usize]] = Vector::<f32, Const<4>>::new(0.0f32);
            }
            #[unroll]
            for four in 0..8u32 {
                let weights = packed_values(words, comptime![ahead * packing.vectors()], four, packing);
                #[unroll]
                for i in 0..inputs {
                    let x = staged[(place * 8 + comptime![i * split.staged() + four]) as usize];
                    parts[comptime![i as usize]] = fma(weights, x, parts[comptime![i as usize]]);
                }
            }
            let scale = packed_scale(factors[comptime![ahead as usize]], packing);
            #[unroll]
            for i in 0..inputs {
                sums[comptime![(first_sum + i) as usize]] += scale * sum4(parts[comptime![i as usize]]);
            }
        }
    }
}

/// Sums over the units of a row, from index `first_sum` on: unit u returns the sum of input u / 32 and row u mod 32.
#[cube]
fn total(
    sums: &Array<f32>,
    #[comptime] first_sum: u32,
    partial: &mut Shared<[f32]>,
    #[comptime] inputs: u32,
    #[comptime] split: RowSplit,
) -> f32 {
    let start = UNIT_POS / ROWS * comptime![inputs * ROWS] + UNIT_POS % ROWS;
    #[unroll]
    for i in 0..inputs {
        partial[(start + i * ROWS) as usize] = sums[comptime![(first_sum + i) as usize]];
    }
    sync_cube();
    let mut total = 0.0f32;
    if UNIT_POS < comptime![inputs * ROWS] {
        #[unroll]
        for share in 0..split.shares {
            total += partial[(UNIT_POS + comptime![share * inputs * ROWS]) as usize];
        }
    }
    sync_cube();
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::checks::{check_dense, check_experts};
    use crate::testing::F32;

    #[test]
    fn dense_products_equal_f64() {
        let shapes = [(2, 33, 2880), (10, 70, 96), (1, 1, 32), (8, 64, 544), (17, 5, 512)];
        let mut splits = RowSplit::ALL.into_iter().cycle();
        check_dense(F32, &shapes, "small", |gpu, product| product.launch_small(gpu, splits.next().expect("endless")));
    }

    #[test]
    fn sorted_expert_products_equal_single_expert_products() {
        let shapes = [(10, 3, 96, 64, 2), (5, 8, 32, 96, 4), (2, 2, 32, 32, 1), (23, 40, 160, 544, 3)];
        let mut splits = RowSplit::ALL.into_iter().cycle();
        check_experts(F32, &shapes, SMALL_BATCH, "small", |gpu, product| {
            product.launch_small(gpu, splits.next().expect("endless"));
        });
    }
}
