//! Products of many rows on matrix units, where an adapter has them: [`gemm`](super::gemm)'s in 16-bit floats, added up in f32.
//!
//! A tile is 64 rows by two times 16 outputs a plane. Weights and inputs become 16-bit floats in shared memory, a block of 32
//! columns at a time: MXFP4 exactly, Q8_0 and inputs rounded to 11 bits. The next block is under way while one is multiplied.
//! Numbers past 65,504 do not fit; `--exact` takes [`gemm`](super::gemm).
//!
//! Ladder (H100, SPIR-V, gpt-oss-20b's shape, a prompt of 512; gate and up of a layer, down):
//! 1. [`gemm`](super::gemm)'s f32 tiles: 3.6 ms, 1.9 ms.
//! 2. fragments, 4 planes a cube: 0.84 ms, 0.41 ms.
//! 3. two blocks in shared memory by turns, one barrier a block: a third slower. Taken back.
//! 4. fragments loaded from words, 16 bytes at a time, with 3.: 1.5 ms. Taken back.
//! 5. tiles of 128 rows, 8 planes: 0.97 ms. An expert has 64 rows on average. Taken back.
//! 6. inputs kept as 16-bit floats in memory too: 0.79 ms, 0.39 ms, for a second kind of every buffer. Left out.
//! 7. here: MXFP4 unpacked in pairs of 16-bit floats, with slots [grouped](super::group) in shares: 0.68 ms, 0.39 ms. Dense
//!    products are quicker with 2 planes a cube (0.17 ms for q, k and v) than with 4 (0.18): more cubes.

use cubecl::cmma::{MatrixIdent, MatrixLayout};
use cubecl::prelude::*;
use half::f16;

use super::codes::{Packing, load_scales, packed_scale, packed_values, scaled_pair};
use super::experts::Experts;
use super::fragments::{Planes, SIDE, Squares, piece};
use super::gemm::{Gemm, load_eight};
use super::group::{GroupedExperts, SlotTile, TILE, most_tiles};
use super::project::spread;
use super::tile::{put_four, put_gated_four, take_rows, take_slots};
use crate::gpu::device::Gpu;

/// Fragments of a tile's rows.
const ROUNDS: u32 = TILE / SIDE;
/// Vectors of a row in shared memory: a block's eight and two more, so that a fragment's rows lie in different banks.
const STRIDE: u32 = 10;
/// Vectors of four sums of a plane's 16 rows of 16 low and 16 high outputs.
const FOURS: u32 = SIDE * FOURS_A_ROW;
const FOURS_A_ROW: u32 = 2 * SIDE / 4;

/// A tile and how units share it out: each plane has 16 low and 16 high outputs.
impl Planes {
    /// Outputs of a tile's half.
    const fn half(self) -> u32 {
        SIDE * self.count
    }

    /// Vectors of a tile in shared memory: rows of inputs, then of low and of high outputs.
    const fn vectors(self) -> u32 {
        (TILE + 2 * self.half()) * STRIDE
    }

    /// How many times eight columns of inputs a unit reads of a block.
    const fn eights_a_unit(self) -> u32 {
        (TILE * 4).div_ceil(self.units())
    }

    /// Outputs of which a unit unpacks eight columns.
    const fn outputs_a_unit(self) -> u32 {
        2 * self.half() * 4 / self.units()
    }
}

impl Gemm<'_> {
    /// As [`Gemm::launch`], on matrix units.
    pub fn launch_fragments(&self, gpu: &Gpu, planes: Planes) {
        match planes.fragments {
            true => self.launch_in::<f16>(gpu, planes),
            false => self.launch_in::<f32>(gpu, planes),
        }
    }

    fn launch_in<T: Float>(&self, gpu: &Gpu, planes: Planes) {
        for part in &self.matrix.parts {
            let (y, z) = spread((part.rows as u32).div_ceil(2 * planes.half()));
            // SAFETY: rows, inputs and blocks are bounded in the kernel by what the buffers hold.
            unsafe {
                dense::launch_unchecked::<T>(
                    &gpu.client,
                    CubeCount::Static((self.inputs as u32).div_ceil(TILE), y, z),
                    CubeDim::new_1d(planes.units()),
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
                    planes,
                    self.bias.is_some(),
                    self.add,
                );
            }
        }
    }
}

