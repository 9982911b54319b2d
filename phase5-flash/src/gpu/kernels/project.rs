//! `y = W · norm(x) + b`, optionally added to what `y` holds: the query, key and value projections in one, attention's output
//! projection, and the head.
//!
//! A cube's lanes share out the row's blocks and keep their inputs in registers for all of the cube's rows, so that the inputs
//! cost one read a cube and the norm one sum.
//!
//! Ladder (H100, gpt-oss-20b's shapes in Q8_0, one row, 8 rows a cube; bandwidth inside a whole step, by timestamps):
//! 1. here: each lane reads its block of the inputs itself. Query, key and value 808 GB/s, head 2,334 GB/s.
//! 2. inputs by way of 13 kB of shared memory: 544 and 1,659 GB/s. Fewer cubes fit at once; taken back.

use cubecl::prelude::*;
use phase1_loading::Format;

use super::codes::{Codes, INPUT_FACTOR, dot_block, load_block, load_codes, load_scales, scale_value};
use super::reduce::{cube_sum, plane_sums, total};
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::layout::{Matrix, ROW_GROUP, vectors};

/// The most lanes that share a row.
const LANES: u32 = 256;
/// The most cubes along one axis that every GPU accepts.
pub(crate) const MAX_CUBES: u32 = 65_535;

/// How lanes share a matrix's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Split {
    /// Blocks of a row.
    pub blocks: u32,
    /// Lanes of a cube.
    pub lanes: u32,
    /// Rows of a cube: 1, 2, or a multiple of 4.
    pub rows: u32,
    /// Words of shared memory for every plane's sums.
    pub partial_sums: u32,
    pub format: Format,
    pub codes: Codes,
}

impl Split {
    pub fn new(gpu: &Gpu, matrix: &Matrix, rows: u32) -> Split {
        Split::with_sums(gpu, matrix, rows, rows)
    }

    /// As [`Split::new`], for `sums` sums a lane.
    pub fn with_sums(gpu: &Gpu, matrix: &Matrix, rows: u32, sums: u32) -> Split {
        let blocks = matrix.blocks() as u32;
        let lanes = blocks.next_multiple_of(gpu.plane).min(LANES);
        let planes = lanes.div_ceil(gpu.least_plane);
        Split { blocks, lanes, rows, partial_sums: planes * sums, format: matrix.format, codes: gpu.codes }
    }

    /// Whether inputs must be [enlarged](enlarge_inputs).
    pub fn subnormals(&self) -> bool {
        self.format == Format::Mxfp4 && self.codes == Codes::Subnormals
    }

    /// Vectors of codes of a cube's rows that a lane reads at once.
    pub fn vectors(&self) -> u32 {
        self.rows * vectors(self.format) as u32
    }

    /// Blocks that one lane holds.
    pub fn blocks_a_lane(&self) -> u32 {
        self.blocks.div_ceil(self.lanes)
    }

    /// Cubes for `rows` rows, along y and z: cubes that differ along x share their rows, and run side by side.
    pub fn cubes(&self, rows: usize) -> (u32, u32) {
        spread(rows.div_ceil(self.rows as usize) as u32)
    }
}

/// A number of cubes as two axes that every GPU accepts; the product may exceed it.
pub(crate) fn spread(cubes: u32) -> (u32, u32) {
    let z = cubes.div_ceil(MAX_CUBES).max(1);
    (cubes.div_ceil(z), z)
}

