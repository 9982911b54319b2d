//! Divides the rows of a pass into tiles that the tiled attention kernels process together.

use crate::rows::Row;

/// Words per tile: index of its first row, number of rows.
pub const ROW_TILE_WORDS: usize = 2;

/// Splits the rows of a pass into tiles of at most `most` rows. The rows of a tile are consecutive tokens of one sequence.
pub fn row_tiles(rows: &[Row], most: usize) -> Vec<u32> {
    let mut tiles: Vec<[u32; ROW_TILE_WORDS]> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let follows = |before: &Row| before.slot == row.slot && before.position + 1 == row.position;
        match tiles.last_mut() {
            Some([_, count]) if (*count as usize) < most && follows(&rows[i - 1]) => *count += 1,
            _ => tiles.push([i as u32, 1]),
        }
    }
    tiles.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_hold_consecutive_rows() {
        let row = |(slot, position)| Row { token: Some(0), position, slot };
        let rows = [(0, 5), (0, 6), (0, 7), (0, 8), (2, 9), (2, 3), (1, 4), (1, 5)].map(row);
        assert_eq!(row_tiles(&rows, 3).as_chunks::<2>().0, [[0, 3], [3, 1], [4, 1], [5, 1], [6, 2]]);
        assert!(row_tiles(&[], 3).is_empty());
    }
}
