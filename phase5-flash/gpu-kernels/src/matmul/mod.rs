//! Products of several rows that share reading and unpacking of the weights: a few rows at a time, or in tiles of 64, in f32 or on matrix
//! units.

#[cfg(test)]
mod checks;
mod fragments;
mod operand;
mod small;
mod staging;
mod tiles;

pub use operand::TILE;
pub use small::{RowSplit, SMALL_BATCH};

use crate::gpu::Gpu;
use crate::matrix_units::Planes;
use crate::product::{ExpertProduct, Product};

impl Product<'_> {
    /// Launches the product in batches of up to [`SMALL_BATCH`] rows.
    ///
    /// # Panics
    /// If a buffer is too short, or the matrix is a stack.
    pub fn launch_small(&self, gpu: &Gpu, split: RowSplit) {
        self.check();
        small::launch_dense(gpu, self, split);
    }

    /// Launches the product in tiles of [`TILE`] rows: with up to `planes` planes per cube on matrix units, if the device has them and the
    /// matrix fits 16-bit floats; otherwise in f32.
    ///
    /// # Panics
    /// As [`Product::launch_small`].
    pub fn launch_tiled(&self, gpu: &Gpu, planes: u32) {
        self.check();
        match planes_of(gpu, planes, self.matrix.fits_f16()) {
            Some(planes) => fragments::launch_dense(gpu, self, planes),
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

    /// Launches the product in tiles of [`TILE`] slots, as [`Product::launch_tiled`].
    ///
    /// # Panics
    /// As [`ExpertProduct::launch_small`].
    pub fn launch_tiled(&self, gpu: &Gpu, planes: u32) {
        self.check(operand::tile_words(self, TILE));
        match planes_of(gpu, planes, self.fits_f16()) {
            Some(planes) => fragments::launch_experts(gpu, self, planes),
            None => tiles::launch_experts(gpu, self),
        }
    }
}

/// The fewest units of a cube: with fewer, some row of a tile would have no unit.
const MIN_UNITS: u32 = TILE;

/// The planes of a cube on matrix units: up to `count`, as many as shared memory allows; `None` if matrix units cannot be used.
fn planes_of(gpu: &Gpu, count: u32, fits_f16: bool) -> Option<Planes> {
    let units = gpu.matrix_units().filter(|units| fits_f16 || units.are_emulated())?;
    let least = MIN_UNITS.div_ceil(units.planes(1).width);
    let counts = std::iter::successors(Some(count.max(least)), |&count| (count / 2 >= least).then_some(count / 2));
    counts.map(|count| units.planes(count)).find(|&planes| fragments::shared_bytes(planes) <= gpu.device.shared_bytes())
}
