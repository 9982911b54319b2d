//! Shared parts of the kernels for several rows: arguments, and the rows that a tile reads and writes.

use cubecl::prelude::*;

use crate::matrix::Part;
use crate::product::Product;

/// Rows of inputs, or slots (pairs of a row and one of its experts), per tile.
pub const TILE: u32 = 64;
/// Rows, or slots, per tile on matrix units, which multiply all rows of a tile even if it has fewer.
pub const TILE_ROWS: [u32; 3] = [16, 32, TILE];

/// The buffers and shape of a product with one matrix, except its codes.
#[derive(CubeType, CubeLaunch)]
pub(super) struct DenseArgs {
    pub x: Box<[Vector<f32, Const<4>>]>,
    pub scales: Box<[u32]>,
    pub bias: Box<[f32]>,
    pub out: Box<[f32]>,
    pub inputs: u32,
    /// Number of rows in this part of the matrix, and its first row.
    pub rows: u32,
    pub first_row: u32,
    pub out_width: u32,
    pub blocks: u32,
}

/// The arguments of a product with one part of its matrix.
pub(super) fn dense_args(product: &Product<'_>, part: &Part) -> DenseArgsLaunch {
    let Product { matrix, x, bias, out, inputs, .. } = *product;
    DenseArgsLaunch::new(
        x.arg4(),
        part.scales.arg(),
        bias.unwrap_or(x).arg(),
        out.arg(),
        inputs as u32,
        part.rows as u32,
        part.first_row as u32,
        matrix.rows() as u32,
        matrix.blocks() as u32,
    )
}

/// The rows of a tile.
#[derive(CubeType)]
pub(super) struct TileRows {
    /// Row of `x` that each tile row reads. Tile rows past the last repeat the last, so that loads stay in bounds.
    pub sources: Shared<[u32]>,
    /// Row of the output that each tile row writes.
    pub targets: Shared<[u32]>,
    /// Number of rows.
    pub count: u32,
}

#[cube]
impl TileRows {
    /// Rows from `first` on, of `inputs` in total.
    pub fn dense(first: u32, inputs: u32, #[comptime] size: u32) -> TileRows {
        let mut sources = Shared::<[u32]>::new_slice(comptime![size as usize]);
        let mut targets = Shared::<[u32]>::new_slice(comptime![size as usize]);
        if UNIT_POS < size {
            let row = min(first + UNIT_POS, inputs - 1);
            sources[UNIT_POS as usize] = row;
            targets[UNIT_POS as usize] = row;
        }
        sync_cube();
        TileRows { sources, targets, count: min(inputs - first, size) }
    }

    /// `count` slots, at least one, from index `first` of the sorted slots on.
    pub fn slots(
        sorted_slots: &[u32],
        first: u32,
        count: u32,
        slots_per_input: u32,
        #[comptime] size: u32,
    ) -> TileRows {
        let mut sources = Shared::<[u32]>::new_slice(comptime![size as usize]);
        let mut targets = Shared::<[u32]>::new_slice(comptime![size as usize]);
        if UNIT_POS < size {
            let slot = sorted_slots[(first + min(UNIT_POS, count - 1)) as usize];
            sources[UNIT_POS as usize] = slot / slots_per_input;
            targets[UNIT_POS as usize] = slot;
        }
        sync_cube();
        TileRows { sources, targets, count }
    }
}

/// The destination of a tile's outputs: output `column` of row `row` goes to `row · width + first + column`, and its bias is at `first_bias
/// + column`.
#[derive(CubeType)]
pub(super) struct Outputs {
    pub width: u32,
    pub first: u32,
    pub first_bias: u32,
    /// Number of outputs.
    pub columns: u32,
}
