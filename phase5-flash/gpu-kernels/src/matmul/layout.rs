//! How the planes of a cube share a [fragments](super::fragments) tile.

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::matrix_units::{MatrixUnits, Planes, SIDE};

/// Vectors of four columns in a block of 32.
const BLOCK: u32 = 8;
/// Vectors that separate the rows of shared memory, so that the rows of a fragment are in different banks.
const PADDING: u32 = 2;
/// Vectors of four sums per row of a square of each half: 16 low and 16 high outputs.
pub(super) const FOURS_PER_ROW: u32 = 2 * SIDE / 4;
/// Vectors of four sums of 16 rows.
pub(super) const FOURS: u32 = SIDE * FOURS_PER_ROW;
/// The fewest units of a cube: each row of a tile needs a unit.
const MIN_UNITS: u32 = super::TILE;

/// How the planes of a cube share the outputs and the columns of a tile. All numbers are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaneLayout {
    /// Planes per cube.
    pub planes: u32,
    /// Planes with the same outputs and different columns; their sums are added at the end. With one split, the planes of a cube have
    /// different outputs, and share the inputs. With more, a launch has more cubes, but each of them reads the inputs.
    pub splits: u32,
    /// Squares of 16 outputs in each half of a plane's tile.
    pub squares: u32,
    /// Blocks of 32 columns that a plane unpacks at once.
    pub step: u32,
    /// Steps per chunk. The weights of a chunk are read at once, and its inputs are in shared memory at once.
    pub steps: u32,
}

impl PlaneLayout {
    /// Two planes with different outputs, for products with enough outputs and rows to fill a device.
    pub const PAIRS: PlaneLayout = PlaneLayout { planes: 2, splits: 1, squares: 1, step: 2, steps: 1 };

    /// Whether the kernels support the layout.
    pub fn is_possible(&self) -> bool {
        let PlaneLayout { planes, splits, squares, step, steps } = *self;
        let within = |value: u32, most: u32| value.is_power_of_two() && value <= most;
        within(planes, 8) && within(splits, planes) && within(squares, 2) && within(step, 2) && within(steps, 4)
    }

    /// The layout nearest to this one that fits the shared memory and units of a device's cubes, in tiles of `rows` rows; `None` if none
    /// fits. The fewest planes that give each row of a tile a unit are not compared with the device's units.
    ///
    /// # Panics
    /// If the layout is not [possible](PlaneLayout::is_possible).
    pub(super) fn fitted(self, device: &Device, units: MatrixUnits, rows: u32) -> Option<TileSize> {
        assert!(self.is_possible(), "{self:?} is not supported");
        let least = MIN_UNITS.div_ceil(units.planes(1).width);
        let fits = |size: &TileSize| {
            size.shared_bytes() <= device.shared_bytes()
                && (size.planes.count == least || size.units() <= device.max_units())
        };
        let mut layout = self;
        loop {
            let planes = units.planes(layout.planes.max(least));
            let size = TileSize {
                planes,
                rows,
                splits: layout.splits.min(planes.count),
                squares: layout.squares,
                step: layout.step,
                steps: layout.steps,
            };
            if fits(&size) {
                return Some(size);
            }
            match layout {
                PlaneLayout { steps: 2.., .. } => layout.steps /= 2,
                PlaneLayout { step: 2.., .. } => layout.step /= 2,
                PlaneLayout { squares: 2.., .. } => layout.squares /= 2,
                _ if planes.count > least => layout.planes = planes.count / 2,
                _ => return None,
            }
        }
    }
}

/// The size of a tile. Each plane computes 16 or 32 outputs of the tile's low half and as many of its high half, for some of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TileSize {
    pub planes: Planes,
    /// Rows of the inputs: 16, 32 or 64.
    pub rows: u32,
    /// As in [`PlaneLayout`].
    pub splits: u32,
    pub squares: u32,
    pub step: u32,
    pub steps: u32,
}

impl TileSize {
    pub const fn units(self) -> u32 {
        self.planes.units()
    }

    /// Fragments along the rows.
    pub const fn rounds(self) -> u32 {
        self.rows / SIDE
    }

    /// Planes with different outputs.
    pub const fn groups(self) -> u32 {
        self.planes.count / self.splits
    }

    /// Outputs of a plane in each half of a tile.
    pub const fn plane_half(self) -> u32 {
        SIDE * self.squares
    }

    /// Outputs in each half of a tile.
    pub const fn half(self) -> u32 {
        self.plane_half() * self.groups()
    }

    /// Blocks whose inputs are in shared memory at once.
    pub const fn chunk(self) -> u32 {
        self.step * self.steps
    }

    /// Units that share the inputs of a split.
    pub const fn split_units(self) -> u32 {
        self.units() / self.splits
    }

    /// Vectors per row of the inputs in shared memory.
    pub const fn inputs_stride(self) -> u32 {
        BLOCK * self.chunk() + PADDING
    }

    /// Vectors of the inputs in shared memory.
    pub const fn inputs(self) -> u32 {
        self.splits * self.rows * self.inputs_stride()
    }

    /// Vectors per row of the weights in shared memory.
    pub const fn weights_stride(self) -> u32 {
        BLOCK * self.step + PADDING
    }

    /// Vectors of a plane's weights in shared memory.
    pub const fn plane_weights(self) -> u32 {
        2 * self.plane_half() * self.weights_stride()
    }

    /// Shared memory in bytes.
    fn shared_bytes(self) -> usize {
        let operands = self.inputs() + self.planes.count * self.plane_weights();
        (4 * self.planes.operand_bytes() * operands + 16 * self.planes.count * FOURS + 2 * 4 * self.rows) as usize
    }

    /// Groups of eight columns per row of the inputs in shared memory.
    pub const fn eights_per_row(self) -> u32 {
        4 * self.chunk()
    }

    /// Groups of eight columns of the inputs that a unit reads per chunk.
    pub const fn eights_per_unit(self) -> u32 {
        (self.rows * self.eights_per_row()).div_ceil(self.split_units())
    }

    /// Blocks of weights of a plane per step: one or two for each of its outputs.
    pub const fn plane_blocks(self) -> u32 {
        2 * self.plane_half() * self.step
    }

    /// Blocks of weights that a lane unpacks per step.
    pub const fn blocks_per_lane(self) -> u32 {
        self.plane_blocks().div_ceil(self.planes.width)
    }
}
