//! Selects the kernels of a pass from the numbers of rows, sequences and keys; needs no device.

use gpu_kernels::PAGE;
use gpu_kernels::matmul::{TILE, TILE_ROWS};
use phase1_loading::GptOssConfig;
use phase2_forward::Operation;

use super::tuning::Tuning;

/// There is at most one split per this many keys, rounded up. Merging takes another launch, which costs more than reading a sliding layer's
/// window in one split.
const MIN_SPLIT: usize = 2 * PAGE;

/// Factor of `attention_cubes` for tiles. At a large depth, the cubes of a prompt take a long and nearly equal time. With several times as
/// many cubes as run at once, the time at the end in which the device is partly idle is a small share of the total.
const TILE_OVERSUBSCRIPTION: usize = 8;
/// The fewest keys of a split, if tiles are split further than by [`splits`]: with this many keys, the cost of merging is negligible.
const MIN_TILE_SPLIT: usize = 1024;

/// A batch of rows that goes through the layers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    pub rows: usize,
    /// Number of sequences that the rows belong to.
    pub sequences: usize,
    /// The most keys that a row attends to in a full layer.
    pub keys: usize,
    /// Number of tiles of rows for attention; `None` if attention is computed row by row.
    pub tiles: Option<usize>,
}

/// How products with a batch of rows are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Products {
    /// Row by row.
    Single,
    /// For pairs of slots that chose the same expert; only with experts.
    Pairs,
    /// In small batches.
    Small,
    /// In tiles of up to this many rows.
    Tiled(u32),
}

/// How attention is computed for the rows of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attend {
    /// Row by row, including rotary embedding and appending to the cache: no row attends to another row of the pass.
    Unrotated,
    /// Row by row.
    Rows,
    /// In this many tiles of rows.
    Tiles(usize),
}

impl Products {
    /// For `rows` rows and one matrix.
    pub fn dense(tuning: &Tuning, rows: usize) -> Products {
        if rows <= tuning.single_rows {
            Products::Single
        } else if rows < tuning.tiled_rows {
            Products::Small
        } else {
            Products::Tiled(tile_of(rows))
        }
    }

    /// For `rows` rows and their chosen experts: in tiles of 64 rows if an expert gets [`Tuning::tiled_slots`] rows on average. From
    /// [`Tuning::low_tile_rows`] rows of the step on, in the lowest tiles with twice the average.
    pub fn experts(tuning: &Tuning, config: &GptOssConfig, rows: usize) -> Products {
        let slots = rows * config.experts_per_token;
        if rows <= tuning.single_expert_rows {
            Products::Single
        } else if rows <= tuning.pair_rows {
            Products::Pairs
        } else if slots >= tuning.tiled_slots * config.experts {
            Products::Tiled(TILE)
        } else if rows >= tuning.low_tile_rows {
            // Few experts get more than twice the average.
            Products::Tiled(tile_of(2 * slots.div_ceil(config.experts)))
        } else {
            Products::Small
        }
    }
}

/// The lowest tile with at least `rows` rows, or the highest tile if there is none.
fn tile_of(rows: usize) -> u32 {
    TILE_ROWS.into_iter().find(|&tile| rows <= tile as usize).unwrap_or(TILE)
}

impl Pass {
    /// Whether no row attends to another row of the pass.
    fn is_alone(self) -> bool {
        self.rows == self.sequences
    }

    pub fn attend(self) -> Attend {
        match self.tiles {
            Some(count) => Attend::Tiles(count),
            None if self.is_alone() => Attend::Unrotated,
            None => Attend::Rows,
        }
    }

    /// The operations of a layer in order. If products are computed row by row, attention's norm is part of the product after it; the norm
    /// of the experts' inputs is always part of the router. If no row attends to another, appending to the cache is part of
    /// attention. The rotation is part of the operation that appends.
    pub fn operations(self, tuning: &Tuning) -> impl Iterator<Item = Operation> + use<> {
        let norm = (Products::dense(tuning, self.rows) != Products::Single).then_some(Operation::AttentionNorm);
        let append = (!self.is_alone()).then_some(Operation::CacheAppend);
        norm.into_iter().chain([Operation::Qkv]).chain(append).chain([
            Operation::Attention,
            Operation::AttentionOut,
            Operation::Router,
            Operation::GateUp,
            Operation::Down,
        ])
    }
}