/// Rows of a cube that keep a lane's registers in bounds.
pub(crate) fn rows_a_cube(format: Format) -> u32 {
    (8 / vectors(format) as u32).max(1)
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
        self.launch_rows(gpu, rows_a_cube(self.matrix.format));
    }

    /// As [`Project::launch`], with `rows` rows a cube.
    pub fn launch_rows(&self, gpu: &Gpu, rows: u32) {
        let split = Split::new(gpu, self.matrix, rows);
        let (norm, eps) = self.norm.unwrap_or((self.x, 0.0));
        for part in &self.matrix.parts {
            let (x, z) = split.cubes(part.rows);
            // SAFETY: rows and blocks are bounded in the kernel by the part's, and every buffer holds as many.
            unsafe {
                project::launch_unchecked(
                    &gpu.client,
                    CubeCount::Static(self.inputs as u32, x, z),
                    CubeDim::new_1d(split.lanes),
                    self.x.arg4(),
                    part.codes.arg4(),
                    part.scales.arg(),
                    norm.arg4(),
                    self.bias.unwrap_or(self.x).arg(),
                    self.out.arg(),
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
    rows: u32,
    first_row: u32,
    out_width: u32,
    eps: f32,
    #[comptime] split: Split,
    #[comptime] normalize: bool,
    #[comptime] biased: bool,
    #[comptime] add: bool,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![split.partial_sums as usize]);
    let row = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * split.rows;
    // The first codes are under way while the inputs are made ready.
    let mut words = Array::<Vector<u32, Const<4>>>::new(comptime![split.vectors() as usize]);
    let mut factors = Array::<u32>::new(comptime![split.rows as usize]);
    load_rows(codes, scales, row, rows - 1, UNIT_POS, &mut words, &mut factors, 0u32, split);
    let mut inputs = Array::<Vector<f32, Const<4>>>::new(comptime![(8 * split.blocks_a_lane()) as usize]);
    load_inputs(x, CUBE_POS_X * split.blocks, UNIT_POS, &mut inputs, split);
    if comptime![normalize] {
        normalize_inputs(norm, eps, &mut inputs, &mut shared, split);
    }
    if comptime![split.subnormals()] {
        enlarge_inputs(&mut inputs, split);
    }

    let mut sums = Array::<f32>::new(comptime![split.rows as usize]);
    zero(&mut sums, split.rows);
    multiply_rows(&words, &factors, &inputs, &mut sums, 0u32, 0u32, 1.0f32, split);
    #[unroll]
    for i in 1..comptime![split.blocks_a_lane()] {
        let block = UNIT_POS + comptime![i * split.lanes];
        load_rows(codes, scales, row, rows - 1, block, &mut words, &mut factors, 0u32, split);
        multiply_rows(&words, &factors, &inputs, &mut sums, 0u32, i, 1.0f32, split);
    }
    plane_sums(&sums, &mut shared, split.rows);
    let row = row + UNIT_POS;
    if UNIT_POS < split.rows && row < rows {
        let row = first_row + row;
        let at = (CUBE_POS_X * out_width + row) as usize;
        let mut y = total(&shared, UNIT_POS, split.rows);
        if comptime![biased] {
            y += bias[row as usize];
        }
        if comptime![add] {
            y += out[at];
        }
        out[at] = y;
    }
}

#[cube]
pub(crate) fn zero(values: &mut Array<f32>, #[comptime] count: u32) {
    #[unroll]
    for i in 0..count {
        values[comptime![i as usize]] = 0.0f32;
    }
}

/// This lane's blocks of the input that begins at block `first`; zeros past its end.
#[cube]
pub(crate) fn load_inputs(
    x: &[Vector<f32, Const<4>>],
    first: u32,
    lane: u32,
    inputs: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] split: Split,
) {
    #[unroll]
    for i in 0..comptime![split.blocks_a_lane()] {
        let block = lane + comptime![i * split.lanes];
        if block < split.blocks {
            load_block(x, first + block, inputs, comptime![8 * i]);
        } else {
            #[unroll]
            for j in 0..8u32 {
                inputs[comptime![(8 * i + j) as usize]] = Vector::<f32, Const<4>>::new(0.0f32);
            }
        }
    }
}

/// Makes room below for codes that are read as subnormals.
#[cube]
pub(crate) fn enlarge_inputs(inputs: &mut Array<Vector<f32, Const<4>>>, #[comptime] split: Split) {
    let factor = Vector::<f32, Const<4>>::new(f32::new(INPUT_FACTOR));
    #[unroll]
    for i in 0..comptime![8 * split.blocks_a_lane()] {
        inputs[comptime![i as usize]] *= factor;
    }
}

/// `x / √(mean(x²) + ε) · w`, in place.
#[cube]
pub(crate) fn normalize_inputs(
    norm: &[Vector<f32, Const<4>>],
    eps: f32,
    inputs: &mut Array<Vector<f32, Const<4>>>,
    shared: &mut Shared<[f32]>,
    #[comptime] split: Split,
) {
    let mut squares = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for i in 0..comptime![8 * split.blocks_a_lane()] {
        let x = inputs[comptime![i as usize]];
        squares += x * x;
    }
    let squares =
        (squares.extract(0usize) + squares.extract(1usize)) + (squares.extract(2usize) + squares.extract(3usize));
    let mean = cube_sum(squares, shared) / f32::cast_from(comptime![32 * split.blocks]);
    let factor = Vector::<f32, Const<4>>::new(1.0f32 / (mean + eps).sqrt());
    #[unroll]
    for i in 0..comptime![split.blocks_a_lane()] {
        let block = UNIT_POS + comptime![i * split.lanes];
        if block < split.blocks {
            #[unroll]
            for j in 0..8u32 {
                let at = comptime![(8 * i + j) as usize];
                inputs[at] = inputs[at] * factor * norm[(block * 8 + j) as usize];
            }
        }
    }
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
    let together = comptime![split.rows.min(ROW_GROUP as u32)];
    let block = min(block, comptime![split.blocks - 1]);
    #[unroll]
    for group in 0..comptime![split.rows / together] {
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

/// Adds this lane's share of the products with rows that [`load_rows`] read, each times `weight`, to `sums`.
#[cube]
pub(crate) fn multiply_rows(
    words: &Array<Vector<u32, Const<4>>>,
    factors: &Array<u32>,
    inputs: &Array<Vector<f32, Const<4>>>,
    sums: &mut Array<f32>,
    #[comptime] first: u32,
    #[comptime] round: u32,
    weight: f32,
    #[comptime] split: Split,
) {
    let vectors = comptime![vectors(split.format) as u32];
    #[unroll]
    for r in 0..split.rows {
        let at = comptime![first + r];
        let product =
            dot_block(words, comptime![at * vectors], inputs, comptime![8 * round], split.format, split.codes);
        sums[comptime![at as usize]] += weight * scale_value(factors[comptime![at as usize]], split.format) * product;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::testing::{Random, assert_close, gpu, poisoned};
    use phase1_loading::HostTensor;

    /// `norm(x)` in f64.
    fn normalized(x: &[f32], norm: &[f32], eps: f32) -> Vec<f64> {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        let factor = (mean + f64::from(eps)).sqrt().recip();
        x.iter().zip(norm).map(|(&x, &w)| f64::from(x) * factor * f64::from(w)).collect()
    }

    #[test]
    fn equals_f64_in_awkward_shapes() {
        let gpu = gpu();
        let mut random = Random::fresh();
        let shapes = [(1, 5, 2880), (3, 1, 96), (1, 1, 32), (2, 67, 32), (1, 13, 4096), (5, 130, 64), (1, 9, 8224)];
        for format in Format::WRITTEN {
            for (inputs, rows, columns) in shapes {
                for (normalize, biased, add) in [(false, false, false), (true, true, false), (false, true, true)] {
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
                    let context =
                        format!("{format:?} {inputs} {rows} {columns} {normalize} {biased} {add}, {random:?}");
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
