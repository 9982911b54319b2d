//! Products of several rows that share reading and unpacking of the weights: a few rows at a time, or in tiles of 64 rows in f32, or in
//! tiles of 16, 32 or 64 rows on matrix units.

#[cfg(test)]
mod checks;
mod fragments;
mod operand;
mod small;
mod staging;
mod tiles;

pub use operand::{TILE, TILE_ROWS};
pub use small::{RowSplit, SMALL_BATCH};

use crate::gpu::Gpu;
use crate::product::{ExpertProduct, Product};
use staging::TileSize;

impl Product<'_> {
    /// Launches the product in batches of up to [`SMALL_BATCH`] rows.
    ///
    /// # Panics
    /// If a buffer is too short, or the matrix is a stack.
    pub fn launch_small(&self, gpu: &Gpu, split: RowSplit) {
        self.check();
        small::launch_dense(gpu, self, split);
    }

    /// Launches the product in tiles. If the device has matrix units and the matrix fits 16-bit floats, uses matrix units with up to
    /// `planes` planes per cube and tiles of `rows` rows, one of [`TILE_ROWS`]; otherwise computes in f32 with tiles of [`TILE`] rows.
    ///
    /// # Panics
    /// As [`Product::launch_small`].
    pub fn launch_tiled(&self, gpu: &Gpu, planes: u32, rows: u32) {
        self.check();
        match size_of(gpu, planes, rows, self.matrix.fits_f16()) {
            Some(size) => fragments::launch_dense(gpu, self, size),
            None => tiles::launch_dense(gpu, self),
        }
    }
}

impl ExpertProduct<'_> {
    /// Launches the product in batches of up to [`SMALL_BATCH`] slots. The tiles must be of that size.
    ///
    /// # Panics
    /// If a buffer is too short, or gate and up differ in shape or format.
    pub fn launch_small(&self, gpu: &Gpu, split: RowSplit) {
        self.check(operand::tile_words(self, SMALL_BATCH));
        small::launch_experts(gpu, self, split);
    }

    /// Launches the product in tiles, as [`Product::launch_tiled`]. The tiles of sorted slots must have up to `rows` slots.
    ///
    /// # Panics
    /// As [`ExpertProduct::launch_small`].
    pub fn launch_tiled(&self, gpu: &Gpu, planes: u32, rows: u32) {
        self.check(operand::tile_words(self, rows));
        match size_of(gpu, planes, rows, self.fits_f16()) {
            Some(size) => fragments::launch_experts(gpu, self, size),
            None => tiles::launch_experts(gpu, self, rows),
        }
    }
}

/// The fewest units of a cube: each row of a tile needs a unit.
const MIN_UNITS: u32 = TILE;

/// The size of a tile on matrix units, with as many planes, up to `count`, as shared memory allows; `None` if matrix units cannot be used.
///
/// # Panics
/// If `rows` is not one of [`TILE_ROWS`].
fn size_of(gpu: &Gpu, count: u32, rows: u32, fits_f16: bool) -> Option<TileSize> {
    assert!(TILE_ROWS.contains(&rows), "tiles have 16, 32 or 64 rows, not {rows}");
    let units = gpu.matrix_units().filter(|units| fits_f16 || units.are_emulated())?;
    let least = MIN_UNITS.div_ceil(units.planes(1).width);
    let counts = std::iter::successors(Some(count.max(least)), |&count| (count / 2 >= least).then_some(count / 2));
    let mut sizes = counts.map(|count| TileSize { planes: units.planes(count), rows });
    sizes.find(|&size| fragments::shared_bytes(size) <= gpu.device.shared_bytes())
}
