//! Products of a few rows: a block of weights is read and unpacked once, and multiplied with up to eight inputs. Dense projections,
//! and experts over rows that [`group`](super::group) has put side by side.
//!
//! A cube takes 32 rows of a matrix, and eight units or more share out each row's blocks. Units that follow each other have different
//! rows and the same columns, so that a plane's lanes read the same inputs from shared memory.
//!
//! Ladder (H100, ten sequences of gpt-oss-20b, a whole step): each row by itself 19 ms, here 54 ms. At 64 rows 49 ms, where tiles took 159.
//! So few rows are left to themselves. On matrix units, inputs as sums of two 16-bit floats and 16 rows to a tile, ten sequences took
//! 23.4 ms where rows by themselves took 11.4: left out.

use cubecl::prelude::*;
use serde::{Deserialize, Serialize};

use super::codes::{Packing, load_codes, load_scales, packed_scale, packed_values};
use super::experts::{Experts, swiglu};
use super::group::{GroupedExperts, SlotTile, most_tiles};
use super::project::{spread, zero};
use super::reduce::sum4;
use super::tile::{put, take_rows, take_slots};
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::layout::{Matrix, vectors};

/// Inputs that one reading of the weights serves at most.
pub(crate) const FEW: u32 = 8;
/// Rows of a cube.
const ROWS: u32 = 32;

/// How units share out a row's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Division {
    /// Units that share a row; at least [`FEW`], so that every sum over a row's units has a unit.
    pub shares: u32,
    /// Blocks of its row that a unit has under way at once.
    pub ahead: u32,
}

impl Division {
    /// Those that shared memory has room for everywhere.
    pub const ALL: [Division; 3] = [
        Division { shares: FEW, ahead: 1 },
        Division { shares: FEW, ahead: 2 },
        Division { shares: FEW + 4, ahead: 1 },
    ];

    fn units(&self) -> u32 {
        ROWS * self.shares
    }

    /// Vectors of an input that lie in shared memory at once.
    fn staged(&self) -> u32 {
        8 * self.shares * self.ahead
    }
}

/// `out = X W + b`, or added to `out`, for `inputs` rows.
pub(crate) struct Few<'a> {
    pub matrix: &'a Matrix,
    /// `[inputs, columns]`
    pub x: &'a Buffer,
    pub bias: Option<&'a Buffer>,
    /// `[inputs, rows]`
    pub out: &'a Buffer,
    pub add: bool,
    pub inputs: usize,
}

impl Few<'_> {
    pub fn launch(&self, gpu: &Gpu) {
        let division = gpu.tuning.few;
        // Tiles of one size, side by side over the same weights.
        let inputs = self.inputs as u32;
        let tiles = inputs.div_ceil(FEW);
        let tile = inputs.div_ceil(tiles);
        for part in &self.matrix.parts {
            let (y, z) = spread((part.rows as u32).div_ceil(ROWS));
            // SAFETY: rows, inputs and blocks are bounded in the kernel by what the buffers hold.
            unsafe {
                dense::launch_unchecked(
                    &gpu.client,
                    CubeCount::Static(tiles, y, z),
                    CubeDim::new_1d(division.units()),
                    self.x.arg4(),
                    part.codes.arg4(),
                    part.scales.arg(),
                    self.bias.unwrap_or(self.x).arg(),
                    self.out.arg(),
                    inputs,
                    part.rows as u32,
                    part.first_row as u32,
                    self.matrix.rows as u32,
                    self.matrix.blocks() as u32,
                    tile,
                    Packing::new(gpu, self.matrix.format),
                    self.bias.is_some(),
                    self.add,
                    division,
                );
            }
        }
    }
}

