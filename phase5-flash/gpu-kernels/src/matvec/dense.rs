//! `y = W · norm(x) + b`, optionally added to the previous `y`: the fused query, key and value projections, attention's output projection,
//! and the head.
//!
//! The lanes of a cube share the blocks of a row. They keep their inputs, read and normed once per cube, in registers while they iterate
//! over the cube's rows; the codes of the next rows are loaded while the current rows are multiplied.
//!
//! History (H100, gpt-oss-20b's shapes in Q8_0, one input; query, key and value inside a whole step, by timestamps):
//! 1. 4 rows of weights per cube, unrolled; each lane reads its block of the inputs itself: 808 GB/s.
//! 2. inputs through 13 kB of shared memory: 544 GB/s. Fewer cubes fit at once; reverted.
//! 3. codes read before the inputs: 668 GB/s, because the codes occupy registers while the inputs are read.
//! 4. 2 rows at a time in 4 steps: 861 GB/s (SPIR-V). The head: from 2,334 GB/s at first to 2,605.
//! 5. current version: multiplied in pairs of 16-bit floats. On an H200, where version 4 reaches 991 GB/s, and 2,985 in the head: 1,050 and
//!    3,494.
//!
//! Ten inputs (head; query, key and value in 24 layers; output projection in 24):
//! 1. each input separately, in parallel, so that one finds weights in the L2 cache that another has read: 1.57 ms, 1.70 ms, 1.31 ms.
//! 2. two inputs per lane with the same cubes: 1.40, 1.73, 1.27. This does not reduce the reads of inputs.
//! 3. current version: two inputs, and four times as many steps if there are enough rows; inputs in separate variables, because the
//!    compiler keeps only small arrays in registers: 1.02, 1.26, 0.76. With four or five inputs: 1.65, 1.39.

use cubecl::prelude::*;

use super::inputs::{load_inputs, prepare_inputs};
use super::plan::{MatvecChoice, MatvecPlan, RowTile};
use super::rows::{load_rows, multiply_cube_rows};
use crate::device::Buffer;
use crate::epilogue::{Epilogue, store_one};
use crate::gpu::Gpu;
use crate::norm::rms_factor;
use crate::packed::PackedPair;
use crate::product::Product;
use crate::reduce::{plane_sums, total};
use crate::vec4::sum4;

/// RMS norm applied to a product's input.
#[derive(Clone, Copy)]
pub struct InputNorm<'a> {
    /// `[columns]`
    pub weight: &'a Buffer,
    pub eps: f32,
}

impl Product<'_> {
    /// Launches the mat-vec kernel; with `norm`, the input is normed first.
    ///
    /// # Panics
    /// If a buffer is too short, `inputs` is 0, or the matrix is a stack.
    pub fn launch_matvec(&self, gpu: &Gpu, norm: Option<InputNorm<'_>>, choice: MatvecChoice) {
        let Product { matrix, x, bias, out, add, inputs } = *self;
        self.check();
        if let Some(norm) = norm {
            norm.weight.expect("the norm's weight", matrix.columns());
        }
        // Distributes the inputs over the cubes as evenly as possible.
        let groups = inputs.div_ceil(choice.inputs_per_read.max(1));
        let tile = RowTile::new(choice, matrix.storage(), matrix.rows() * groups, inputs);
        let plan = MatvecPlan { inputs: inputs.div_ceil(groups) as u32, ..MatvecPlan::new(gpu, matrix, tile) };
        let (norm_weight, eps) = norm.map_or((x, 0.0), |norm| (norm.weight, norm.eps));
        for part in matrix.parts() {
            let (y, z) = plan.cubes(part.rows);
            // SAFETY: lengths are checked; the kernel reads no row after the part's last, and writes only outputs of its rows.
            unsafe {
                project::launch_unchecked(
                    gpu.device.client(),
                    CubeCount::Static(groups as u32, y, z),
                    CubeDim::new_1d(plan.lanes),
                    x.arg4(),
                    part.codes.arg4(),
                    part.scales.arg(),
                    norm_weight.arg4(),
                    bias.unwrap_or(x).arg(),
                    out.arg(),
                    inputs as u32,
                    part.rows as u32,
                    part.first_row as u32,
                    matrix.rows() as u32,
                    eps,
                    plan,
                    norm.is_some(),
                    Epilogue { biased: bias.is_some(), add, gated: false },
                );
            }
        }
    }
}