impl GroupedExperts<'_> {
    /// As [`GroupedExperts::launch_gate_up`], on matrix units.
    pub fn launch_fragments_gate_up(&self, gpu: &Gpu, planes: Planes) {
        let experts = [self.gate, self.up];
        match planes.fragments {
            true => self.launch_in::<f16>(gpu, planes, experts, true),
            false => self.launch_in::<f32>(gpu, planes, experts, true),
        }
    }

    /// As [`GroupedExperts::launch_down`], on matrix units.
    pub fn launch_fragments_down(&self, gpu: &Gpu, planes: Planes) {
        let experts = [self.down; 2];
        match planes.fragments {
            true => self.launch_in::<f16>(gpu, planes, experts, false),
            false => self.launch_in::<f32>(gpu, planes, experts, false),
        }
    }

    fn launch_in<T: Float>(&self, gpu: &Gpu, planes: Planes, [low, high]: [&Experts; 2], gated: bool) {
        let weight = &low.weight;
        let (x, out) = if gated { (self.x, self.activations) } else { (self.activations, self.out) };
        let outputs = if gated { planes.half() } else { 2 * planes.half() };
        let tiles = most_tiles(self.inputs * self.chosen_per_row, weight.parts[0].rows / weight.stride(), TILE);
        // SAFETY: a tile names slots and experts that exist; rows are bounded in the kernel.
        unsafe {
            grouped::launch_unchecked::<T>(
                &gpu.client,
                CubeCount::Static((weight.rows as u32).div_ceil(outputs), tiles as u32, 1),
                CubeDim::new_1d(planes.units()),
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
                if gated { self.chosen_per_row as u32 } else { 1 },
                Packing::new(gpu, weight.format),
                Packing::new(gpu, high.weight.format),
                planes,
                gated,
            );
        }
    }
}

#[cube(launch_unchecked)]
fn dense<T: Float>(
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
    #[comptime] planes: Planes,
    #[comptime] biased: bool,
    #[comptime] add: bool,
) {
    let mut sources = Shared::<[u32]>::new_slice(comptime![TILE as usize]);
    let low_row = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * comptime![2 * planes.half()];
    let high_row = low_row + comptime![planes.half()];
    let first = CUBE_POS_X * TILE;
    let count = min(inputs - first, TILE);
    take_rows(&mut sources, first, inputs, TILE);
    if low_row < rows {
        let mut sums = Squares::zeros(comptime![2 * ROUNDS], planes);
        let mut tile = Shared::<[Vector<T, Const<4>>]>::new_slice(comptime![planes.vectors() as usize]);
        let mut stage = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(planes.count * FOURS) as usize]);
        let low = Operand::new(codes, scales, low_row);
        let high = Operand::new(codes, scales, high_row);
        products::<T>(
            x,
            &sources,
            count,
            &low,
            &high,
            rows - 1,
            blocks,
            &mut tile,
            &mut sums,
            packing,
            packing,
            planes,
        );
        #[unroll]
        for round in 0..ROUNDS {
            if round * SIDE < count {
                show(&sums, &mut stage, round, planes);
                let mut place = UNIT_POS % planes.width;
                while place < FOURS {
                    let member = round * SIDE + place / FOURS_A_ROW;
                    let output = place % FOURS_A_ROW * 4;
                    let column = select(output < SIDE, low_row, high_row - SIDE) + plane_outputs(planes) + output;
                    let four = shown(&stage, place, planes);
                    if member < count {
                        let start = (first + member) * out_width + first_row;
                        put_four(out, start, four, bias, first_row, column, rows, biased, add);
                    }
                    place += planes.width;
                }
                sync_cube();
            }
        }
    }
}

