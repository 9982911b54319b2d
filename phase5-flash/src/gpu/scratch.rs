//! Where the results of a pass lie.

use phase1_loading::GptOssConfig;

use super::device::{Buffer, Gpu};
use super::kernels::few::FEW;
use super::kernels::group::{TILE_WORDS, most_tiles};
use super::kernels::prefill;
use super::pass::{rows_a_tile, splits};
use super::rows::ROW_WORDS;

/// Buffers of one pass, for up to `rows` rows.
pub(super) struct Scratch {
    pub rows: usize,
    pub row_words: Buffer,
    pub row_tiles: Buffer,
    pub picks: Buffer,
    pub x: Buffer,
    pub qkv: Buffer,
    pub queries: Buffer,
    pub shares: Buffer,
    pub mixed: Buffer,
    pub normed: Buffer,
    pub router_logits: Buffer,
    pub chosen: Buffer,
    pub weights: Buffer,
    pub activations: Buffer,
    /// The slots by expert, the tiles over them, and their products.
    pub order: Buffer,
    pub tiles: Buffer,
    pub products: Buffer,
    /// 0, 1, 2 …
    pub every_row: Buffer,
}

impl Scratch {
    pub fn new(gpu: &Gpu, config: &GptOssConfig, rows: usize) -> Scratch {
        let GptOssConfig { hidden, heads, kv_heads, head_dim, experts, experts_per_token, .. } = *config;
        // The fewest tiles have the most shares.
        let tile = rows_a_tile(gpu, config).unwrap_or(1);
        let most_splits = (1..=rows).map(|n| n * splits(gpu, config, n.div_ceil(tile), usize::MAX)).max().unwrap_or(1);
        let slots = rows * experts_per_token;
        Scratch {
            rows,
            row_words: gpu.empty(rows * ROW_WORDS as usize),
            row_tiles: gpu.empty(rows * prefill::TILE_WORDS),
            picks: gpu.empty(rows),
            x: gpu.empty(rows * hidden),
            qkv: gpu.empty(rows * (heads + 2 * kv_heads) * head_dim),
            queries: gpu.empty(rows * heads * head_dim),
            shares: gpu.empty(most_splits * heads * (head_dim + 2)),
            mixed: gpu.empty(rows * heads * head_dim),
            normed: gpu.empty(rows * hidden),
            router_logits: gpu.empty(rows * experts),
            chosen: gpu.empty(slots),
            weights: gpu.empty(slots),
            activations: gpu.empty(slots * config.expert_width),
            order: gpu.empty(slots),
            tiles: gpu.empty(most_tiles(slots, experts, FEW) * TILE_WORDS as usize),
            products: gpu.empty(if rows == 1 { 0 } else { slots * hidden }),
            every_row: gpu.upload((0..rows as u32).collect()),
        }
    }
}
