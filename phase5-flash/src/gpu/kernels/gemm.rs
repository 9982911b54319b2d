//! Products of many rows at once: weights are unpacked into shared memory, a block of 32 columns at a time, and used for 64
//! rows. Dense projections, and experts over rows that [`group`](super::group) has put side by side.
//!
//! Ladder (H100, gpt-oss-20b's gate and up, f32):
//! 1. row by row, as decoding does: 5.4 TFLOP/s at 64 rows.
//! 2. here: tiles of 64 rows by 128 outputs, 256 units with 4 × 8 sums each, in arrays: 12.9 TFLOP/s at 512 rows.
//! 3. the same sums in variables rather than arrays: 12.8 TFLOP/s. No gain; taken back.

use cubecl::prelude::*;
use phase1_loading::Format;

use super::codes::{Codes, block_scale, block_values, load_codes};
use super::experts::{Experts, swiglu};
use super::group::{TILE, TILE_WORDS, most_tiles};
use super::project::spread;
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::layout::{Matrix, vectors};

/// Units of a cube: 16 by 16, each with four rows and twice four outputs.
const UNITS: u32 = 256;
/// Outputs of one half of a tile.
const HALF: u32 = 64;

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
                    part.codes.arg4(),
                    part.scales.arg(),
                    self.bias.unwrap_or(self.x).arg(),
                    self.out.arg(),
                    self.inputs as u32,
                    part.rows as u32,
                    part.first_row as u32,
                    self.matrix.rows as u32,
                    self.matrix.blocks() as u32,
                    self.matrix.format,
                    self.bias.is_some(),
                    self.add,
                );
            }
        }
    }
}

/// Gate, up and down projections of grouped rows.
pub(crate) struct GroupedExperts<'a> {
    pub gate: &'a Experts,
    pub up: &'a Experts,
    pub down: &'a Experts,
    /// `[inputs, hidden]`
    pub x: &'a Buffer,
    /// Slots by expert, and the tiles over them.
    pub order: &'a Buffer,
    pub tiles: &'a Buffer,
    /// `[inputs · chosen, width]`
    pub activations: &'a Buffer,
    /// `[inputs · chosen, hidden]`: each slot's product, with its bias and not yet weighted.
    pub out: &'a Buffer,
    pub chosen_per_row: usize,
    pub inputs: usize,
}