/// Number of splits of the keys that keeps the GPU busy with `n` rows, or tiles of rows, that attend to `keys` keys.
pub(super) fn splits(tuning: &Tuning, config: &GptOssConfig, n: usize, keys: usize) -> usize {
    let wanted = tuning.attention_cubes.div_ceil(config.kv_heads * n);
    wanted.min(keys.div_ceil(MIN_SPLIT)).max(1)
}

/// As [`splits`], for tiles of rows.
pub(super) fn tile_splits(tuning: &Tuning, config: &GptOssConfig, tiles: usize, keys: usize) -> usize {
    let wanted = (TILE_OVERSUBSCRIPTION * tuning.attention_cubes).div_ceil(config.kv_heads * tiles);
    wanted.min(keys / MIN_TILE_SPLIT).max(splits(tuning, config, tiles, keys))
}

#[cfg(test)]
mod tests {
    use phase1_loading::{AttentionKind, RopeConfig};

    use super::*;

    fn config() -> GptOssConfig {
        GptOssConfig {
            hidden: 32,
            expert_width: 32,
            heads: 16,
            kv_heads: 8,
            head_dim: 4,
            experts: 32,
            experts_per_token: 4,
            vocab: 1,
            context_length: 4096,
            rms_eps: 1e-5,
            sliding_window: 128,
            attention: vec![AttentionKind::Full],
            rope: RopeConfig { theta: 1e4, factor: 1.0, original_context: 4096, ramp: Default::default() },
        }
    }

    #[test]
    fn more_rows_select_larger_products() {
        let (tuning, config) = (Tuning::default(), config());
        let dense = [1, 15, 16, 23, 24, 640].map(|rows| Products::dense(&tuning, rows));
        use Products::{Pairs, Single, Small, Tiled};
        assert_eq!(dense, [Single, Single, Small, Small, Tiled(32), Tiled(64)]);
        let experts = |tuning: &Tuning, rows| Products::experts(tuning, &config, rows);
        assert_eq!([15, 16, 127, 128].map(|rows| experts(&tuning, rows)), [Single, Small, Small, Tiled(64)]);
        let always = tuning.tiled_always();
        assert_eq!([1, 2, 17].map(|rows| Products::dense(&always, rows)), [Single, Tiled(16), Tiled(32)]);
        assert_eq!([1, 2, 65, 512].map(|rows| experts(&always, rows)), [Single, Tiled(16), Tiled(32), Tiled(64)]);
        let pairs = Tuning { single_expert_rows: 4, pair_rows: 10, ..tuning };
        assert_eq!([4, 5, 10, 11].map(|rows| experts(&pairs, rows)), [Single, Pairs, Pairs, Small]);
        assert_eq!(Products::dense(&pairs, 5), Single);
        // 4 of 32 experts per row: 64 rows are 8 per expert on average, half of the lowest tile.
        let low = Tuning { single_expert_rows: 3, low_tile_rows: 4, ..tuning };
        assert_eq!(
            [3, 4, 64, 65, 127, 128].map(|rows| experts(&low, rows)),
            [Single, Tiled(16), Tiled(16), Tiled(32), Tiled(32), Tiled(64)]
        );
    }

    #[test]
    fn single_rows_are_rotated_inside_attention() {
        let tuning = Tuning::default();
        let pass = Pass { rows: 8, sequences: 8, keys: 100, tiles: None };
        assert_eq!((pass.attend(), pass.operations(&tuning).count()), (Attend::Unrotated, 6));
        let together = Pass { sequences: 7, ..pass };
        assert_eq!((together.attend(), together.operations(&tuning).count()), (Attend::Rows, 7));
        let tiled = Pass { rows: 64, sequences: 1, tiles: Some(16), ..pass };
        assert_eq!((tiled.attend(), tiled.operations(&tuning).count()), (Attend::Tiles(16), 8));
    }

    #[test]
    fn keys_are_split_until_the_gpu_is_full() {
        let (tuning, config) = (Tuning::default(), config());
        let splits = |n, keys| splits(&tuning, &config, n, keys);
        assert_eq!(
            [splits(1, 128), splits(1, 129), splits(1, 100_000), splits(32, 100_000), splits(64, 1)],
            [1, 2, 32, 1, 1]
        );
        let of_tiles = |tiles, keys| tile_splits(&tuning, &config, tiles, keys);
        assert_eq!(
            [of_tiles(64, 512), of_tiles(64, 2048), of_tiles(64, 100_000), of_tiles(1, 512), of_tiles(1, 100_000)],
            [1, 2, 4, 4, 97]
        );
    }
}
