//! Products of many rows at once: weights are unpacked into shared memory, a block of 32 columns at a time, and used for 64
//! rows. Dense projections, and experts over rows that [`group`](super::group) has put side by side.
//!
//! Ladder (H100, gpt-oss-20b's gate and up, f32):
//! 1. row by row, as decoding does: 5.4 TFLOP/s at 64 rows.
//! 2. tiles of 64 rows by 128 outputs, 256 units with 4 × 8 sums each, in arrays: 12.9 TFLOP/s at 512 rows.
//! 3. the same sums in variables rather than arrays: 12.8 TFLOP/s. No gain; taken back.
//! 4. here: 128 units with 8 × 8 sums, each unpacking what no other unpacks, and rows past a tile's last skipped by the plane:
//!    18.2 TFLOP/s, dense 23.2 (Q8_0, SPIR-V).

use cubecl::prelude::*;
use phase1_loading::Format;

use super::codes::{Packing, load_scales, packed_scale, packed_values};
use super::experts::Experts;
use super::group::{GroupedExperts, SlotTile, TILE, most_tiles};
use super::project::spread;
use super::tile::{put_four, put_gated_four, take_rows, take_slots};
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::layout::Matrix;

/// Units of a cube: two by two fields of 32 rows by two times 32 outputs, in each four by eight units.
const UNITS: u32 = 128;
/// Outputs of one half of a tile.
const HALF: u32 = 64;
/// Vectors of a tile's inputs, from four columns to the next four: one too many, so that lanes store to different banks.
const INPUTS_STRIDE: u32 = 4 * TILE / 4 + 1;
/// Vectors of a tile's weights, from eight columns to the next eight: two too many, for the same reason.
const WEIGHTS_STRIDE: u32 = 8 * 2 * HALF / 4 + 2;

/// `out = X W + b`, or added to `out`, for `inputs` rows.
pub(crate) struct Gemm<'a> {
    pub matrix: &'a Matrix,
    /// `[inputs, columns]`
    pub x: &'a Buffer,
    pub bias: Option<&'a Buffer>,
    /// `[inputs, rows]`
    pub out: &'a Buffer,
    pub add: bool,
    pub inputs: usize,
}

impl Gemm<'_> {
    pub fn launch(&self, gpu: &Gpu) {
        for part in &self.matrix.parts {
            let (y, z) = spread((part.rows as u32).div_ceil(2 * HALF));
            // SAFETY: rows, inputs and blocks are bounded in the kernel by what the buffers hold.
            unsafe {
                dense::launch_unchecked(
                    &gpu.client,
                    CubeCount::Static((self.inputs as u32).div_ceil(TILE), y, z),
                    CubeDim::new_1d(UNITS),
                    self.x.arg4(),
                    part.codes.arg(),
                    part.scales.arg(),
                    self.bias.unwrap_or(self.x).arg(),
                    self.out.arg(),
                    self.inputs as u32,
                    part.rows as u32,
                    part.first_row as u32,
                    self.matrix.rows as u32,
                    self.matrix.blocks() as u32,
                    Packing::new(gpu, self.matrix.format),
                    self.bias.is_some(),
                    self.add,
                );
            }
        }
    }
}