#[cube(launch_unchecked)]
fn project(
    x: &[Vector<f32, Const<4>>],
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    norm: &[Vector<f32, Const<4>>],
    bias: &[f32],
    out: &mut [f32],
    inputs: u32,
    rows: u32,
    first_row: u32,
    out_width: u32,
    eps: f32,
    #[comptime] plan: MatvecPlan,
    #[comptime] normalize: bool,
    #[comptime] epilogue: Epilogue,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![(plan.planes * plan.cube_sums()) as usize]);
    let first = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * comptime![plan.tile.cube_rows()];
    let weights = PackedPair::one(codes, scales, rows - 1);
    // The first codes are loaded while the inputs are prepared.
    let mut held = Array::<Vector<u32, Const<4>>>::new(comptime![plan.vectors() as usize]);
    let mut scale_words = Array::<u32>::new(comptime![plan.rows() as usize]);
    load_rows(&weights, first, UNIT_POS, &mut held, &mut scale_words, plan);
    let mut loaded = Sequence::<Vector<f32, Const<4>>>::new();
    let first_input = CUBE_POS_X * plan.inputs;
    #[unroll]
    for q in 0..plan.inputs {
        let input = min(first_input + q, inputs - 1);
        load_inputs(x, input * plan.blocks, UNIT_POS, &mut loaded, plan);
    }
    let floats = if comptime![normalize] { normalized(norm, eps, &loaded, &mut shared, plan) } else { loaded };
    let held_inputs = prepare_inputs(floats, plan);

    let places = comptime![plan.cube_sums()];
    multiply_cube_rows(
        &weights,
        first,
        UNIT_POS,
        &mut held,
        &mut scale_words,
        &held_inputs,
        1.0f32,
        &mut shared,
        0u32,
        places,
        plan,
    );
    sync_cube();
    let mut i = UNIT_POS;
    while i < places {
        let (row, input) = (first + i / plan.inputs, first_input + i % plan.inputs);
        if row < rows && input < inputs {
            let row = first_row + row;
            let at = (input * out_width + row) as usize;
            store_one(out, at, total(&shared, i, places), bias, row, epilogue);
        }
        i += CUBE_DIM;
    }
}

/// `x / √(mean(x²) + ε) · norm` for every input.
#[cube]
fn normalized(
    norm: &[Vector<f32, Const<4>>],
    eps: f32,
    inputs: &Sequence<Vector<f32, Const<4>>>,
    shared: &mut Shared<[f32]>,
    #[comptime] plan: MatvecPlan,
) -> Sequence<Vector<f32, Const<4>>> {
    let width = comptime![8 * plan.blocks_per_lane()];
    let mut squares = Array::<f32>::new(comptime![plan.inputs as usize]);
    #[unroll]
    for q in 0..plan.inputs {
        let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
        #[unroll]
        for i in 0..width {
            let x = inputs[comptime![(q * width + i) as usize]];
            sum += x * x;
        }
        squares[comptime![q as usize]] = sum4(sum);
    }
    plane_sums(&squares, shared, 0u32, 0u32, plan.inputs, plan.inputs);
    sync_cube();
    let mut normed = Sequence::<Vector<f32, Const<4>>>::new();
    #[unroll]
    for q in 0..plan.inputs {
        let squares = total(&*shared, q.runtime(), plan.inputs);
        let factor = Vector::<f32, Const<4>>::new(rms_factor(squares, comptime![32 * plan.blocks].runtime(), eps));
        #[unroll]
        for i in 0..comptime![plan.blocks_per_lane()] {
            let block = min(UNIT_POS + comptime![i * plan.lanes], comptime![plan.blocks - 1]);
            #[unroll]
            for j in 0..8u32 {
                let x = inputs[comptime![(q * width + 8 * i + j) as usize]];
                normed.push(x * factor * norm[(block * 8 + j) as usize]);
            }
        }
    }
    sync_cube();
    normed
}

