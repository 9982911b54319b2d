//! Device buffers for the inputs and results of a pass.

use gpu_kernels::attention::{ROW_TILE_WORDS, partial_words, rows_per_tile};
use gpu_kernels::matvec::PAIR;
use gpu_kernels::moe::tile_words;
use gpu_kernels::{Buffer, Gpu, KvRow, ROW_WORDS};
use phase1_loading::GptOssConfig;

use super::plan::tile_splits;
use super::tuning::Tuning;

/// Buffers of one pass, for up to `rows` rows.
pub(super) struct Buffers {
    pub rows: usize,
    pub row_words: Buffer,
    pub row_tiles: Buffer,
    pub row_indices: Buffer,
    pub x: Buffer,
    pub qkv: Buffer,
    pub queries: Buffer,
    /// Results of attention for each split of the keys; `attention_out` has those for all keys.
    pub partials: Buffer,
    pub attention_out: Buffer,
    pub normed: Buffer,
    pub router_logits: Buffer,
    pub chosen: Buffer,
    pub weights: Buffer,
    pub activations: Buffer,
    /// (row, expert) slots sorted by expert, the tiles over them, and their products.
    pub sorted_slots: Buffer,
    pub slot_tiles: Buffer,
    pub products: Buffer,
    /// The row indices 0, 1, 2, ….
    pub every_row: Buffer,
}

impl Buffers {
    pub fn new(gpu: &Gpu, config: &GptOssConfig, row: KvRow, tuning: &Tuning, rows: usize) -> Buffers {
        let GptOssConfig { hidden, heads, kv_heads, head_dim, experts, experts_per_token, .. } = *config;
        let device = &gpu.device;
        // Fewer tiles have more splits each, so the maximum is taken over all numbers of rows.
        let tile = rows_per_tile(gpu, row, heads).unwrap_or(1);
        let most_splits =
            (1..=rows).map(|n| n * tile_splits(tuning, config, n.div_ceil(tile), usize::MAX)).max().unwrap_or(1);
        let slots = rows * experts_per_token;
        Buffers {
            rows,
            row_words: device.empty(rows * ROW_WORDS as usize),
            row_tiles: device.empty(rows * ROW_TILE_WORDS),
            row_indices: device.empty(rows),
            x: device.empty(rows * hidden),
            qkv: device.empty(rows * (heads + 2 * kv_heads) * head_dim),
            queries: device.empty(rows * heads * head_dim),
            partials: device.empty(most_splits * heads * partial_words(head_dim)),
            attention_out: device.empty(rows * heads * head_dim),
            normed: device.empty(rows * hidden),
            router_logits: device.empty(rows * experts),
            chosen: device.empty(slots),
            weights: device.empty(slots),
            activations: device.empty(slots * config.expert_width),
            sorted_slots: device.empty(slots),
            slot_tiles: device.empty(tile_words(slots, experts, PAIR)),
            products: device.empty(if rows == 1 { 0 } else { slots * hidden }),
            every_row: device.upload((0..rows as u32).collect()),
        }
    }
}
