//! A tile of keys, or of values, on its way from the cache to shared memory: as it is packed it waits in registers, while a cube works
//! on another.

use cubecl::prelude::*;

use crate::kv::{KvRow, piece_vector, read_piece};

/// How units share out a tile, and how it lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub row: KvRow,
    /// Keys of a tile; they divide a page's.
    pub keys: u32,
    pub units: u32,
    /// Vectors of four values from a key to the next in shared memory.
    pub stride: u32,
    /// Whether words are taken for pairs of 16-bit floats.
    pub pairs: bool,
}

impl Tile {
    fn pieces(self) -> u32 {
        self.keys * self.row.pieces()
    }

    fn pieces_a_unit(self) -> u32 {
        self.pieces().div_ceil(self.units)
    }

    /// Vectors of four words that a unit reads.
    pub fn vectors_a_unit(self) -> usize {
        (self.pieces_a_unit() * self.row.piece_vectors()) as usize
    }
}

/// Reads this unit's pieces of the tile that begins at `kv_slots`. Past `last_key` the last key is read in its place: probabilities are
/// zero there, and what lies there may be NaN.
#[cube]
pub(super) fn read_tile(
    pool: &[Vector<u32, Const<4>>],
    kv_slots: u32,
    last_key: u32,
    read: &mut Array<Vector<u32, Const<4>>>,
    #[comptime] tile: Tile,
) {
    let pieces = comptime![tile.row.pieces()];
    #[unroll]
    for round in 0..comptime![tile.pieces_a_unit()] {
        let i = UNIT_POS + comptime![round * tile.units];
        let row = kv_slots + min(i / pieces, last_key);
        let first = row * comptime![tile.row.vectors()] + i % pieces * comptime![tile.row.piece_vectors()];
        read_piece(pool, first, read, comptime![round * tile.row.piece_vectors()], tile.row);
    }
}

/// Unpacks the pieces that [`read_tile`] read where all units see them.
#[cube]
pub(super) fn write_tile<T: Float>(
    read: &Array<Vector<u32, Const<4>>>,
    shared: &mut Shared<[Vector<T, Const<4>>]>,
    #[comptime] tile: Tile,
) {
    let pieces = comptime![tile.row.pieces()];
    let fours = comptime![tile.row.piece_values() as u32 / 4];
    let (units, whole) = comptime![(tile.units, tile.pieces())];
    #[unroll]
    for round in 0..comptime![tile.pieces_a_unit()] {
        let i = UNIT_POS + comptime![round * units];
        if comptime![whole.is_multiple_of(units)] || i < whole {
            let first = i / pieces * comptime![tile.stride] + i % pieces * fours;
            #[unroll]
            for four in 0..fours {
                let at = comptime![round * tile.row.piece_vectors()];
                shared[(first + four) as usize] = piece_vector::<T>(read, at, four, tile.row, tile.pairs);
            }
        }
    }
}
