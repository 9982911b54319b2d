//! How a matrix–vector product is distributed among cubes and lanes.

use formats::Storage;
use serde::{Deserialize, Serialize};

use crate::device::cube_grid;
use crate::gpu::Gpu;
use crate::matrix::{Matrix, vectors};
use crate::packed::Packing;

/// The most lanes per row.
const LANES: u32 = 256;
/// With several inputs, cubes take up to this many times as many steps.
const MAX_STEP_FACTOR: usize = 4;

/// The values of [`RowLoop`] that are worth measuring.
const VECTORS: [u32; 4] = [1, 2, 4, 8];
const STEPS: [u32; 5] = [1, 2, 4, 6, 8];

/// How the cubes of a mat-vec kernel iterate over the rows of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowLoop {
    /// Vectors of a matrix's codes that a lane holds at once.
    pub vectors: u32,
    /// The most iterations per cube with a single input.
    pub steps: u32,
}

impl RowLoop {
    /// Number of variants in [`RowLoop::all`].
    pub const COUNT: usize = VECTORS.len() * STEPS.len();

    /// Rows that a lane processes at once.
    pub fn rows(self, storage: Storage) -> u32 {
        (self.vectors / vectors(storage) as u32).max(1)
    }

    /// All variants that are worth measuring.
    pub fn all() -> impl Iterator<Item = RowLoop> {
        VECTORS.into_iter().flat_map(|vectors| STEPS.map(|steps| RowLoop { vectors, steps }))
    }
}

/// The tunable parameters of a mat-vec kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatvecChoice {
    pub row_loop: RowLoop,
    /// The most inputs that share one read of a dense matrix; with experts, each input reads the weights separately.
    pub inputs_per_read: usize,
    /// The least number of cubes of a launch: cubes take several steps only if the launch still has this many cubes.
    pub least_cubes: u32,
}

/// The part of a matrix that a cube processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowTile {
    /// Rows that a lane processes at once: 1, 2, or a multiple of 4. The codes of the next rows are loaded meanwhile.
    pub(crate) rows: u32,
    /// Number of iterations of a cube, each over the next `rows` rows.
    pub(crate) steps: u32,
}

impl RowTile {
    /// The tile of the choice's row loop, with fewer steps if otherwise fewer than [`MatvecChoice::least_cubes`] cubes would share the
    /// `rows` rows. With several inputs there is more work, and cubes take more steps, so that reading the inputs takes a smaller part of
    /// the time.
    pub fn new(choice: MatvecChoice, storage: Storage, rows: usize, inputs: usize) -> RowTile {
        let at_once = choice.row_loop.rows(storage);
        let most = choice.row_loop.steps * inputs.min(MAX_STEP_FACTOR) as u32;
        RowTile { rows: at_once, steps: (rows as u32 / at_once / choice.least_cubes.max(1)).clamp(1, most) }
    }

    /// Rows per cube.
    pub(crate) fn cube_rows(&self) -> u32 {
        self.rows * self.steps
    }
}

/// How lanes share the rows of a matrix, or of two matrices of the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatvecPlan {
    /// Blocks per row.
    pub blocks: u32,
    /// Lanes per row.
    pub lanes: u32,
    /// Inputs that each row is multiplied with.
    pub inputs: u32,
    /// Matrices that are processed together.
    pub matrices: u32,
    pub tile: RowTile,
    /// The most planes of a cube.
    pub planes: u32,
    pub packing: Packing,
    /// Whether products are computed in pairs of 16-bit floats.
    pub pairs: bool,
}

impl MatvecPlan {
    pub fn new(gpu: &Gpu, matrix: &Matrix, tile: RowTile) -> MatvecPlan {
        let blocks = matrix.blocks() as u32;
        let lanes = gpu.device.whole_planes(blocks).min(LANES);
        let (planes, packing) = (gpu.device.most_planes(lanes), gpu.packing(matrix.storage()));
        let pairs = gpu.multiplies_in_16_bits() && packing.multiplies_pairs();
        MatvecPlan { blocks, lanes, inputs: 1, matrices: 1, tile, planes, packing, pairs }
    }

    /// Rows of all matrices that a lane processes at once.
    pub fn rows(&self) -> u32 {
        self.matrices * self.tile.rows
    }

    /// Vectors of codes that a lane reads at once.
    pub fn vectors(&self) -> u32 {
        self.rows() * self.packing.vectors()
    }

    /// Blocks per lane.
    pub fn blocks_per_lane(&self) -> u32 {
        self.blocks.div_ceil(self.lanes)
    }

    /// Sums of a lane for one matrix: one for each pair of an input and a row that the lane processes at once.
    pub fn matrix_sums(&self) -> u32 {
        self.tile.rows * self.inputs
    }

    /// Sums per lane.
    pub fn sums(&self) -> u32 {
        self.matrices * self.matrix_sums()
    }

    /// Sums per cube for one matrix.
    pub fn cube_matrix_sums(&self) -> u32 {
        self.tile.cube_rows() * self.inputs
    }

    /// Sums per cube.
    pub fn cube_sums(&self) -> u32 {
        self.matrices * self.cube_matrix_sums()
    }

    /// Number of cubes along y and z for `rows` rows. Cubes that differ only along x share their rows and run in parallel.
    pub fn cubes(&self, rows: usize) -> (u32, u32) {
        cube_grid(rows.div_ceil(self.tile.cube_rows() as usize) as u32)
    }
}