impl GroupedExperts<'_> {
    /// Over tiles of [`FEW`] slots.
    pub fn launch_few_gate_up(&self, gpu: &Gpu) {
        self.launch_few(gpu, [self.gate, self.up], self.x, self.activations, self.chosen_per_row);
    }

    /// As [`GroupedExperts::launch_few_gate_up`].
    pub fn launch_few_down(&self, gpu: &Gpu) {
        self.launch_few(gpu, [self.down; 2], self.activations, self.out, 1);
    }

    fn launch_few(&self, gpu: &Gpu, [first, second]: [&Experts; 2], x: &Buffer, out: &Buffer, slots_per_input: usize) {
        let division = gpu.tuning.few;
        let gated = !std::ptr::eq(first, second);
        let weight = &first.weight;
        let tiles = most_tiles(self.inputs * self.chosen_per_row, weight.parts[0].rows / weight.stride(), FEW);
        // SAFETY: a tile names slots and experts that exist; rows are bounded in the kernel.
        unsafe {
            grouped::launch_unchecked(
                &gpu.client,
                CubeCount::Static((weight.rows as u32).div_ceil(ROWS), tiles as u32, 1),
                CubeDim::new_1d(division.units()),
                x.arg4(),
                weight.parts[0].codes.arg4(),
                weight.parts[0].scales.arg(),
                first.bias.arg(),
                second.weight.parts[0].codes.arg4(),
                second.weight.parts[0].scales.arg(),
                second.bias.arg(),
                self.order.arg(),
                self.tiles.arg(),
                out.arg(),
                weight.rows as u32,
                weight.stride() as u32,
                weight.blocks() as u32,
                slots_per_input as u32,
                Packing::new(gpu, weight.format),
                Packing::new(gpu, second.weight.format),
                gated,
                division,
            );
        }
    }
}

#[cube(launch_unchecked)]
fn dense(
    x: &[Vector<f32, Const<4>>],
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    bias: &[f32],
    out: &mut [f32],
    inputs: u32,
    rows: u32,
    first_row: u32,
    out_width: u32,
    blocks: u32,
    #[comptime] tile: u32,
    #[comptime] packing: Packing,
    #[comptime] biased: bool,
    #[comptime] add: bool,
    #[comptime] division: Division,
) {
    let mut sources = Shared::<[u32]>::new_slice(comptime![FEW as usize]);
    let mut staged = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(division.staged() * tile) as usize]);
    let mut partial = Shared::<[f32]>::new_slice(comptime![(division.units() * tile) as usize]);
    let row = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * ROWS;
    let first = CUBE_POS_X * tile;
    take_rows(&mut sources, first, inputs, tile);
    if row < rows {
        let mut sums = Array::<f32>::new(comptime![tile as usize]);
        let own = min(row + UNIT_POS % ROWS, rows - 1);
        products(
            x,
            &sources,
            codes,
            scales,
            codes,
            scales,
            own,
            blocks,
            &mut staged,
            &mut sums,
            tile,
            packing,
            packing,
            false,
            division,
        );
        let y = total(&sums, 0u32, &mut partial, tile, division);
        let input = first + UNIT_POS / ROWS;
        let row = row + UNIT_POS % ROWS;
        if UNIT_POS < tile * ROWS && input < inputs && row < rows {
            let row = first_row + row;
            put(out, (input * out_width + row) as usize, y, bias, row, biased, add);
        }
    }
}