impl GroupedExperts<'_> {
    /// Over tiles of [`TILE`] slots.
    pub fn launch_gate_up(&self, gpu: &Gpu) {
        self.launch(gpu, [self.gate, self.up], self.x, self.activations, self.chosen_per_row, true);
    }

    /// As [`GroupedExperts::launch_gate_up`].
    pub fn launch_down(&self, gpu: &Gpu) {
        self.launch(gpu, [self.down; 2], self.activations, self.out, 1, false);
    }

    fn launch(
        &self,
        gpu: &Gpu,
        [low, high]: [&Experts; 2],
        x: &Buffer,
        out: &Buffer,
        slots_per_input: usize,
        gated: bool,
    ) {
        let weight = &low.weight;
        let outputs = if gated { HALF } else { 2 * HALF };
        let tiles = most_tiles(self.inputs * self.chosen_per_row, weight.parts[0].rows / weight.stride(), TILE);
        // SAFETY: a tile names slots and experts that exist; rows are bounded in the kernel.
        unsafe {
            grouped::launch_unchecked(
                &gpu.client,
                CubeCount::Static((weight.rows as u32).div_ceil(outputs), tiles as u32, 1),
                CubeDim::new_1d(UNITS),
                x.arg4(),
                weight.parts[0].codes.arg(),
                weight.parts[0].scales.arg(),
                low.bias.arg(),
                high.weight.parts[0].codes.arg(),
                high.weight.parts[0].scales.arg(),
                high.bias.arg(),
                self.order.arg(),
                self.tiles.arg(),
                out.arg(),
                weight.rows as u32,
                weight.stride() as u32,
                weight.blocks() as u32,
                slots_per_input as u32,
                Packing::new(gpu, weight.format),
                Packing::new(gpu, high.weight.format),
                gated,
            );
        }
    }
}

#[cube(launch_unchecked)]
fn dense(
    x: &[Vector<f32, Const<4>>],
    codes: &[u32],
    scales: &[u32],
    bias: &[f32],
    out: &mut [f32],
    inputs: u32,
    rows: u32,
    first_row: u32,
    out_width: u32,
    blocks: u32,
    #[comptime] packing: Packing,
    #[comptime] biased: bool,
    #[comptime] add: bool,
) {
    let mut sources = Shared::<[u32]>::new_slice(comptime![TILE as usize]);
    let row = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * comptime![2 * HALF];
    let first = CUBE_POS_X * TILE;
    take_rows(&mut sources, first, inputs, TILE);
    if row < rows {
        let mut low = Array::<Vector<f32, Const<4>>>::new(8usize);
        let mut high = Array::<Vector<f32, Const<4>>>::new(8usize);
        products(
            x,
            &sources,
            inputs - first,
            codes,
            scales,
            row,
            codes,
            scales,
            row + HALF,
            rows - 1,
            blocks,
            &mut low,
            &mut high,
            packing,
            packing,
        );
        #[unroll]
        for i in 0..8u32 {
            let input = first + member_row(i);
            if input < inputs {
                let (start, column) = (input * out_width + first_row, row + output_four() * 4);
                let (low, high) = (low[comptime![i as usize]], high[comptime![i as usize]]);
                put_four(out, start, low, bias, first_row, column, rows, biased, add);
                put_four(out, start, high, bias, first_row, column + HALF, rows, biased, add);
            }
        }
    }
}

/// A tile of slots that chose one expert. Gated, the low half of its outputs is gate's, the high half up's, and their SwiGLU is
/// written; otherwise both halves are of one matrix.
#[cube(launch_unchecked)]
fn grouped(
    x: &[Vector<f32, Const<4>>],
    low_codes: &[u32],
    low_scales: &[u32],
    low_bias: &[f32],
    high_codes: &[u32],
    high_scales: &[u32],
    high_bias: &[f32],
    order: &[u32],
    tiles: &[u32],
    out: &mut [f32],
    rows: u32,
    stride: u32,
    blocks: u32,
    slots_per_input: u32,
    #[comptime] low_packing: Packing,
    #[comptime] high_packing: Packing,
    #[comptime] gated: bool,
) {
    let mut sources = Shared::<[u32]>::new_slice(comptime![TILE as usize]);
    let SlotTile { expert, first, count } = SlotTile::read(tiles, CUBE_POS_Y);
    if count > 0 {
        take_slots(&mut sources, order, first, count, slots_per_input, TILE);
        let low_row = CUBE_POS_X * comptime![if gated { HALF } else { 2 * HALF }];
        let high_row = low_row + comptime![if gated { 0 } else { HALF }];
        let start = expert * stride;
        let mut low = Array::<Vector<f32, Const<4>>>::new(8usize);
        let mut high = Array::<Vector<f32, Const<4>>>::new(8usize);
        products(
            x,
            &sources,
            count,
            low_codes,
            low_scales,
            start + low_row,
            high_codes,
            high_scales,
            start + high_row,
            start + rows - 1,
            blocks,
            &mut low,
            &mut high,
            low_packing,
            high_packing,
        );
        let low_row = low_row + output_four() * 4;
        let high_row = high_row + output_four() * 4;
        #[unroll]
        for i in 0..8u32 {
            let member = member_row(i);
            if member < count {
                let (start, biases) = (order[(first + member) as usize] * rows, expert * rows);
                let (low, high) = (low[comptime![i as usize]], high[comptime![i as usize]]);
                if comptime![gated] {
                    put_gated_four(out, start, low, high, low_bias, high_bias, biases, low_row, rows);
                } else {
                    put_four(out, start, low, low_bias, biases, low_row, rows, true, false);
                    put_four(out, start, high, high_bias, biases, high_row, rows, true, false);
                }
            }
        }
    }
}

