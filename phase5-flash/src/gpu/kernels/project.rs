//! `y = W · norm(x) + b`, optionally added to what `y` holds: the query, key and value projections in one, attention's output
//! projection, and the head.
//!
//! A cube's lanes share out a row's blocks and keep their inputs in registers, read and normed once a cube, while they walk down the
//! cube's rows: the codes of the next rows are under way while those before are multiplied.
//!
//! Ladder (H100, gpt-oss-20b's shapes in Q8_0, one row; query, key and value inside a whole step, by timestamps):
//! 1. 4 rows a cube, unrolled, each lane reads its block of the inputs itself: 808 GB/s.
//! 2. inputs by way of 13 kB of shared memory: 544 GB/s. Fewer cubes fit at once; taken back.
//! 3. the codes read before the inputs: 668 GB/s, for they fill the registers meanwhile.
//! 4. here: 2 rows at a time in 4 steps: 861 GB/s (SPIR-V). The head, 2,334 GB/s at first, now 2,605.
//!
//! Ten rows (head; query, key and value in 24 layers; output projection in 24):
//! 1. each by itself, side by side, so that one finds in the L2 cache what another read: 1.57 ms, 1.70 ms, 1.31 ms.
//! 2. two inputs a lane over the same cubes: 1.40, 1.73, 1.27. What is read of the inputs is as much as before.
//! 3. here: two inputs, and four times as many steps where there are rows enough; inputs as values, not as an array, of which
//!    the compiler keeps only a small one in registers: 1.02, 1.26, 0.76. Four or five inputs: 1.65, 1.39.

use cubecl::prelude::*;
use phase1_loading::Format;

use super::codes::{Codes, INPUT_FACTOR, add_dots, load_codes, load_scales, scale_value};
use super::reduce::{share_sums, sum4, total};
use super::tile::put;
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::layout::{Matrix, ROW_GROUP, vectors};
use crate::gpu::tuning::Walk;

/// The most lanes that share a row.
const LANES: u32 = 256;
/// How many times as far cubes walk at most when there are several inputs.
const FURTHER: usize = 4;
/// The most cubes along one axis that every GPU accepts.
pub(crate) const MAX_CUBES: u32 = 65_535;

/// How much of a matrix a cube takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cut {
    /// Rows that a lane works on at once: 1, 2, or a multiple of 4. The codes of as many more are under way meanwhile.
    pub rows: u32,
    /// How often it does so.
    pub steps: u32,
}

impl Cut {
    /// As `walk` says, but in no more steps than leave work for as many cubes as keep the device busy, over `rows` rows in all.
    /// With several inputs there is more work, and cubes walk further: what they read of the inputs is then less beside the rows.
    pub fn of(gpu: &Gpu, walk: Walk, format: Format, rows: usize, inputs: usize) -> Cut {
        let at_once = walk.rows(format);
        let most = walk.steps * inputs.min(FURTHER) as u32;
        Cut { rows: at_once, steps: (rows as u32 / at_once / gpu.tuning.product_cubes).clamp(1, most) }
    }

    /// Rows of a cube.
    pub fn cube_rows(&self) -> u32 {
        self.rows * self.steps
    }
}

/// How lanes share a matrix's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Split {
    /// Blocks of a row.
    pub blocks: u32,
    /// Lanes that share a row.
    pub lanes: u32,
    /// Inputs that every row is multiplied with.
    pub inputs: u32,
    pub cut: Cut,
    /// The most planes of a cube.
    pub planes: u32,
    pub format: Format,
    pub codes: Codes,
}

impl Split {
    pub fn new(gpu: &Gpu, matrix: &Matrix, cut: Cut) -> Split {
        let blocks = matrix.blocks() as u32;
        let lanes = blocks.next_multiple_of(gpu.plane).min(LANES);
        let planes = lanes.div_ceil(gpu.least_plane);
        Split { blocks, lanes, inputs: 1, cut, planes, format: matrix.format, codes: gpu.codes }
    }

    /// Whether inputs must be [`enlarged`].
    pub fn subnormals(&self) -> bool {
        self.format == Format::Mxfp4 && self.codes == Codes::Subnormals
    }

    /// Vectors of codes that a lane reads at once.
    pub fn vectors(&self) -> u32 {
        self.cut.rows * vectors(self.format) as u32
    }

    /// Blocks that one lane holds.
    pub fn blocks_a_lane(&self) -> u32 {
        self.blocks.div_ceil(self.lanes)
    }

    /// Vectors of inputs that one lane holds.
    pub fn input_vectors(&self) -> u32 {
        8 * self.blocks_a_lane() * self.inputs
    }

    /// Sums of a lane: of every row it works on at once with every input.
    pub fn sums(&self) -> u32 {
        self.cut.rows * self.inputs
    }

