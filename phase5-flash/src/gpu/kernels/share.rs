//! The keys that a cube attends to: a share, in tiles, of those that neighbouring rows of a sequence see, of one key/value head. The
//! head is the cube's number along x, the share its number along y.

use cubecl::prelude::*;

use crate::gpu::cache::PAGE;
use crate::gpu::rows::ROW_WORDS;

/// Tiles `start` to `end − 1` of a sequence's keys.
#[derive(CubeType)]
pub(super) struct Share {
    /// The sequence's number in the page tables.
    pub slot: u32,
    /// Positions of the first row and of the last.
    pub position: u32,
    pub last: u32,
    /// The first key that the first row sees.
    pub first_key: u32,
    pub start: u32,
    pub end: u32,
}

#[cube]
impl Share {
    /// The cube's, of `splits` shares of what `count` rows from row `first` on see, each of them `reach` keys at most.
    pub fn new(rows: &[u32], first: u32, count: u32, reach: u32, splits: u32, #[comptime] tile: u32) -> Share {
        let position = rows[(first * ROW_WORDS + 1) as usize];
        let slot = rows[(first * ROW_WORDS + 2) as usize];
        let last = position + count - 1;
        let first_key = select(position + 1 > reach, position + 1 - reach, 0u32);
        let first_tile = first_key / tile;
        let tiles = last / tile + 1 - first_tile;
        let share = tiles.div_ceil(splits);
        let start = first_tile + CUBE_POS_Y * share;
        let end = min(start + share, first_tile + tiles);
        Share { slot, position, last, first_key, start, end }
    }

    /// Whether the last row's own key is among them.
    pub fn has_last(&self, #[comptime] tile: u32) -> bool {
        self.start < self.end && self.end > self.last / tile
    }

    /// Where the keys of tile `number` begin in a pool: a cell is what one head keeps of one position.
    pub fn cells(
        &self,
        number: u32,
        pages: &[u32],
        columns: u32,
        ring_pages: u32,
        #[comptime] kv_heads: u32,
        #[comptime] tile: u32,
    ) -> u32 {
        let tiles = comptime![PAGE as u32 / tile];
        let page = pages[(self.slot * columns + number / tiles % ring_pages) as usize];
        (page * kv_heads + CUBE_POS_X) * comptime![PAGE as u32] + number % tiles * tile
    }
}