/// A tile of slots that chose one expert. Gated, the low half of its outputs is gate's, the high half up's, and their SwiGLU is
/// written; otherwise both halves are of one matrix.
#[cube(launch_unchecked)]
fn grouped<T: Float>(
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
    #[comptime] planes: Planes,
    #[comptime] gated: bool,
) {
    let mut sources = Shared::<[u32]>::new_slice(comptime![TILE as usize]);
    let SlotTile { expert, first, count } = SlotTile::read(tiles, CUBE_POS_Y);
    if count > 0 {
        take_slots(&mut sources, order, first, count, slots_per_input, TILE);
        let low_row = CUBE_POS_X * comptime![if gated { planes.half() } else { 2 * planes.half() }];
        let high_row = low_row + comptime![if gated { 0 } else { planes.half() }];
        let start = expert * stride;
        let mut sums = Squares::zeros(comptime![2 * ROUNDS], planes);
        let mut tile = Shared::<[Vector<T, Const<4>>]>::new_slice(comptime![planes.vectors() as usize]);
        let mut stage = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime![(planes.count * FOURS) as usize]);
        let low = Operand::new(low_codes, low_scales, start + low_row);
        let high = Operand::new(high_codes, high_scales, start + high_row);
        let last = start + rows - 1;
        products::<T>(
            x,
            &sources,
            count,
            &low,
            &high,
            last,
            blocks,
            &mut tile,
            &mut sums,
            low_packing,
            high_packing,
            planes,
        );
        #[unroll]
        for round in 0..ROUNDS {
            if round * SIDE < count {
                show(&sums, &mut stage, round, planes);
                let mut place = UNIT_POS % planes.width;
                while place < comptime![FOURS / 2] {
                    let member = round * SIDE + place / comptime![FOURS_A_ROW / 2];
                    let output = place % comptime![FOURS_A_ROW / 2];
                    let at = place / comptime![FOURS_A_ROW / 2] * FOURS_A_ROW + output;
                    let low = shown(&stage, at, planes);
                    let high = shown(&stage, at + comptime![FOURS_A_ROW / 2], planes);
                    if member < count {
                        let (start, biases) = (order[(first + member) as usize] * rows, expert * rows);
                        let column = plane_outputs(planes) + output * 4;
                        if comptime![gated] {
                            put_gated_four(out, start, low, high, low_bias, high_bias, biases, low_row + column, rows);
                        } else {
                            put_four(out, start, low, low_bias, biases, low_row + column, rows, true, false);
                            put_four(out, start, high, high_bias, biases, high_row + column, rows, true, false);
                        }
                    }
                    place += planes.width;
                }
                sync_cube();
            }
        }
    }
}

/// The first of this plane's outputs in either half of a tile.
#[cube]
fn plane_outputs(#[comptime] planes: Planes) -> u32 {
    UNIT_POS / planes.width * SIDE
}

/// This plane's sums `4 place` to `4 place + 3` of those shown.
#[cube]
fn shown(stage: &Shared<[Vector<f32, Const<4>>]>, place: u32, #[comptime] planes: Planes) -> Vector<f32, Const<4>> {
    stage[(UNIT_POS / planes.width * FOURS + place) as usize]
}

/// Puts this plane's sums of rows `16 round` to `16 round + 15` where its lanes see them all.
#[cube]
fn show(
    sums: &Squares,
    stage: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] round: u32,
    #[comptime] planes: Planes,
) {
    #[unroll]
    for half in 0..2u32 {
        let first = UNIT_POS / planes.width * FOURS + comptime![half * SIDE / 4];
        sums.show(comptime![2 * round + half], stage, first, FOURS_A_ROW, planes);
    }
    sync_cube();
}

/// Adds the products of a block's 32 columns, for the first `rounds` times 16 rows of a tile.
#[cube]
fn multiply<T: Float>(
    tile: &Shared<[Vector<T, Const<4>>]>,
    sums: &mut Squares,
    #[comptime] rounds: u32,
    #[comptime] planes: Planes,
) {
    let (by_rows, by_columns) = (MatrixLayout::RowMajor, MatrixLayout::ColMajor);
    let low_row = TILE + plane_outputs(planes);
    #[unroll]
    for step in 0..2u32 {
        let first = low_row * STRIDE + comptime![step * SIDE / 4];
        let low = piece::<T>(tile, first, STRIDE, MatrixIdent::B, by_columns, planes);
        let first = first + comptime![planes.half() * STRIDE];
        let high = piece::<T>(tile, first, STRIDE, MatrixIdent::B, by_columns, planes);
        #[unroll]
        for round in 0..rounds {
            let first = comptime![round * SIDE * STRIDE + step * SIDE / 4].runtime();
            let rows = piece::<T>(tile, first, STRIDE, MatrixIdent::A, by_rows, planes);
            sums.add::<T>(comptime![2 * round], tile, &rows, STRIDE, tile, &low, STRIDE, true, planes);
            sums.add::<T>(comptime![2 * round + 1], tile, &rows, STRIDE, tile, &high, STRIDE, true, planes);
        }
    }
}

