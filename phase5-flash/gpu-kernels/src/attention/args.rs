//! Arguments shared by all attention kernels.

use cubecl::prelude::*;

use super::tiling::ROW_TILE_WORDS;
use crate::device::Buffer;
use crate::kv::{KvCache, KvRow};
use crate::rows::ROW_WORDS;

/// The most units of a cube that handles a single row. A unit holds four output values of the query heads that share a key/value head.
pub(super) const MAX_UNITS: u32 = 512;
/// The largest total head size of the query heads that share a key/value head.
pub const MAX_GROUP: usize = 4 * MAX_UNITS as usize;
/// The largest head size: with it, a tile of keys in shared memory still holds sixteen keys.
pub const MAX_HEAD_DIM: usize = 256;

/// Stands for −∞, which shading languages cannot express. It is below every score.
pub(super) const MASKED: f32 = -1.0e30;

/// Words of a partial result for one head: the weighted sum, the largest score and the sum of exponentials.
pub const fn partial_words(head_dim: usize) -> usize {
    head_dim + 2
}

/// Attention of `inputs` rows over the cache.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Rotated queries `[inputs, heads · head_dim]`.
    pub queries: &'a Buffer,
    /// `[inputs]` [rows](crate::Row), which give the position of a query and the row of its sequence in the page table.
    pub rows: &'a Buffer,
    pub cache: KvCache<'a>,
    /// `[heads]`
    pub sinks: &'a Buffer,
    /// `[inputs, heads · head_dim]`
    pub out: &'a Buffer,
    /// Scratch for partial results, if there are several splits: [`partial_words`] for each of `inputs · heads · splits`.
    pub partials: &'a Buffer,
    /// Number of parts into which the keys of a row are split.
    pub splits: usize,
    pub heads: usize,
    /// The most keys that a query attends to, including its own.
    pub reach: usize,
    pub inputs: usize,
}

impl Attention<'_> {
    /// One cube per key/value head, split of the keys, and row or tile; `count` is the number of rows or tiles.
    pub(super) fn cubes(&self, count: usize) -> CubeCount {
        CubeCount::Static(self.cache.pool.row().kv_heads() as u32, self.splits as u32, count as u32)
    }

    pub(super) fn shape(&self, units: u32) -> Shape {
        Shape { row: self.cache.pool.row(), heads: self.heads as u32, units, whole: self.splits == 1 }
    }

    pub(super) fn args(&self) -> KvArgsLaunch {
        KvArgsLaunch::new(
            self.rows.arg(),
            self.cache.table.arg(),
            self.sinks.arg(),
            // The output, or partial results.
            if self.splits == 1 { self.out } else { self.partials }.arg(),
            self.cache.columns as u32,
            self.cache.ring_word(),
            // Kernels add this value to positions; it is limited so that the sum cannot overflow. No sequence is that long.
            self.reach.min(1 << 30) as u32,
            1.0 / (self.cache.pool.row().head_dim() as f32).sqrt(),
            self.splits as u32,
        )
    }

    /// Checks everything except the queries.
    ///
    /// # Panics
    /// If a buffer is too short, `splits` or `reach` is 0, the page table has no columns, the cache's `ring_pages` is 0, or no kernel
    /// supports the shape of the heads.
    #[track_caller]
    pub(super) fn check(&self) {
        let Attention { heads, splits, inputs, .. } = *self;
        let row = self.cache.pool.row();
        let (kv_heads, head_dim) = (row.kv_heads(), row.head_dim());
        assert!(splits > 0 && self.reach > 0, "attention needs at least one split and one key");
        assert!(
            heads > 0 && heads.is_multiple_of(kv_heads),
            "{heads} query heads cannot share {kv_heads} key/value heads"
        );
        assert!(head_dim.is_multiple_of(4) && head_dim <= MAX_HEAD_DIM, "heads of {head_dim} values are not supported");
        assert!(
            heads / kv_heads * head_dim <= MAX_GROUP,
            "{} query heads of {head_dim} values per key/value head are not supported",
            heads / kv_heads
        );
        self.cache.check();
        self.rows.expect("the rows", inputs * ROW_WORDS as usize);
        self.sinks.expect("the sinks", heads);
        self.out.expect("attention's output", inputs * heads * head_dim);
        if splits > 1 {
            self.partials.expect("attention's partial results", inputs * heads * splits * partial_words(head_dim));
        }
    }

    /// # Panics
    /// If there are too few rotated queries.
    #[track_caller]
    pub(super) fn check_queries(&self) {
        self.queries.expect("the queries", self.inputs * self.heads * self.cache.pool.row().head_dim());
    }

    /// # Panics
    /// As [`Attention::check`] and [`Attention::check_queries`], or if there are too few tiles.
    #[track_caller]
    pub(super) fn check_tiled(&self, tiles: &Buffer, count: usize) {
        self.check();
        self.check_queries();
        tiles.expect("the tiles of rows", count * ROW_TILE_WORDS);
    }
}

/// The buffers and numbers of every attention kernel, except queries, keys and values.
#[derive(CubeType, CubeLaunch)]
pub(super) struct KvArgs {
    pub rows: Box<[u32]>,
    /// The page table.
    pub pages: Box<[u32]>,
    pub sinks: Box<[f32]>,
    /// The output, or partial results.
    pub out: Box<[f32]>,
    /// Columns of the page table.
    pub columns: u32,
    pub ring_pages: u32,
    pub reach: u32,
    pub scale: f32,
    pub splits: u32,
}

/// The compile-time parameters of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub row: KvRow,
    /// Query heads.
    pub heads: u32,
    pub units: u32,
    /// Whether all keys are in one split, so that the kernel writes final results and no merge follows.
    pub whole: bool,
}

impl Shape {
    pub fn dim(&self) -> u32 {
        self.row.head_dim() as u32
    }

    pub fn kv_heads(&self) -> u32 {
        self.row.kv_heads() as u32
    }

    /// Query heads that share a key/value head.
    pub fn group(&self) -> u32 {
        self.heads / self.kv_heads()
    }

    /// Vectors of four values per head.
    pub fn vectors(&self) -> u32 {
        self.dim() / 4
    }

    pub fn partial_words(&self) -> u32 {
        partial_words(self.row.head_dim()) as u32
    }
}

/// Normalizer of online softmax with a sink. Multiply the weighted sum by `e^(m − m') / (l · e^(m − m') + e^(sink − m'))` with `m' = max(m,
/// sink)`, where m is the largest score and l the sum of exponentials.
#[cube]
pub(super) fn normalizer(largest: f32, sum: f32, sink: f32) -> f32 {
    let most = max(largest, sink);
    let factor = (largest - most).exp();
    factor / (sum * factor + (sink - most).exp())
}
