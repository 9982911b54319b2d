//! The keys that a cube attends to. The keys that a group of consecutive rows of a sequence sees are divided into tiles, and the tiles into
//! splits. A cube handles one split for one key/value head: its x position is the head, its y position the split.

use cubecl::prelude::*;

use super::args::KvArgs;
use crate::kv::PAGE;
use crate::rows::ROW_WORDS;

/// Tiles `start` to `end − 1` of a sequence's keys.
#[derive(CubeType)]
pub(super) struct KvSplit {
    /// The sequence's row in the page table.
    pub slot: u32,
    /// Positions of the first and the last row.
    pub position: u32,
    pub last: u32,
    /// The first key that the first row sees.
    pub first_key: u32,
    pub start: u32,
    pub end: u32,
}

#[cube]
impl KvSplit {
    /// This cube's split of the keys that rows `first` to `first + count − 1` see.
    pub fn new(args: &KvArgs, first: u32, count: u32, #[comptime] tile: u32) -> KvSplit {
        let position = args.rows[(first * ROW_WORDS + 1) as usize];
        let slot = args.rows[(first * ROW_WORDS + 2) as usize];
        let last = position + count - 1;
        let first_key = select(position + 1 > args.reach, position + 1 - args.reach, 0u32);
        let first_tile = first_key / tile;
        let tiles = last / tile + 1 - first_tile;
        let length = tiles.div_ceil(args.splits);
        let start = first_tile + CUBE_POS_Y * length;
        let end = min(start + length, first_tile + tiles);
        KvSplit { slot, position, last, first_key, start, end }
    }

    /// Whether the split contains the last row's own key.
    pub fn has_last(&self, #[comptime] tile: u32) -> bool {
        self.start < self.end && self.end > self.last / tile
    }

    /// Index in the pool of the first key of tile `number`, in units of the key of one head at one position.
    pub fn kv_slots(&self, args: &KvArgs, number: u32, #[comptime] kv_heads: u32, #[comptime] tile: u32) -> u32 {
        let tiles = comptime![PAGE as u32 / tile];
        let page = args.pages[(self.slot * args.columns + number / tiles % args.ring_pages) as usize];
        (page * kv_heads + CUBE_POS_X) * comptime![PAGE as u32] + number % tiles * tile
    }
}