/// A tile of slots that chose one expert: the SwiGLU of two matrices if `gated`, or one product.
#[cube(launch_unchecked)]
fn grouped(
    x: &[Vector<f32, Const<4>>],
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    bias: &[f32],
    up_codes: &[Vector<u32, Const<4>>],
    up_scales: &[u32],
    up_bias: &[f32],
    order: &[u32],
    tiles: &[u32],
    out: &mut [f32],
    rows: u32,
    stride: u32,
    blocks: u32,
    slots_per_input: u32,
    #[comptime] packing: Packing,
    #[comptime] up_packing: Packing,
    #[comptime] gated: bool,
    #[comptime] division: Division,
) {
    let mut sources = Shared::<[u32]>::new_slice(comptime![FEW as usize]);
    let mut staged = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(division.staged() * FEW) as usize]);
    let mut partial = Shared::<[f32]>::new_slice(comptime![(division.units() * FEW) as usize]);
    let SlotTile { expert, first, count } = SlotTile::read(tiles, CUBE_POS_Y);
    if count > 0 {
        take_slots(&mut sources, order, first, count, slots_per_input, FEW);
        let row = CUBE_POS_X * ROWS + UNIT_POS % ROWS;
        let own = expert * stride + min(row, rows - 1);
        let mut y = 0.0f32;
        let mut up = 0.0f32;
        // No more sums than the tile needs, in twos.
        #[unroll]
        for size in 0..3u32 {
            let least = comptime![(1u32 << size) + if size == 0 { 0 } else { 1 }];
            let most = comptime![2u32 << size];
            if count >= least && count <= most {
                let mut sums = Array::<f32>::new(comptime![(2 * most) as usize]);
                products(
                    x,
                    &sources,
                    codes,
                    scales,
                    up_codes,
                    up_scales,
                    own,
                    blocks,
                    &mut staged,
                    &mut sums,
                    most,
                    packing,
                    up_packing,
                    gated,
                    division,
                );
                y = total(&sums, 0u32, &mut partial, most, division);
                if comptime![gated] {
                    up = total(&sums, most, &mut partial, most, division);
                }
            }
        }
        let member = UNIT_POS / ROWS;
        if member < count && row < rows {
            let bias_at = (expert * rows + row) as usize;
            let slot = order[(first + member) as usize];
            let mut value = y + bias[bias_at];
            if comptime![gated] {
                value = swiglu(value, up + up_bias[bias_at]);
            }
            out[(slot * rows + row) as usize] = value;
        }
    }
}

/// Rows `sources` of `x` times row `row` of one matrix or of two, a share of the row's blocks each unit: the sums of the first
/// matrix with every input, then those of the second.
#[cube]
#[allow(clippy::too_many_arguments)]
fn products(
    x: &[Vector<f32, Const<4>>],
    sources: &Shared<[u32]>,
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    second_codes: &[Vector<u32, Const<4>>],
    second_scales: &[u32],
    row: u32,
    blocks: u32,
    staged: &mut Shared<[Vector<f32, Const<4>>]>,
    sums: &mut Array<f32>,
    #[comptime] inputs: u32,
    #[comptime] packing: Packing,
    #[comptime] second_packing: Packing,
    #[comptime] two: bool,
    #[comptime] division: Division,
) {
    let share = UNIT_POS / ROWS;
    zero(sums, comptime![if two { 2 * inputs } else { inputs }]);
    let mut first = 0u32;
    while first < blocks {
        let mut block_codes =
            Array::<Vector<u32, Const<4>>>::new(comptime![division.ahead as usize * vectors(packing.format)]);
        let mut second_block_codes =
            Array::<Vector<u32, Const<4>>>::new(comptime![division.ahead as usize * vectors(second_packing.format)]);
        let mut factors = Array::<u32>::new(comptime![division.ahead as usize]);
        let mut second_factors = Array::<u32>::new(comptime![division.ahead as usize]);
        let block = first + share;
        read_codes(codes, scales, row, block, blocks, &mut block_codes, &mut factors, packing, division);
        if comptime![two] {
            read_codes(
                second_codes,
                second_scales,
                row,
                block,
                blocks,
                &mut second_block_codes,
                &mut second_factors,
                second_packing,
                division,
            );
        }
        stage(x, sources, first, blocks, staged, inputs, division);
        sync_cube();
        add_blocks(first, blocks, &block_codes, &factors, staged, sums, 0u32, inputs, packing, division);
        if comptime![two] {
            add_blocks(
                first,
                blocks,
                &second_block_codes,
                &second_factors,
                staged,
                sums,
                inputs,
                inputs,
                second_packing,
                division,
            );
        }
        sync_cube();
        first += comptime![division.shares * division.ahead];
    }
}

