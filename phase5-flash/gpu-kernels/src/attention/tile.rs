//! Copies a tile of keys or values from the cache to shared memory in two steps: the tile is read into registers, still packed, while the
//! cube processes another tile, and is then unpacked into shared memory. A unit reads one piece at a time: a vector of four words of a key
//! or value, or in q8_0 a block.

use cubecl::prelude::*;

use crate::kv::{KvRow, piece_vector, read_piece};

/// How a tile is divided among units, and its layout in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub row: KvRow,
    /// Keys per tile; a divisor of [`PAGE`](crate::kv::PAGE).
    pub keys: u32,
    pub units: u32,
    /// Distance between two keys in shared memory, in vectors of four values.
    pub stride: u32,
    /// Whether words are reinterpreted as pairs of 16-bit floats.
    pub pairs: bool,
}

impl Tile {
    fn pieces(self) -> u32 {
        self.keys * self.row.pieces()
    }

    fn pieces_per_unit(self) -> u32 {
        self.pieces().div_ceil(self.units)
    }

    /// Vectors of four words that a unit reads.
    pub fn vectors_per_unit(self) -> usize {
        (self.pieces_per_unit() * self.row.piece_vectors()) as usize
    }
}

/// Reads this unit's pieces of the tile whose first key or value has the index `kv_slots` in the pool. Cached data after key `last_key` of
/// the tile may be NaN, so that key is read in place of later ones; their probabilities are zero.
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
    for round in 0..comptime![tile.pieces_per_unit()] {
        let i = UNIT_POS + comptime![round * tile.units];
        let row = kv_slots + min(i / pieces, last_key);
        let first = row * comptime![tile.row.vectors()] + i % pieces * comptime![tile.row.piece_vectors()];
        read_piece(pool, first, read, comptime![round * tile.row.piece_vectors()], tile.row);
    }
}

/// Unpacks the pieces that [`read_tile`] read into shared memory.
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
    for round in 0..comptime![tile.pieces_per_unit()] {
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
