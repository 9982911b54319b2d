//! Saving and restoring a sequence: its pages are read from the pools and written back.
//!
//! A snapshot has two items per layer, the pages of its keys and those of its values, `[pages, kv_heads, 64, words]`, in order of
//! position.

use bytes::Bytes;
use gpu_kernels::{Buffer, PAGE};
use phase1_loading::AttentionKind;
use phase2_forward::{BadRequest, Engine, EngineError, SequenceId, Snapshot, Snapshots};

use super::engine::GpuEngine;
use super::error::GpuError;
use super::forward::Forward;

/// The name of this kind of engine in its snapshots.
const NAME: &str = "phase 5 on a GPU";

impl Snapshots for GpuEngine {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn save(&mut self, sequence: SequenceId) -> Result<Snapshot, EngineError> {
        if !self.pages().contains(sequence) {
            return Err(BadRequest::UnknownSequence(sequence).into());
        }
        let length = self.pages().length(sequence);
        let mut items = Vec::new();
        for (layer, &kind) in self.config().attention.iter().enumerate() {
            let (first, pages) = self.pages().held(sequence, kind);
            let pages: Vec<u32> = pages.iter().copied().collect();
            let forward = &self.runner.forward;
            let pool = forward.cache.layer(layer).pool;
            for pool in [pool.keys(), pool.values()] {
                items.push(read_pages(forward, pool, &pages, length - first * PAGE)?);
            }
        }
        Ok(Snapshot { engine: NAME.into(), length, items })
    }

    fn restore(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError> {
        let Forward { gpu, cache, config, .. } = &mut self.runner.forward;
        let page_bytes = 4 * cache.row.page_words();
        let first_sliding = config.attention.iter().position(|&kind| kind == AttentionKind::Sliding);
        let item = first_sliding.and_then(|layer| snapshot.items.get(2 * layer));
        let sliding = item.map_or(0, |item| item.len() / page_bytes);
        let counts = [AttentionKind::Full, AttentionKind::Sliding]
            .map(|kind| cache.pages.held_pages(snapshot.length.max(1), kind, sliding));
        let count = |kind| counts[usize::from(kind == AttentionKind::Sliding)];
        snapshot.check(NAME, config.context_length, |_| {
            config.attention.iter().flat_map(|&kind| [count(kind) * page_bytes; 2]).collect()
        })?;
        let updates = cache.pages.replace(sequence, snapshot.length, count)?;
        cache.prepare(&gpu.device, updates);
        let layers = config.attention.iter().zip(snapshot.items.as_chunks::<2>().0).enumerate();
        for (layer, (&kind, [keys, values])) in layers {
            let (_, pages) = cache.pages.held(sequence, kind);
            let pool = cache.layer(layer).pool;
            for (pool, item) in [(pool.keys(), keys), (pool.values(), values)] {
                for (&page, bytes) in pages.iter().zip(item.chunks_exact(page_bytes)) {
                    let words = bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
                    gpu.device.write_at(pool, page as usize * cache.row.page_words(), words);
                }
            }
        }
        self.forget_drawn(sequence);
        Ok(())
    }
}

/// Reads pages of a pool, with zeros past the first `written` positions.
fn read_pages(forward: &Forward, pool: &Buffer, pages: &[u32], written: usize) -> Result<Bytes, GpuError> {
    let row = forward.cache.row;
    let (page_words, row_words) = (row.page_words(), row.words());
    let parts: Vec<Buffer> = pages.iter().map(|&page| pool.part(page as usize * page_words, page_words)).collect();
    let read = forward.gpu.device.start_read(&parts.iter().collect::<Vec<_>>()).wait()?;
    let mut item = Vec::with_capacity(4 * pages.len() * page_words);
    for (number, page) in read.iter().enumerate() {
        for (row, words) in page[..page_words].chunks_exact(row_words).enumerate() {
            let is_written = number * PAGE + row % PAGE < written;
            item.extend(words.iter().flat_map(|word| if is_written { word.to_le_bytes() } else { [0; 4] }));
        }
    }
    Ok(item.into())
}