/// A packed matrix from one of its rows on.
#[derive(CubeType)]
struct Operand<'a> {
    codes: &'a [u32],
    scales: &'a [u32],
    row: u32,
}

#[cube]
impl<'a> Operand<'a> {
    fn new(codes: &'a [u32], scales: &'a [u32], row: u32) -> Operand<'a> {
        Operand::<'a> { codes, scales, row }
    }
}

/// Adds the products of rows `sources` of `x`, of which the first `count` matter, with a tile of outputs: low ones from `low.row`
/// on, high ones from `high.row` on. Outputs past `last_row` are of no row.
#[cube]
#[allow(clippy::too_many_arguments)]
fn products<T: Float>(
    x: &[Vector<f32, Const<4>>],
    sources: &Shared<[u32]>,
    count: u32,
    low: &Operand<'_>,
    high: &Operand<'_>,
    last_row: u32,
    blocks: u32,
    tile: &mut Shared<[Vector<T, Const<4>>]>,
    sums: &mut Squares,
    #[comptime] low_packing: Packing,
    #[comptime] high_packing: Packing,
    #[comptime] planes: Planes,
) {
    let mut starts = Array::<u32>::new(comptime![planes.eights_a_unit() as usize]);
    #[unroll]
    for i in 0..planes.eights_a_unit() {
        let place = UNIT_POS + comptime![i * planes.units()];
        starts[comptime![i as usize]] = sources[(place / 4 % TILE) as usize] * blocks * 8 + place % 4 * 2;
    }
    let mut fours = Array::<Vector<f32, Const<4>>>::new(comptime![(2 * planes.eights_a_unit()) as usize]);
    let mut words = Array::<Vector<u32, Const<4>>>::new(comptime![(2 * planes.outputs_a_unit()) as usize]);
    let mut factors = Array::<u32>::new(comptime![planes.outputs_a_unit() as usize]);
    read_inputs(x, &starts, 0u32, &mut fours, planes);
    read_weights(low, high, last_row, 0u32, blocks, &mut words, &mut factors, low_packing, high_packing, planes);
    for block in 0..blocks {
        put_inputs::<T>(&fours, tile, planes);
        put_weights::<T>(&words, &factors, tile, low_packing, high_packing, planes);
        sync_cube();
        // The next block is under way while this one is multiplied.
        let next = min(block + 1, blocks - 1);
        read_inputs(x, &starts, next, &mut fours, planes);
        read_weights(low, high, last_row, next, blocks, &mut words, &mut factors, low_packing, high_packing, planes);
        if count > comptime![TILE / 2] {
            multiply::<T>(&*tile, sums, ROUNDS, planes);
        } else {
            multiply::<T>(&*tile, sums, comptime![ROUNDS / 2], planes);
        }
        sync_cube();
    }
}

/// Reads this unit's eights of a block of the tile's rows.
#[cube]
fn read_inputs(
    x: &[Vector<f32, Const<4>>],
    starts: &Array<u32>,
    block: u32,
    fours: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] planes: Planes,
) {
    #[unroll]
    for i in 0..planes.eights_a_unit() {
        let at = starts[comptime![i as usize]] + block * 8;
        fours[comptime![(2 * i) as usize]] = x[at as usize];
        fours[comptime![(2 * i + 1) as usize]] = x[(at + 1) as usize];
    }
}

/// Puts what [`read_inputs`] read where all planes see it.
#[cube]
fn put_inputs<T: Float>(
    fours: &Array<Vector<f32, Const<4>>>,
    tile: &mut Shared<[Vector<T, Const<4>>]>,
    #[comptime] planes: Planes,
) {
    #[unroll]
    for i in 0..planes.eights_a_unit() {
        let place = UNIT_POS + comptime![i * planes.units()];
        if comptime![(TILE * 4).is_multiple_of(planes.units())] || place < comptime![TILE * 4] {
            let first = Vector::<T, Const<4>>::cast_from(fours[comptime![(2 * i) as usize]]);
            let second = Vector::<T, Const<4>>::cast_from(fours[comptime![(2 * i + 1) as usize]]);
            put_eight(tile, place / 4, place % 4, first, second);
        }
    }
}

