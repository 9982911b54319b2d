//! What every attention kernel is given.

use cubecl::prelude::*;

use super::tiling::ROW_TILE_WORDS;
use crate::device::Buffer;
use crate::kv::{KvCache, KvRow};
use crate::rows::ROW_WORDS;

/// The most units of a cube that takes a single row: one holds four values of a group's output.
pub(super) const MOST_UNITS: u32 = 512;
/// The most values of the query heads that share a key/value head.
pub const MAX_GROUP: usize = 4 * MOST_UNITS as usize;
/// The most values of a head: a tile holds at least sixteen.
pub const MAX_HEAD_DIM: usize = 256;

/// Stands for −∞, which shading languages cannot write: below every score.
pub(super) const MASKED: f32 = -1.0e30;

/// Words of a partial result for one head: the weighted sum, the largest score and the sum of exponentials.
pub const fn partial_words(head_dim: usize) -> usize {
    head_dim + 2
}

/// Attention of `inputs` rows.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Rotated queries `[inputs, heads · head_dim]`.
    pub queries: &'a Buffer,
    /// `[inputs]` [rows](crate::Row).
    pub rows: &'a Buffer,
    pub cache: KvCache<'a>,
    /// `[heads]`
    pub sinks: &'a Buffer,
    /// `[inputs, heads · head_dim]`
    pub out: &'a Buffer,
    /// Room for `inputs · heads · splits` times [`partial_words`], if there are several splits.
    pub partials: &'a Buffer,
    /// Parts into which the keys of a row are split.
    pub splits: usize,
    pub heads: usize,
    /// Keys that a query sees at most, its own among them.
    pub reach: usize,
    pub inputs: usize,
}

impl Attention<'_> {
    /// A cube a key/value head, a split of its keys, and a row or tile of `count`.
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
            // The result, or partial ones.
            if self.splits == 1 { self.out } else { self.partials }.arg(),
            self.cache.columns as u32,
            self.cache.ring_word(),
            // Kernels add it to positions, and no sequence is as long.
            self.reach.min(1 << 30) as u32,
            1.0 / (self.cache.pool.row().head_dim() as f32).sqrt(),
            self.splits as u32,
        )
    }

    /// All but the queries.
    ///
    /// # Panics
    /// If a buffer is too short, or heads have a shape that no kernel takes.
    #[track_caller]
    pub(super) fn check(&self) {
        let Attention { heads, splits, inputs, .. } = *self;
        let row = self.cache.pool.row();
        let (kv_heads, head_dim) = (row.kv_heads(), row.head_dim());
        assert!(splits > 0 && self.reach > 0, "attention to nothing");
        assert!(heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads share {kv_heads} key/value heads");
        assert!(head_dim.is_multiple_of(4) && head_dim <= MAX_HEAD_DIM, "heads of {head_dim} values");
        assert!(heads / kv_heads * head_dim <= MAX_GROUP, "{} heads of {head_dim} values", heads / kv_heads);
        self.cache.check();
        self.rows.expect("the rows", inputs * ROW_WORDS as usize);
        self.sinks.expect("the sinks", heads);
        self.out.expect("attention's output", inputs * heads * head_dim);
        if splits > 1 {
            self.partials.expect("attention's partial results", inputs * heads * splits * partial_words(head_dim));
        }
    }

    /// # Panics
    /// If the rotated queries are too few.
    #[track_caller]
    pub(super) fn check_queries(&self) {
        self.queries.expect("the queries", self.inputs * self.heads * self.cache.pool.row().head_dim());
    }

    /// # Panics
    /// As [`Attention::check`], or if there are too few tiles.
    #[track_caller]
    pub(super) fn check_tiled(&self, tiles: &Buffer, count: usize) {
        self.check();
        self.check_queries();
        tiles.expect("the tiles of rows", count * ROW_TILE_WORDS);
    }
}

/// The buffers and numbers that every attention kernel has, but for queries, keys and values.
#[derive(CubeType, CubeLaunch)]
pub(super) struct KvArgs {
    pub rows: Box<[u32]>,
    /// The page table.
    pub pages: Box<[u32]>,
    pub sinks: Box<[f32]>,
    /// The result, or partial ones.
    pub out: Box<[f32]>,
    /// Columns of the page table.
    pub columns: u32,
    pub ring_pages: u32,
    pub reach: u32,
    pub scale: f32,
    pub splits: u32,
}

/// What a cube is shaped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub row: KvRow,
    /// Query heads.
    pub heads: u32,
    pub units: u32,
    /// Whether the keys are in one split, so that nothing is left to merge.
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

    /// Vectors of four values of a head.
    pub fn vectors(&self) -> u32 {
        self.dim() / 4
    }

    pub fn partial_words(&self) -> u32 {
        partial_words(self.row.head_dim()) as u32
    }
}

/// Normalizer of online softmax with a sink: what the weighted sum is multiplied by, `e^(m − m') / (l · e^(m − m') + e^(sink − m'))` with
/// `m' = max(m, sink)`, for the largest score m and the sum l of exponentials.
#[cube]
pub(super) fn normalizer(largest: f32, sum: f32, sink: f32) -> f32 {
    let most = max(largest, sink);
    let factor = (largest - most).exp();
    factor / (sum * factor + (sink - most).exp())
}