    /// Sums of a cube.
    pub fn cube_sums(&self) -> u32 {
        self.cut.cube_rows() * self.inputs
    }

    /// Cubes for `rows` rows, along y and z: cubes that differ along x share their rows, and run side by side.
    pub fn cubes(&self, rows: usize) -> (u32, u32) {
        spread(rows.div_ceil(self.cut.cube_rows() as usize) as u32)
    }
}

/// A number of cubes as two axes that every GPU accepts; the product may exceed it.
pub(crate) fn spread(cubes: u32) -> (u32, u32) {
    let z = cubes.div_ceil(MAX_CUBES).max(1);
    (cubes.div_ceil(z), z)
}

/// One product for each of `inputs` rows of `x` `[inputs, columns]`.
pub(crate) struct Project<'a> {
    pub matrix: &'a Matrix,
    pub x: &'a Buffer,
    /// The weight and ε of the norm of `x`, if it is to be normalized.
    pub norm: Option<(&'a Buffer, f32)>,
    pub bias: Option<&'a Buffer>,
    /// `[inputs, rows]`
    pub out: &'a Buffer,
    /// Adds to `out` rather than replacing it.
    pub add: bool,
    pub inputs: usize,
}

impl Project<'_> {
    pub fn launch(&self, gpu: &Gpu) {
        // As many inputs for every cube, as nearly as can be.
        let groups = self.inputs.div_ceil(gpu.tuning.together);
        let together = self.inputs.div_ceil(groups) as u32;
        let cut = Cut::of(gpu, gpu.tuning.project, self.matrix.format, self.matrix.rows * groups, self.inputs);
        let split = Split { inputs: together, ..Split::new(gpu, self.matrix, cut) };
        let (norm, eps) = self.norm.unwrap_or((self.x, 0.0));
        for part in &self.matrix.parts {
            let (x, z) = split.cubes(part.rows);
            // SAFETY: rows and blocks are bounded in the kernel by the part's, and every buffer holds as many.
            unsafe {
                project::launch_unchecked(
                    &gpu.client,
                    CubeCount::Static(groups as u32, x, z),
                    CubeDim::new_1d(split.lanes),
                    self.x.arg4(),
                    part.codes.arg4(),
                    part.scales.arg(),
                    norm.arg4(),
                    self.bias.unwrap_or(self.x).arg(),
                    self.out.arg(),
                    self.inputs as u32,
                    part.rows as u32,
                    part.first_row as u32,
                    self.matrix.rows as u32,
                    eps,
                    split,
                    self.norm.is_some(),
                    self.bias.is_some(),
                    self.add,
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
    #[comptime] split: Split,
    #[comptime] normalize: bool,
    #[comptime] biased: bool,
    #[comptime] add: bool,
) {
    let cube_rows = comptime![split.cut.cube_rows()];
    let mut shared = Shared::<[f32]>::new_slice(comptime![(split.planes * split.cube_sums()) as usize]);
    let first = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * cube_rows;
    // The first codes are under way while the inputs are made ready.
    let mut held = Array::<Vector<u32, Const<4>>>::new(comptime![split.vectors() as usize]);
    let mut scale_words = Array::<u32>::new(comptime![split.cut.rows as usize]);
    load_rows(codes, scales, first, rows - 1, UNIT_POS, &mut held, &mut scale_words, 0u32, split);
    let mut loaded = Sequence::<Vector<f32, Const<4>>>::new();
    let first_input = CUBE_POS_X * split.inputs;
    #[unroll]
    for q in 0..split.inputs {
        let input = min(first_input + q, inputs - 1);
        load_inputs(x, input * split.blocks, UNIT_POS, &mut loaded, split);
    }
    let held_inputs = if comptime![normalize] {
        normalized(norm, eps, &loaded, &mut shared, split)
    } else {
        enlarged(&loaded, split)
    };

    let mut sums = Array::<f32>::new(comptime![split.sums() as usize]);
    for step in 0..split.cut.steps {
        let row = first + step * split.cut.rows;
        zero(&mut sums, split.sums());
        multiply_rows(
            codes,
            scales,
            row,
            rows - 1,
            UNIT_POS,
            &mut held,
            &mut scale_words,
            &held_inputs,
            &mut sums,
            1.0f32,
            split,
        );
        share_sums(&sums, &mut shared, 0u32, step * split.sums(), split.sums(), split.cube_sums());
    }
    sync_cube();
    let mut i = UNIT_POS;
    while i < split.cube_sums() {
        let (row, input) = (first + i / split.inputs, first_input + i % split.inputs);
        if row < rows && input < inputs {
            let row = first_row + row;
            let at = (input * out_width + row) as usize;
            put(out, at, total(&shared, i, split.cube_sums()), bias, row, biased, add);
        }
        i += CUBE_DIM;
    }
}

#[cube]
pub(crate) fn zero(values: &mut Array<f32>, #[comptime] count: u32) {
    #[unroll]
    for i in 0..count {
        values[comptime![i as usize]] = 0.0f32;
    }
}

/// Adds this lane's blocks of the input that begins at block `first` to those that it holds; zeros past its end.
#[cube]
pub(crate) fn load_inputs(
    x: &[Vector<f32, Const<4>>],
    first: u32,
    lane: u32,
    inputs: &mut Sequence<Vector<f32, Const<4>>>,
    #[comptime] split: Split,
) {
    #[unroll]
    for i in 0..comptime![split.blocks_a_lane()] {
        let block = lane + comptime![i * split.lanes];
        let there = Vector::<f32, Const<4>>::new(select(block < split.blocks, 1.0f32, 0.0f32));
        #[unroll]
        for j in 0..8u32 {
            inputs.push(x[((first + min(block, comptime![split.blocks - 1])) * 8 + j) as usize] * there);
        }
    }
}

/// Inputs with room below for codes that are read as subnormals.
#[cube]
pub(crate) fn enlarged(
    inputs: &Sequence<Vector<f32, Const<4>>>,
    #[comptime] split: Split,
) -> Sequence<Vector<f32, Const<4>>> {
    let mut larger = Sequence::<Vector<f32, Const<4>>>::new();
    #[unroll]
    for i in 0..split.input_vectors() {
        let x = inputs[comptime![i as usize]];
        if comptime![split.subnormals()] {
            larger.push(x * Vector::<f32, Const<4>>::new(f32::new(INPUT_FACTOR)));
        } else {
            larger.push(x);
        }
    }
    larger
}

/// `x / √(mean(x²) + ε) · w` of every input.
#[cube]
pub(crate) fn normalized(
    norm: &[Vector<f32, Const<4>>],
    eps: f32,
    inputs: &Sequence<Vector<f32, Const<4>>>,
    shared: &mut Shared<[f32]>,
    #[comptime] split: Split,
) -> Sequence<Vector<f32, Const<4>>> {
    let width = comptime![8 * split.blocks_a_lane()];
    let mut squares = Array::<f32>::new(comptime![split.inputs as usize]);
    #[unroll]
    for q in 0..split.inputs {
        let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
        #[unroll]
        for i in 0..width {
            let x = inputs[comptime![(q * width + i) as usize]];
            sum += x * x;
        }
        squares[comptime![q as usize]] = sum4(sum);
    }
    share_sums(&squares, shared, 0u32, 0u32, split.inputs, split.inputs);
    sync_cube();
    let mut normed = Sequence::<Vector<f32, Const<4>>>::new();
    #[unroll]
    for q in 0..split.inputs {
        let mean = total(&*shared, q.runtime(), split.inputs) / f32::cast_from(comptime![32 * split.blocks]);
        let factor = Vector::<f32, Const<4>>::new(1.0f32 / (mean + eps).sqrt());
        #[unroll]
        for i in 0..comptime![split.blocks_a_lane()] {
            let block = min(UNIT_POS + comptime![i * split.lanes], comptime![split.blocks - 1]);
            #[unroll]
            for j in 0..8u32 {
                let x = inputs[comptime![(q * width + 8 * i + j) as usize]];
                normed.push(x * factor * norm[(block * 8 + j) as usize]);
            }
        }
    }
    sync_cube();
    enlarged(&normed, split)
}

/// Reads the codes and scales of a cube's rows at block `block`; `first` counts rows loaded before. Rows past the last are read as
/// the last ones, blocks past a row's end as its last: their inputs are zeros.
#[cube]
pub(crate) fn load_rows(
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    row: u32,
    last_row: u32,
    block: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    factors: &mut Array<u32>,
    #[comptime] first: u32,
    #[comptime] split: Split,
) {
    let vectors = comptime![vectors(split.format) as u32];
    let together = comptime![split.cut.rows.min(ROW_GROUP as u32)];
    let block = min(block, comptime![split.blocks - 1]);
    #[unroll]
    for group in 0..comptime![split.cut.rows / together] {
        let start = min(row + comptime![group * together], last_row / together * together);
        #[unroll]
        for r in 0..together {
            let at = comptime![(first + group * together + r) * vectors];
            load_codes(codes, start + r, block, split.blocks, words, at, vectors);
        }
        let at = comptime![first + group * together];
        load_scales(scales, start, block, split.blocks, factors, at, together, split.format);
    }
}

/// Adds this lane's share of the products of the inputs with the rows that are held, each times `weight`, to `sums`, a row's after
/// another, and holds the rows after them instead: those are under way meanwhile.
#[cube]
pub(crate) fn multiply_rows(
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    row: u32,
    last_row: u32,
    lane: u32,
    held: &mut Array<Vector<u32, Const<4>>>,
    scale_words: &mut Array<u32>,
    inputs: &Sequence<Vector<f32, Const<4>>>,
    sums: &mut Array<f32>,
    weight: f32,
    #[comptime] split: Split,
) {
    let mut next = Array::<Vector<u32, Const<4>>>::new(comptime![split.vectors() as usize]);
    let mut next_scales = Array::<u32>::new(comptime![split.cut.rows as usize]);
    if comptime![split.cut.steps > 1] {
        load_rows(codes, scales, row + split.cut.rows, last_row, lane, &mut next, &mut next_scales, 0u32, split);
    }
    add_products(&*held, &*scale_words, inputs, sums, 0u32, 0u32, weight, split);
    #[unroll]
    for i in 1..comptime![split.blocks_a_lane()] {
        let block = lane + comptime![i * split.lanes];
        load_rows(codes, scales, row, last_row, block, held, scale_words, 0u32, split);
        add_products(&*held, &*scale_words, inputs, sums, 0u32, i, weight, split);
    }
    if comptime![split.cut.steps > 1] {
        copy(&next, held, split.vectors());
        copy(&next_scales, scale_words, split.cut.rows);
    }
}

/// Adds the products with rows that [`load_rows`] read after `first` others.
#[cube]
pub(crate) fn add_products(
    words: &Array<Vector<u32, Const<4>>>,
    scale_words: &Array<u32>,
    inputs: &Sequence<Vector<f32, Const<4>>>,
    sums: &mut Array<f32>,
    #[comptime] first: u32,
    #[comptime] round: u32,
    weight: f32,
    #[comptime] split: Split,
) {
    let vectors = comptime![vectors(split.format) as u32];
    #[unroll]
    for r in 0..split.cut.rows {
        let at = comptime![first + r];
        let scale = weight * scale_value(scale_words[comptime![at as usize]], split.format);
        let (first_word, first_x) = comptime![(at * vectors, 8 * round)];
        let (first_sum, apart) = comptime![(at * split.inputs, 8 * split.blocks_a_lane())];
        let Split { inputs: count, format, codes, .. } = comptime![split];
        add_dots(words, first_word, inputs, first_x, apart, scale, sums, first_sum, count, format, codes);
    }
}

#[cube]
pub(crate) fn copy<T: CubePrimitive>(from: &Array<T>, to: &mut Array<T>, #[comptime] count: u32) {
    #[unroll]
    for i in 0..count {
        to[comptime![i as usize]] = from[comptime![i as usize]];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::testing::{Random, assert_close, poisoned, tuned};
    use phase1_loading::HostTensor;

    /// `norm(x)` in f64.
    fn normalized(x: &[f32], norm: &[f32], eps: f32) -> Vec<f64> {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        let factor = (mean + f64::from(eps)).sqrt().recip();
        x.iter().zip(norm).map(|(&x, &w)| f64::from(x) * factor * f64::from(w)).collect()
    }

    #[test]
    fn equals_f64_in_awkward_shapes() {
        let mut random = Random::fresh();
        let shapes = [(1, 5, 2880), (3, 1, 96), (1, 1, 32), (2, 67, 32), (1, 13, 4096), (5, 130, 64), (1, 9, 8224)];
        for format in Format::WRITTEN {
            for (inputs, rows, columns) in shapes {
                for (normalize, biased, add) in [(false, false, false), (true, true, false), (false, true, true)] {
                    let gpu = tuned(&mut random);
                    let weights = random.values(rows * columns, 1.0);
                    let tensor = HostTensor::packed_rows(format, vec![rows, columns], format.encode(&weights).into());
                    let weights = tensor.to_f32();
                    let x = random.values(inputs * columns, 2.0);
                    let (norm, bias) = (random.values(columns, 1.0), random.values(rows, 1.0));
                    let before = random.values(inputs * rows, 1.0);
                    let matrix = Matrix::upload(&gpu, "w", &[&tensor]).expect("uploads");
                    let out = if add { gpu.upload_f32(&before) } else { poisoned(&gpu, inputs * rows) };
                    let (norm_buffer, bias_buffer) = (gpu.upload_f32(&norm), gpu.upload_f32(&bias));
                    Project {
                        matrix: &matrix,
                        x: &gpu.upload_f32(&x),
                        norm: normalize.then_some((&norm_buffer, 1e-5)),
                        bias: biased.then_some(&bias_buffer),
                        out: &out,
                        add,
                        inputs,
                    }
                    .launch(&gpu);
                    let found = gpu.read_f32(&out).expect("reads");
                    let context = format!(
                        "{format:?} {inputs} {rows} {columns} {normalize} {biased} {add}, {:?} {random:?}",
                        gpu.tuning
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
                            assert_close(found[input * rows + row], sum, size, &context);
                        }
                    }
                }
            }
        }
    }
}