impl GroupedExperts<'_> {
    fn tiles(&self) -> u32 {
        most_tiles(self.inputs * self.chosen_per_row, self.gate.weight.parts[0].rows / self.gate.weight.stride()) as u32
    }

    pub fn launch_gate_up(&self, gpu: &Gpu) {
        let (gate, up) = (&self.gate.weight, &self.up.weight);
        // SAFETY: a tile names slots and experts that exist; rows are bounded in the kernel.
        unsafe {
            gate_up::launch_unchecked(
                &gpu.client,
                CubeCount::Static((gate.rows as u32).div_ceil(HALF), self.tiles(), 1),
                CubeDim::new_1d(UNITS),
                self.x.arg4(),
                gate.parts[0].codes.arg4(),
                gate.parts[0].scales.arg(),
                self.gate.bias.arg(),
                up.parts[0].codes.arg4(),
                up.parts[0].scales.arg(),
                self.up.bias.arg(),
                self.order.arg(),
                self.tiles.arg(),
                self.activations.arg(),
                gate.rows as u32,
                gate.stride() as u32,
                gate.blocks() as u32,
                self.chosen_per_row as u32,
                gate.format,
                up.format,
            );
        }
    }

    pub fn launch_down(&self, gpu: &Gpu) {
        let down = &self.down.weight;
        // SAFETY: as for gate and up.
        unsafe {
            down_slots::launch_unchecked(
                &gpu.client,
                CubeCount::Static((down.rows as u32).div_ceil(2 * HALF), self.tiles(), 1),
                CubeDim::new_1d(UNITS),
                self.activations.arg4(),
                down.parts[0].codes.arg4(),
                down.parts[0].scales.arg(),
                self.down.bias.arg(),
                self.order.arg(),
                self.tiles.arg(),
                self.out.arg(),
                down.rows as u32,
                down.stride() as u32,
                down.blocks() as u32,
                down.format,
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
    #[comptime] format: Format,
    #[comptime] biased: bool,
    #[comptime] add: bool,
) {
    let mut sources = Shared::<[u32]>::new_slice(comptime![TILE as usize]);
    let row = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * comptime![2 * HALF];
    let first = CUBE_POS_X * TILE;
    if UNIT_POS < TILE {
        sources[UNIT_POS as usize] = min(first + UNIT_POS, inputs - 1);
    }
    sync_cube();
    let mut low = Array::<Vector<f32, Const<4>>>::new(4usize);
    let mut high = Array::<Vector<f32, Const<4>>>::new(4usize);
    if row < rows {
        products(
            x,
            &sources,
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
            format,
            format,
        );
        #[unroll]
        for i in 0..4u32 {
            let input = first + UNIT_POS / 16 * 4 + i;
            if input < inputs {
                #[unroll]
                for half in 0..2u32 {
                    #[unroll]
                    for j in 0..4u32 {
                        let column = row + half * HALF + UNIT_POS % 16 * 4 + j;
                        if column < rows {
                            let column = first_row + column;
                            let at = (input * out_width + column) as usize;
                            let sums = if comptime![half == 0] {
                                low[comptime![i as usize]]
                            } else {
                                high[comptime![i as usize]]
                            };
                            let mut y = sums.extract(comptime![j as usize]);
                            if comptime![biased] {
                                y += bias[column as usize];
                            }
                            if comptime![add] {
                                y += out[at];
                            }
                            out[at] = y;
                        }
                    }
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
fn gate_up(
    x: &[Vector<f32, Const<4>>],
    gate_codes: &[Vector<u32, Const<4>>],
    gate_scales: &[u32],
    gate_bias: &[f32],
    up_codes: &[Vector<u32, Const<4>>],
    up_scales: &[u32],
    up_bias: &[f32],
    order: &[u32],
    tiles: &[u32],
    out: &mut [f32],
    rows: u32,
    stride: u32,
    blocks: u32,
    chosen_per_row: u32,
    #[comptime] gate_format: Format,
    #[comptime] up_format: Format,
) {
    let mut sources = Shared::<[u32]>::new_slice(comptime![TILE as usize]);
    let expert = tiles[(CUBE_POS_Y * TILE_WORDS) as usize];
    let first = tiles[(CUBE_POS_Y * TILE_WORDS + 1) as usize];
    let count = tiles[(CUBE_POS_Y * TILE_WORDS + 2) as usize];
    if count > 0 {
        if UNIT_POS < TILE {
            sources[UNIT_POS as usize] = order[(first + min(UNIT_POS, count - 1)) as usize] / chosen_per_row;
        }
        sync_cube();
        let row = CUBE_POS_X * HALF;
        let start = expert * stride;
        let mut gates = Array::<Vector<f32, Const<4>>>::new(4usize);
        let mut ups = Array::<Vector<f32, Const<4>>>::new(4usize);
        products(
            x,
            &sources,
            gate_codes,
            gate_scales,
            start + row,
            up_codes,
            up_scales,
            start + row,
            start + rows - 1,
            blocks,
            &mut gates,
            &mut ups,
            gate_format,
            up_format,
        );
        #[unroll]
        for i in 0..4u32 {
            let member = UNIT_POS / 16 * 4 + i;
            if member < count {
                let slot = order[(first + member) as usize];
                #[unroll]
                for j in 0..4u32 {
                    let row = row + UNIT_POS % 16 * 4 + j;
                    if row < rows {
                        let bias = (expert * rows + row) as usize;
                        let gate = gates[comptime![i as usize]].extract(comptime![j as usize]) + gate_bias[bias];
                        let up = ups[comptime![i as usize]].extract(comptime![j as usize]) + up_bias[bias];
                        out[(slot * rows + row) as usize] = swiglu(gate, up);
                    }
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
fn down_slots(
    x: &[Vector<f32, Const<4>>],
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    bias: &[f32],
    order: &[u32],
    tiles: &[u32],
    out: &mut [f32],
    rows: u32,
    stride: u32,
    blocks: u32,
    #[comptime] format: Format,
) {
    let mut sources = Shared::<[u32]>::new_slice(comptime![TILE as usize]);
    let expert = tiles[(CUBE_POS_Y * TILE_WORDS) as usize];
    let first = tiles[(CUBE_POS_Y * TILE_WORDS + 1) as usize];
    let count = tiles[(CUBE_POS_Y * TILE_WORDS + 2) as usize];
    if count > 0 {
        if UNIT_POS < TILE {
            sources[UNIT_POS as usize] = order[(first + min(UNIT_POS, count - 1)) as usize];
        }
        sync_cube();
        let row = CUBE_POS_X * comptime![2 * HALF];
        let start = expert * stride;
        let mut low = Array::<Vector<f32, Const<4>>>::new(4usize);
        let mut high = Array::<Vector<f32, Const<4>>>::new(4usize);
        products(
            x,
            &sources,
            codes,
            scales,
            start + row,
            codes,
            scales,
            start + row + HALF,
            start + rows - 1,
            blocks,
            &mut low,
            &mut high,
            format,
            format,
        );
        #[unroll]
        for i in 0..4u32 {
            let member = UNIT_POS / 16 * 4 + i;
            if member < count {
                let slot = sources[member as usize];
                #[unroll]
                for half in 0..2u32 {
                    #[unroll]
                    for j in 0..4u32 {
                        let row = row + half * HALF + UNIT_POS % 16 * 4 + j;
                        if row < rows {
                            let sums = if comptime![half == 0] {
                                low[comptime![i as usize]]
                            } else {
                                high[comptime![i as usize]]
                            };
                            let y = sums.extract(comptime![j as usize]) + bias[(expert * rows + row) as usize];
                            out[(slot * rows + row) as usize] = y;
                        }
                    }
                }
            }
        }
    }
}

/// Rows `sources` of `x` times 64 rows from `low_row` on of one matrix and 64 from `high_row` on of another, or the same: unit u
/// ends with the sums of rows 4 (u / 16) to 4 (u / 16) + 3 and outputs 4 (u mod 16) on of either half. Outputs past `last_row` are
/// those of the last row.
#[cube]
#[allow(clippy::too_many_arguments)]
fn products(
    x: &[Vector<f32, Const<4>>],
    sources: &Shared<[u32]>,
    low_codes: &[Vector<u32, Const<4>>],
    low_scales: &[u32],
    low_row: u32,
    high_codes: &[Vector<u32, Const<4>>],
    high_scales: &[u32],
    high_row: u32,
    last_row: u32,
    blocks: u32,
    low: &mut Array<Vector<f32, Const<4>>>,
    high: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] low_format: Format,
    #[comptime] high_format: Format,
) {
    // `[32 columns, 64 rows]` and twice `[32 columns, 64 outputs]`.
    let mut inputs = Shared::<[Vector<f32, Const<4>>]>::new_slice(512usize);
    let mut low_weights = Shared::<[Vector<f32, Const<4>>]>::new_slice(512usize);
    let mut high_weights = Shared::<[Vector<f32, Const<4>>]>::new_slice(512usize);
    #[unroll]
    for i in 0..4usize {
        low[i] = Vector::<f32, Const<4>>::new(0.0f32);
        high[i] = Vector::<f32, Const<4>>::new(0.0f32);
    }
    let input_row = UNIT_POS / 16;
    let output_row = UNIT_POS % 16;
    let mut block = 0u32;
    while block < blocks {
        // Each unit turns a square of four rows by four columns of the inputs; half the units have one.
        if UNIT_POS < 128 {
            let rows = UNIT_POS % 16;
            let columns = UNIT_POS / 16;
            let mut square = Array::<Vector<f32, Const<4>>>::new(4usize);
            #[unroll]
            for i in 0..4u32 {
                let source = sources[(rows * 4 + i) as usize];
                square[comptime![i as usize]] = x[((source * blocks + block) * 8 + columns) as usize];
            }
            #[unroll]
            for j in 0..4u32 {
                let mut turned = Vector::<f32, Const<4>>::empty();
                #[unroll]
                for i in 0..4u32 {
                    turned.insert(comptime![i as usize], square[comptime![i as usize]].extract(comptime![j as usize]));
                }
                inputs[((columns * 4 + j) * 16 + rows) as usize] = turned;
            }
        }
        if UNIT_POS < 128 {
            unpack(low_codes, low_scales, low_row, last_row, block, blocks, UNIT_POS, &mut low_weights, low_format);
        } else {
            unpack(
                high_codes,
                high_scales,
                high_row,
                last_row,
                block,
                blocks,
                UNIT_POS - 128,
                &mut high_weights,
                high_format,
            );
        }
        sync_cube();

        for four in 0..8u32 {
            #[unroll]
            for k in 0..4u32 {
                let at = (four * 4 + k) * 16;
                let a = inputs[(at + input_row) as usize];
                let b = low_weights[(at + output_row) as usize];
                let c = high_weights[(at + output_row) as usize];
                #[unroll]
                for i in 0..4u32 {
                    let factor = Vector::<f32, Const<4>>::new(a.extract(comptime![i as usize]));
                    low[comptime![i as usize]] = fma(factor, b, low[comptime![i as usize]]);
                    high[comptime![i as usize]] = fma(factor, c, high[comptime![i as usize]]);
                }
            }
        }
        sync_cube();
        block += 1;
    }
}

/// Unpacks one block of 64 rows from `row` on, turned: 128 units, each four rows by eight columns.
#[cube]
#[allow(clippy::too_many_arguments)]
fn unpack(
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    row: u32,
    last_row: u32,
    block: u32,
    blocks: u32,
    unit: u32,
    weights: &mut Shared<[Vector<f32, Const<4>>]>,
    #[comptime] format: Format,
) {
    let vectors = comptime![vectors(format) as u32];
    let rows = unit % 16;
    let part = unit / 32;
    // Two units share four rows: one has the first 16 columns' halves, and so on.
    let odd = (unit / 16) % 2;
    let mut words = Array::<Vector<u32, Const<4>>>::new(comptime![(4 * vectors) as usize]);
    #[unroll]
    for i in 0..4u32 {
        load_codes(
            codes,
            min(row + rows * 4 + i, last_row),
            block,
            blocks,
            &mut words,
            comptime![i * vectors],
            vectors,
        );
    }
    let mut factors = Array::<f32>::new(4usize);
    #[unroll]
    for i in 0..4u32 {
        factors[comptime![i as usize]] = block_scale(scales, min(row + rows * 4 + i, last_row), block, blocks, format);
    }
    #[unroll]
    for quarter in 0..8u32 {
        if part * 2 + odd == quarter {
            let mut square = Array::<Vector<f32, Const<4>>>::new(4usize);
            #[unroll]
            for i in 0..4u32 {
                square[comptime![i as usize]] =
                    block_values(&words, comptime![i * vectors], quarter, format, Codes::Less2)
                        * Vector::<f32, Const<4>>::new(factors[comptime![i as usize]]);
            }
            #[unroll]
            for j in 0..4u32 {
                let mut turned = Vector::<f32, Const<4>>::empty();
                #[unroll]
                for i in 0..4u32 {
                    turned.insert(comptime![i as usize], square[comptime![i as usize]].extract(comptime![j as usize]));
                }
                weights[((quarter * 4 + j) * 16 + rows) as usize] = turned;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::experts::{Down, GateUp};
    use crate::gpu::kernels::group::{add_up, group};
    use crate::gpu::kernels::project::Project;
    use crate::gpu::kernels::testing::{Random, assert_close, gpu, poisoned};
    use phase1_loading::HostTensor;

    fn matrix(gpu: &Gpu, random: &mut Random, format: Format, shape: Vec<usize>) -> (Vec<f32>, Matrix) {
        let values = random.values(shape.iter().product(), 1.0);
        let tensor = HostTensor::packed_rows(format, shape, format.encode(&values).into());
        (tensor.to_f32(), Matrix::upload(gpu, "w", &[&tensor]).expect("uploads"))
    }

    #[test]
    fn dense_products_equal_f64() {
        let gpu = gpu();
        let mut random = Random::fresh();
        for format in Format::WRITTEN {
            for (inputs, rows, columns) in [(64, 128, 64), (1, 1, 32), (70, 131, 96), (3, 67, 2880), (130, 5, 32)] {
                for (biased, add) in [(false, false), (true, true)] {
                    let context = format!("{format:?} {inputs} {rows} {columns} {biased} {random:?}");
                    let (weights, matrix) = matrix(&gpu, &mut random, format, vec![rows, columns]);
                    let x = random.values(inputs * columns, 1.0);
                    let (bias, before) = (random.values(rows, 1.0), random.values(inputs * rows, 1.0));
                    let out = if add { gpu.upload_f32(&before) } else { poisoned(&gpu, inputs * rows) };
                    let bias_buffer = gpu.upload_f32(&bias);
                    Gemm {
                        matrix: &matrix,
                        x: &gpu.upload_f32(&x),
                        bias: biased.then_some(&bias_buffer),
                        out: &out,
                        add,
                        inputs,
                    }
                    .launch(&gpu);
                    let found = gpu.read_f32(&out).expect("reads");
                    for input in 0..inputs {
                        for row in 0..rows {
                            let terms = weights[row * columns..][..columns].iter().zip(&x[input * columns..]);
                            let start = if biased { f64::from(bias[row] + before[input * rows + row]) } else { 0.0 };
                            let (sum, size) = terms.fold((start, 2.0), |(sum, size), (&w, &x)| {
                                let term = f64::from(w) * f64::from(x);
                                (sum + term, size + term.abs())
                            });
                            assert_close(found[input * rows + row], sum, size, &context);
                        }
                    }
                }
            }
        }
    }

    /// Grouped products against the mat-vec kernels, which are held to f64.
    #[test]
    fn grouped_experts_equal_single_ones() {
        let gpu = gpu();
        let mut random = Random::fresh();
        for (inputs, experts, width, hidden, chosen) in
            [(80, 3, 70, 64, 2), (5, 8, 32, 96, 4), (1, 2, 5, 32, 1), (33, 40, 160, 32, 3)]
        {
            // The width of one projection is the input of the next, in whole blocks.
            let width = usize::next_multiple_of(width, 32);
            let context = format!("{inputs} {experts} {width} {hidden} {chosen} {random:?}");
            let mut stack = |rows: usize, columns: usize| {
                let (_, weight) = matrix(&gpu, &mut random, Format::Mxfp4, vec![experts, rows, columns]);
                Experts { weight, bias: gpu.upload_f32(&random.values(experts * rows, 1.0)) }
            };
            let (gate, up, down) = (stack(width, hidden), stack(width, hidden), stack(hidden, width));
            let slots = inputs * chosen;
            // One expert takes most, some take none.
            // Most rows choose expert 0, so that its slots fill several tiles.
            let mut logits = random.values(inputs * experts, 1.0);
            logits.chunks_mut(experts).for_each(|row| row[0] += 3.0 * random.below(3) as f32);
            let logits = gpu.upload_f32(&logits);
            let [ids, weights] = [slots, slots].map(|len| poisoned(&gpu, len));
            let x = gpu.upload_f32(&random.values(inputs * hidden, 0.5));
            let before = random.values(inputs * hidden, 1.0);
            let (grouped, single) = (gpu.upload_f32(&before), gpu.upload_f32(&before));
            let [activations, singly, products] =
                [slots * width, slots * width, slots * hidden].map(|len| poisoned(&gpu, len));
            let order = gpu.upload(vec![u32::MAX; slots]);
            let tiles = gpu.upload(vec![u32::MAX; most_tiles(slots, experts) * TILE_WORDS as usize]);

            GateUp {
                gate: &gate,
                up: &up,
                x: &x,
                logits: &logits,
                experts,
                chosen: &ids,
                weights: &weights,
                chosen_per_row: chosen,
                out: &singly,
                inputs,
            }
            .launch(&gpu);
            group(&gpu, &ids, slots, experts, &order, &tiles);
            let all = GroupedExperts {
                gate: &gate,
                up: &up,
                down: &down,
                x: &x,
                order: &order,
                tiles: &tiles,
                activations: &activations,
                out: &products,
                chosen_per_row: chosen,
                inputs,
            };
            all.launch_gate_up(&gpu);
            all.launch_down(&gpu);
            add_up(&gpu, &products, &weights, &grouped, [inputs, chosen, hidden]);

            Down {
                down: &down,
                x: &singly,
                chosen: &ids,
                weights: &weights,
                chosen_per_row: chosen,
                out: &single,
                inputs,
            }
            .launch(&gpu);
            for (name, found, expected) in [("activations", &activations, &singly), ("sums", &grouped, &single)] {
                let (found, expected) = (gpu.read_f32(found).expect("reads"), gpu.read_f32(expected).expect("reads"));
                for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                    let size = 10.0 * width.max(hidden) as f64;
                    assert_close(found, f64::from(expected), size, &format!("{name} {i} {context}"));
                }
            }
        }
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