/// The first of the tile's rows, in fours, of this unit; its others begin four fours later.
#[cube]
fn member_four() -> u32 {
    UNIT_POS / 64 * 8 + UNIT_POS % 32 / 8
}

/// The tile's row that is this unit's row `i` of eight.
#[cube]
fn member_row(#[comptime] i: u32) -> u32 {
    (member_four() + comptime![i / 4 * 4]) * 4 + comptime![i % 4]
}

/// This unit's outputs, in fours, of either half.
#[cube]
fn output_four() -> u32 {
    UNIT_POS / 32 % 2 * 8 + UNIT_POS % 8
}

/// Rows `sources` of `x`, of which the first `count` matter, times 64 rows from `low_row` on of one matrix and 64 from `high_row`
/// on of another, or the same. Unit u ends with the sums of its eight [`member_row`]s and of four outputs from 4 · [`output_four`] on of
/// either half. Outputs past `last_row` are of no row.
#[cube]
#[allow(clippy::too_many_arguments)]
fn products(
    x: &[Vector<f32, Const<4>>],
    sources: &Shared<[u32]>,
    count: u32,
    low_codes: &[u32],
    low_scales: &[u32],
    low_row: u32,
    high_codes: &[u32],
    high_scales: &[u32],
    high_row: u32,
    last_row: u32,
    blocks: u32,
    low: &mut Array<Vector<f32, Const<4>>>,
    high: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] low_packing: Packing,
    #[comptime] high_packing: Packing,
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
        turn_inputs(x, sources, block, blocks, &mut inputs);
        let eight = UNIT_POS % 4;
        let fours = UNIT_POS / 4;
        if fours < comptime![HALF / 4] {
            let row = min(low_row / 4 + fours, last_row / 4);
            unpack(low_codes, low_scales, row, eight, fours, block, blocks, &mut weights, low_packing);
        } else {
            let row = min(high_row / 4 + fours - comptime![HALF / 4], last_row / 4);
            unpack(high_codes, high_scales, row, eight, fours, block, blocks, &mut weights, high_packing);
        }
        sync_cube();

        // The same for all lanes of a plane of 32.
        if UNIT_POS / 64 * 32 < count {
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

/// Reads a block of 64 rows and turns it: each unit a square of four rows by four columns.
#[cube]
fn turn_inputs(
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
        inputs[(columns * INPUTS_STRIDE + comptime![j * TILE / 4] + rows) as usize] = turned(&square, j);
    }
}

/// Value `j` of each of four vectors.
#[cube]
pub(super) fn turned(square: &Array<Vector<f32, Const<4>>>, #[comptime] j: u32) -> Vector<f32, Const<4>> {
    let mut turned = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..4u32 {
        turned.insert(comptime![i as usize], square[comptime![i as usize]].extract(comptime![j as usize]));
    }
    turned
}