/// The codes and scales of a unit's next blocks, of which the first is `block`; past the last, the last's.
#[cube]
#[allow(clippy::too_many_arguments)]
fn read_codes(
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    row: u32,
    block: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    factors: &mut Array<u32>,
    #[comptime] packing: Packing,
    #[comptime] division: Division,
) {
    let vectors = comptime![vectors(packing.format) as u32];
    #[unroll]
    for i in 0..division.ahead {
        let block = min(block + comptime![i * division.shares], blocks - 1);
        load_codes(codes, row, block, blocks, words, comptime![i * vectors], vectors);
        load_scales(scales, row, block, blocks, factors, i, 1u32, packing.format);
    }
}

/// Puts the inputs' blocks from `first` on into shared memory, an input after the other.
#[cube]
fn stage(
    x: &[Vector<f32, Const<4>>],
    sources: &Shared<[u32]>,
    first: u32,
    blocks: u32,
    staged: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] inputs: u32,
    #[comptime] division: Division,
) {
    let width = comptime![division.staged()];
    #[unroll]
    for round in 0..comptime![(inputs * width).div_ceil(division.units())] {
        let i = UNIT_POS + comptime![round * division.units()];
        let column = first * 8 + i % width;
        if i < comptime![inputs * width] && column < blocks * 8 {
            staged[i as usize] = x[(sources[(i / width) as usize] * blocks * 8 + column) as usize];
        }
    }
}

/// Adds the products of a unit's blocks to `sums` from `first_sum` on.
#[cube]
#[allow(clippy::too_many_arguments)]
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
    #[comptime] division: Division,
) {
    #[unroll]
    for ahead in 0..division.ahead {
        let place = UNIT_POS / ROWS + comptime![ahead * division.shares];
        if first + place < blocks {
            let mut parts = Array::<Vector<f32, Const<4>>>::new(comptime![inputs as usize]);
            #[unroll]
            for i in 0..inputs {
                parts[comptime![i as usize]] = Vector::<f32, Const<4>>::new(0.0f32);
            }
            #[unroll]
            for four in 0..8u32 {
                let weights = packed_values(words, comptime![ahead * vectors(packing.format) as u32], four, packing);
                #[unroll]
                for i in 0..inputs {
                    let x = staged[(place * 8 + comptime![i * division.staged() + four]) as usize];
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

/// The sum over a row's units of their sums from `first_sum` on: unit u's is of input u / 32 and row u mod 32.
#[cube]
fn total(
    sums: &Array<f32>,
    #[comptime] first_sum: u32,
    partial: &mut Shared<[f32]>,
    #[comptime] inputs: u32,
    #[comptime] division: Division,
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
        for share in 0..division.shares {
            total += partial[(UNIT_POS + comptime![share * inputs * ROWS]) as usize];
        }
    }
    sync_cube();
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::gemm::Gemm;
    use crate::gpu::kernels::testing::{F32, check_dense, check_grouped};

    #[test]
    fn dense_products_equal_f64() {
        check_dense(F32, &[(2, 33, 2880), (10, 70, 96), (1, 1, 32), (8, 64, 544), (17, 5, 512)], |gpu, dense| {
            let Gemm { matrix, x, bias, out, add, inputs } = *dense;
            Few { matrix, x, bias, out, add, inputs }.launch(gpu);
        });
    }

    #[test]
    fn grouped_experts_equal_single_ones() {
        let shapes = [(10, 3, 96, 64, 2), (5, 8, 32, 96, 4), (2, 2, 32, 32, 1), (23, 40, 160, 544, 3)];
        check_grouped(F32, &shapes, FEW, |gpu, experts| {
            experts.launch_few_gate_up(gpu);
            experts.launch_few_down(gpu);
        });
    }
}
