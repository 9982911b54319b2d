//! Products of several rows that share reading and unpacking of the weights: a few rows at a time, or in tiles of up to 64 rows in f32, or
//! in tiles of 16, 32 or 64 rows on matrix units.

#[cfg(test)]
pub(crate) mod checks;
mod fragments;
mod layout;
mod operand;
mod small;
mod staging;
mod tiles;

pub use layout::PlaneLayout;
pub use operand::{TILE, TILE_ROWS};
pub use small::{RowSplit, SMALL_BATCH};

use crate::gpu::Gpu;
use crate::product::{ExpertProduct, Product, tile_words};
use layout::TileSize;

impl Product<'_> {
    /// Launches the product in batches of up to [`SMALL_BATCH`] rows.
    ///
    /// # Panics
    /// If there are no rows, a buffer is too short, or the matrix is a stack of several.
    pub fn launch_small(&self, gpu: &Gpu, split: RowSplit) {
        self.check();
        small::launch_dense(gpu, self, split);
    }

    /// Launches the product in tiles. If the device has matrix units, and the matrix fits 16-bit floats or the units are emulated, uses
    /// them with tiles of `rows` rows, one of [`TILE_ROWS`], and `layout`, as far as shared memory allows; otherwise computes in f32 with
    /// tiles of [`TILE`] rows.
    ///
    /// # Panics
    /// As [`Product::launch_small`], or if `rows` is not one of [`TILE_ROWS`], or matrix units are used and `layout` is not
    /// [possible](PlaneLayout::is_possible).
    pub fn launch_tiled(&self, gpu: &Gpu, layout: PlaneLayout, rows: u32) {
        self.check();
        match size_of(gpu, layout, rows, self.matrix.fits_f16()) {
            Some(size) => fragments::launch_dense(gpu, self, size),
            None => tiles::launch_dense(gpu, self),
        }
    }
}

impl ExpertProduct<'_> {
    /// Launches the product in batches of up to [`SMALL_BATCH`] slots. [`ExpertProduct::tiles`] must have been written for that size.
    ///
    /// # Panics
    /// If a buffer is too short, a stack of matrices is in several parts, or gate and up differ in shape or format.
    pub fn launch_small(&self, gpu: &Gpu, split: RowSplit) {
        self.check(tile_words(self, SMALL_BATCH));
        small::launch_experts(gpu, self, split);
    }

    /// Launches the product in tiles, as [`Product::launch_tiled`]. The tiles of sorted slots must have up to `rows` slots, in f32 too.
    ///
    /// # Panics
    /// As [`ExpertProduct::launch_small`], or if `rows` is not one of [`TILE_ROWS`], or matrix units are used and `layout` is
    /// not [possible](PlaneLayout::is_possible).
    pub fn launch_tiled(&self, gpu: &Gpu, layout: PlaneLayout, rows: u32) {
        self.check(tile_words(self, rows));
        match size_of(gpu, layout, rows, self.fits_f16()) {
            Some(size) => fragments::launch_experts(gpu, self, size),
            None => tiles::launch_experts(gpu, self, rows),
        }
    }
}

/// The size of a tile on matrix units; `None` if matrix units cannot be used.
///
/// # Panics
/// If `rows` is not one of [`TILE_ROWS`], or matrix units can be used and the layout is not possible.
fn size_of(gpu: &Gpu, layout: PlaneLayout, rows: u32, fits_f16: bool) -> Option<TileSize> {
    assert!(TILE_ROWS.contains(&rows), "tiles have 16, 32 or 64 rows, not {rows}");
    let units = gpu.matrix_units().filter(|units| fits_f16 || units.are_emulated())?;
    layout.fitted(&gpu.device, units, rows)
}
