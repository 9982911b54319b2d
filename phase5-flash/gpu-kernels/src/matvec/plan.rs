//! How a matrix–vector product is shared out among cubes and lanes.

use formats::Storage;
use serde::{Deserialize, Serialize};

use crate::device::spread;
use crate::gpu::Gpu;
use crate::matrix::{Matrix, vectors};
use crate::packed::Packing;

/// The most lanes that share a row.
const LANES: u32 = 256;
/// How many times as far cubes walk at most when there are several inputs.
const FURTHER: usize = 4;

/// The values of [`Walk`] that are worth a try.
const VECTORS: [u32; 4] = [1, 2, 4, 8];
const STEPS: [u32; 5] = [1, 2, 4, 6, 8];

/// How a mat-vec kernel's cubes walk down a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Walk {
    /// Vectors of a matrix's codes that a lane holds at once.
    pub vectors: u32,
    /// How many times it takes as many, at most.
    pub steps: u32,
}

impl Walk {
    /// The number of [`Walk::all`].
    pub const COUNT: usize = VECTORS.len() * STEPS.len();

    /// Rows that a lane works on at once.
    pub fn rows(self, storage: Storage) -> u32 {
        (self.vectors / vectors(storage) as u32).max(1)
    }

    /// All that are worth a try.
    pub fn all() -> impl Iterator<Item = Walk> {
        VECTORS.into_iter().flat_map(|vectors| STEPS.map(|steps| Walk { vectors, steps }))
    }
}

/// What is measured and chosen for a mat-vec kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatvecChoice {
    pub walk: Walk,
    /// Inputs that share a reading of a dense matrix, at most; experts have one input each.
    pub inputs_per_read: usize,
    /// Least number of cubes of a launch; rows of a cube grow only beyond it.
    pub least_cubes: u32,
}

/// How much of a matrix a cube takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowTile {
    /// Rows that a lane works on at once: 1, 2, or a multiple of 4. The codes of as many more are under way meanwhile.
    pub(crate) rows: u32,
    /// How often it does so.
    pub(crate) steps: u32,
}

impl RowTile {
    /// As the choice's walk says, but in no more steps than leave work for [`MatvecChoice::least_cubes`], over `rows` rows in all.
    /// With several inputs there is more work, and cubes walk further: what they read of the inputs is then less beside the rows.
    pub fn new(choice: MatvecChoice, storage: Storage, rows: usize, inputs: usize) -> RowTile {
        let at_once = choice.walk.rows(storage);
        let most = choice.walk.steps * inputs.min(FURTHER) as u32;
        RowTile { rows: at_once, steps: (rows as u32 / at_once / choice.least_cubes.max(1)).clamp(1, most) }
    }

    /// Rows of a cube.
    pub(crate) fn cube_rows(&self) -> u32 {
        self.rows * self.steps
    }
}

/// How lanes share a matrix's rows, or those of two matrices of the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatvecPlan {
    /// Blocks of a row.
    pub blocks: u32,
    /// Lanes that share a row.
    pub lanes: u32,
    /// Inputs that every row is multiplied with.
    pub inputs: u32,
    /// Matrices that are walked down together.
    pub matrices: u32,
    pub tile: RowTile,
    /// The most planes of a cube.
    pub planes: u32,
    pub packing: Packing,
}

impl MatvecPlan {
    pub fn new(gpu: &Gpu, matrix: &Matrix, tile: RowTile) -> MatvecPlan {
        let blocks = matrix.blocks() as u32;
        let lanes = gpu.device.whole_planes(blocks).min(LANES);
        let (planes, packing) = (gpu.device.most_planes(lanes), gpu.packing(matrix.storage()));
        MatvecPlan { blocks, lanes, inputs: 1, matrices: 1, tile, planes, packing }
    }

    /// Rows that a lane works on at once, of all matrices.
    pub fn rows(&self) -> u32 {
        self.matrices * self.tile.rows
    }

    /// Vectors of codes that a lane reads at once.
    pub fn vectors(&self) -> u32 {
        self.rows() * self.packing.vectors()
    }

    /// Blocks that one lane holds.
    pub fn blocks_a_lane(&self) -> u32 {
        self.blocks.div_ceil(self.lanes)
    }

    /// Sums of a lane with the rows of one matrix that it works on at once: of every row with every input.
    pub fn matrix_sums(&self) -> u32 {
        self.tile.rows * self.inputs
    }

    /// Sums of a lane.
    pub fn sums(&self) -> u32 {
        self.matrices * self.matrix_sums()
    }

    /// Sums of a cube with one matrix.
    pub fn cube_matrix_sums(&self) -> u32 {
        self.tile.cube_rows() * self.inputs
    }

    /// Sums of a cube.
    pub fn cube_sums(&self) -> u32 {
        self.matrices * self.cube_matrix_sums()
    }

    /// Cubes for `rows` rows, along y and z: cubes that differ along x share their rows, and run side by side.
    pub fn cubes(&self, rows: usize) -> (u32, u32) {
        spread(rows.div_ceil(self.tile.cube_rows() as usize) as u32)
    }
}