/// Unpacks columns `8 eight` to `8 eight + 7` of a block of the four rows that begin at row `4 row_four`, turned, to place `fours`
/// of the tile's outputs.
#[cube]
#[allow(clippy::too_many_arguments)]
fn unpack(
    codes: &[u32],
    scales: &[u32],
    row_four: u32,
    eight: u32,
    fours: u32,
    block: u32,
    blocks: u32,
    weights: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] packing: Packing,
) {
    let mut words = Array::<Vector<u32, Const<4>>>::new(8usize);
    #[unroll]
    for i in 0..4u32 {
        load_eight(codes, row_four * 4 + i, eight, block, blocks, &mut words, comptime![2 * i], packing.format);
    }
    let mut factors = Array::<u32>::new(4usize);
    load_scales(scales, row_four * 4, block, blocks, &mut factors, 0u32, 4u32, packing.format);
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
            weights[at as usize] = turned(&square, j);
        }
    }
}

/// Reads the codes of columns `8 eight` to `8 eight + 7` of a block to where a block's first eight would be.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn load_eight(
    codes: &[u32],
    row: u32,
    eight: u32,
    block: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    #[comptime] first: u32,
    #[comptime] format: Format,
) {
    let count = comptime![match format {
        Format::Mxfp4 => 1u32,
        Format::Q8_0 => 2,
        Format::F16 | Format::BF16 => 4,
        _ => 8,
    }];
    // The block's words, of which four lie together.
    let word = eight * count;
    #[unroll]
    for v in 0..comptime![count.div_ceil(4)] {
        let vector = (row * count + word / 4 + v) * blocks + block;
        let mut four = Vector::<u32, Const<4>>::new(0u32);
        #[unroll]
        for i in 0..comptime![count.min(4)] {
            four.insert(comptime![i as usize], codes[(vector * 4 + word % 4 + i) as usize]);
        }
        words[comptime![(first + v) as usize]] = four;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::project::Project;
    use crate::gpu::kernels::testing::{F32, Random, check_dense, check_grouped, gpu, matrix, poisoned};
    use phase1_loading::HostTensor;

    #[test]
    fn dense_products_equal_f64() {
        check_dense(F32, &[(64, 128, 64), (1, 1, 32), (70, 131, 96), (3, 67, 2880), (130, 5, 32)], |gpu, dense| {
            dense.launch(gpu);
        });
    }

    #[test]
    fn grouped_experts_equal_single_ones() {
        let shapes = [(80, 3, 96, 64, 2), (5, 8, 32, 96, 4), (1, 2, 32, 32, 1), (33, 40, 160, 32, 3)];
        check_grouped(F32, &shapes, TILE, |gpu, experts| {
            experts.launch_gate_up(gpu);
            experts.launch_down(gpu);
        });
    }

    /// The head's rows in several parts.
    #[test]
    fn parts_of_a_matrix_land_side_by_side() {
        let gpu = gpu();
        let mut random = Random::fresh();
        let (inputs, columns) = (3, 64);
        let (_, mut whole) = matrix(&gpu, &mut random, Format::F32, vec![200, columns]);
        let small = Gpu { binding_bytes: (columns * 4 * 72) as u64, ..gpu.clone() };
        let values = random.values(200 * columns, 1.0);
        let tensor = HostTensor::packed_rows(Format::F32, vec![200, columns], Format::F32.encode(&values).into());
        whole.parts = Matrix::upload(&gpu, "w", &[&tensor]).expect("uploads").parts;
        let split = Matrix::upload(&small, "w", &[&tensor]).expect("uploads");
        assert_eq!(split.parts.len(), 3);
        let x = gpu.upload_f32(&random.values(inputs * columns, 1.0));
        let outs = [&whole, &split].map(|matrix| {
            let (tiled, single) = (poisoned(&gpu, inputs * 200), poisoned(&gpu, inputs * 200));
            Gemm { matrix, x: &x, bias: None, out: &tiled, add: false, inputs }.launch(&gpu);
            Project { matrix, x: &x, norm: None, bias: None, out: &single, add: false, inputs }.launch(&gpu);
            [tiled, single].map(|out| gpu.read_f32(&out).expect("reads"))
        });
        assert_eq!(outs[0], outs[1]);
    }
}
