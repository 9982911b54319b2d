//! Attention over paged keys and values, with sinks and windows, for single rows and for tiles of several rows of a sequence.

mod args;
#[cfg(test)]
mod checks;
mod decode;
mod flash;
mod merge;
mod prefill;
mod split;
mod tile;
mod tiling;

pub use args::{Attention, MAX_GROUP, MAX_HEAD_DIM, partial_words};
pub use decode::Unrotated;
pub use tiling::{ROW_TILE_WORDS, row_tiles};

use crate::device::Buffer;
use crate::gpu::Gpu;
use crate::kv::KvRow;

/// Rows per tile, which attend together, on this device; `None` if no tiled kernel supports the heads' shape.
pub fn rows_per_tile(gpu: &Gpu, row: KvRow, heads: usize) -> Option<usize> {
    flash::rows_per_tile(gpu, row, heads).or_else(|| prefill::rows_per_tile(row, heads))
}

impl Attention<'_> {
    /// Runs attention over `count` tiles of [`rows_per_tile`] rows, made by [`row_tiles`]. Uses matrix units if the device has them and the
    /// heads' shape allows it.
    ///
    /// # Panics
    /// If a buffer is too short, or no tiled kernel supports the heads' shape.
    pub fn launch_tiled(&self, gpu: &Gpu, tiles: &Buffer, count: usize) {
        self.check_tiled(tiles, count);
        match flash::block(gpu, self.cache.pool.row(), self.heads) {
            Some(block) => flash::launch(&gpu.device, self, tiles, count, block),
            None => prefill::launch(&gpu.device, self, tiles, count),
        }
        merge::launch(&gpu.device, self);
    }
}