/// Puts eight columns of a tile's row in their order there: 0 4 1 5 2 6 3 7, as pairs of codes come out of a word of MXFP4.
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

/// Reads the codes and scales of this unit's outputs: eight columns of a block.
#[cube]
#[allow(clippy::too_many_arguments)]
fn read_weights(
    low: &Operand<'_>,
    high: &Operand<'_>,
    last_row: u32,
    block: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    factors: &mut Array<u32>,
    #[comptime] low_packing: Packing,
    #[comptime] high_packing: Packing,
    #[comptime] planes: Planes,
) {
    let output = UNIT_POS / 4 * planes.outputs_a_unit();
    if output < planes.half() {
        read_outputs(low, output, last_row, block, blocks, words, factors, low_packing, planes);
    } else {
        read_outputs(high, output - planes.half(), last_row, block, blocks, words, factors, high_packing, planes);
    }
}

#[cube]
#[allow(clippy::too_many_arguments)]
fn read_outputs(
    operand: &Operand<'_>,
    output: u32,
    last_row: u32,
    block: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    factors: &mut Array<u32>,
    #[comptime] packing: Packing,
    #[comptime] planes: Planes,
) {
    let rows = comptime![planes.outputs_a_unit()];
    let row = min(operand.row + output, last_row / rows * rows);
    #[unroll]
    for r in 0..rows {
        load_eight(operand.codes, row + r, UNIT_POS % 4, block, blocks, words, comptime![2 * r], packing.format);
    }
    load_scales(operand.scales, row, block, blocks, factors, 0u32, rows, packing.format);
}

/// Unpacks what [`read_weights`] read where all planes see it.
#[cube]
fn put_weights<T: Float>(
    words: &Array<Vector<u32, Const<4>>>,
    factors: &Array<u32>,
    tile: &mut Shared<[Vector<T, Const<4>>]>,
    #[comptime] low_packing: Packing,
    #[comptime] high_packing: Packing,
    #[comptime] planes: Planes,
) {
    if comptime![low_packing == high_packing] {
        put_outputs(words, factors, tile, low_packing, planes);
    } else {
        if UNIT_POS / 4 * planes.outputs_a_unit() < planes.half() {
            put_outputs(words, factors, tile, low_packing, planes);
        } else {
            put_outputs(words, factors, tile, high_packing, planes);
        }
    }
}

#[cube]
fn put_outputs<T: Float>(
    words: &Array<Vector<u32, Const<4>>>,
    factors: &Array<u32>,
    tile: &mut Shared<[Vector<T, Const<4>>]>,
    #[comptime] packing: Packing,
    #[comptime] planes: Planes,
) {
    let row = TILE + UNIT_POS / 4 * planes.outputs_a_unit();
    #[unroll]
    for r in 0..planes.outputs_a_unit() {
        let factor = factors[comptime![r as usize]];
        if comptime![planes.fragments && packing.has_pairs()] {
            let codes = words[comptime![(2 * r) as usize]].extract(0usize);
            #[unroll]
            for half in 0..2u32 {
                let mut four = Vector::<T, Const<4>>::empty();
                #[unroll]
                for i in 0..2u32 {
                    let pair = Vector::<T, Const<2>>::cast_from(scaled_pair(codes, factor, comptime![2 * half + i]));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::testing::{F16, check_dense, check_grouped, gpu};

    /// [`F16`] for experts, whose terms' size is taken at its most.
    const F16_EXPERTS: f64 = 3e-5;

    /// What this adapter has: fragments, or small cubes without.
    fn planes() -> Planes {
        gpu().planes.unwrap_or(Planes::PLAYED)
    }

    #[test]
    fn dense_products_equal_f64() {
        check_dense(F16, &[(64, 128, 64), (1, 1, 32), (70, 131, 96), (3, 67, 2880), (130, 5, 32)], |gpu, dense| {
            dense.launch_fragments(gpu, planes());
        });
    }

    #[test]
    fn grouped_experts_equal_single_ones() {
        let shapes = [(80, 3, 96, 64, 2), (5, 8, 32, 96, 4), (1, 2, 32, 32, 1), (33, 40, 160, 32, 3)];
        check_grouped(F16_EXPERTS, &shapes, TILE, |gpu, experts| {
            experts.launch_fragments_gate_up(gpu, planes());
            experts.launch_fragments_down(gpu, planes());
        });
    }
}