#[cfg(test)]
mod tests {
    use formats::Storage;

    use super::*;
    use crate::testing::{F16_PAIRS, F32, Random, assert_within, gpu, matrix, matvec_choice, poisoned};

    /// `norm(x)` in f64.
    fn normalized(x: &[f32], norm: &[f32], eps: f32) -> Vec<f64> {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        let factor = (mean + f64::from(eps)).sqrt().recip();
        x.iter().zip(norm).map(|(&x, &w)| f64::from(x) * factor * f64::from(w)).collect()
    }

    #[test]
    fn equals_f64_in_awkward_shapes() {
        compare_with_f64(&gpu().in_f32(), &Storage::ALL, F32);
    }

    #[test]
    fn equals_f64_in_16_bits() {
        compare_with_f64(&gpu(), &[Storage::Mxfp4, Storage::Q8_0], F16_PAIRS);
    }

    /// Compares products with f64; `limit` is the largest error relative to the terms' magnitudes.
    fn compare_with_f64(gpu: &Gpu, formats: &[Storage], limit: f64) {
        let device = &gpu.device;
        let mut random = Random::fresh();
        let shapes = [(1, 5, 2880), (3, 1, 96), (1, 1, 32), (2, 67, 32), (1, 13, 4096), (5, 130, 64), (1, 9, 8224)];
        for &storage in formats {
            for (inputs, rows, columns) in shapes {
                for (normalize, biased, add) in [(false, false, false), (true, true, false), (false, true, true)] {
                    let choice = matvec_choice(&mut random);
                    let weights = random.values(rows * columns, 1.0);
                    let (weights, matrix) = matrix(device, storage, [1, rows, columns], &weights);
                    let x = random.values(inputs * columns, 2.0);
                    let (norm, bias) = (random.values(columns, 1.0), random.values(rows, 1.0));
                    let before = random.values(inputs * rows, 1.0);
                    let out = if add { device.upload_f32(&before) } else { poisoned(device, inputs * rows) };
                    let (norm_buffer, bias_buffer) = (device.upload_f32(&norm), device.upload_f32(&bias));
                    let input_norm = normalize.then_some(InputNorm { weight: &norm_buffer, eps: 1e-5 });
                    Product {
                        matrix: &matrix,
                        x: &device.upload_f32(&x),
                        bias: biased.then_some(&bias_buffer),
                        out: &out,
                        add,
                        inputs,
                    }
                    .launch_matvec(gpu, input_norm, choice);
                    let found = device.read_f32(&out).expect("reads");
                    let context = format!(
                        "{storage:?} {inputs} {rows} {columns} {normalize} {biased} {add}, {choice:?} {random:?}"
                    );
                    for input in 0..inputs {
                        let x = &x[input * columns..][..columns];
                        let x = match normalize {
                            true => normalized(x, &norm, 1e-5),
                            false => x.iter().map(|&x| f64::from(x)).collect(),
                        };
                        for row in 0..rows {
                            let terms = weights[row * columns..][..columns].iter().zip(&x);
                            let (mut sum, mut size) = terms.fold((0.0, 0.0), |(sum, size), (&w, &x)| {
                                (sum + f64::from(w) * x, size + (f64::from(w) * x).abs())
                            });
                            if biased {
                                sum += f64::from(bias[row]);
                                size += f64::from(bias[row].abs());
                            }
                            if add {
                                sum += f64::from(before[input * rows + row]);
                                size += 1.0;
                            }
                            assert_within(limit, found[input * rows + row], sum, size, &context);
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a product's output holds 4 words and the kernel uses 5")]
    fn a_short_buffer_is_refused() {
        let gpu = gpu();
        let (_, matrix) = matrix(&gpu.device, Storage::F32, [1, 5, 32], &[0.0; 160]);
        let (x, out) = (gpu.device.empty(32), gpu.device.empty(4));
        let product = Product { matrix: &matrix, x: &x, bias: None, out: &out, add: false, inputs: 1 };
        product.launch_matvec(&gpu, None, matvec_choice(&mut Random::fresh()));
    }
}
