//! A sequence's pages, taken out of the pools and put back: what [`Engine::save`](phase2_forward::Engine::save) promises.
//!
//! A snapshot has two items a layer, the pages of its keys and those of its values, `[pages, kv_heads, 64, words]`, in order of
//! position; a sliding layer's are its whole ring.

use bytes::Bytes;
use phase1_loading::AttentionKind;
use phase2_forward::{EngineError, SequenceId, Snapshot};

use super::GpuError;
use super::cache::{Caches, PAGE};
use super::device::{Buffer, Gpu};
use super::engine::GpuEngine;

/// What its snapshots are called.
const FORM: &str = "phase 5 on a GPU";

impl GpuEngine {
    /// `None` for an unknown sequence, or from a device that was lost.
    pub(super) fn save_sequence(&self, sequence: SequenceId) -> Option<Snapshot> {
        let length = self.caches.length(sequence);
        let mut items = Vec::new();
        for (layer, &attention) in self.config.attention.iter().enumerate() {
            let pages = &self.caches.pages(sequence, attention)?[..page_count(&self.caches, attention, length)];
            let pool = self.caches.layer(layer).pool;
            for pool in [&pool.keys, &pool.values] {
                items.push(take(&self.gpu, &self.caches, pool, pages, length).ok()?);
            }
        }
        Some(Snapshot { form: FORM.into(), length, items })
    }

    pub(super) fn restore_sequence(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError> {
        let page_bytes = 4 * self.caches.row.page_words();
        snapshot.check(FORM, self.config.context_length, |length| {
            let bytes = |&attention: &AttentionKind| [page_count(&self.caches, attention, length) * page_bytes; 2];
            self.config.attention.iter().flat_map(bytes).collect()
        })?;
        self.put(sequence, snapshot).map_err(|error| EngineError::Device(error.to_string()))
    }

    fn put(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), GpuError> {
        self.reserve_positions(sequence, snapshot.length)?;
        let (gpu, caches) = (&self.gpu, &self.caches);
        let layers = self.config.attention.iter().zip(snapshot.items.as_chunks::<2>().0).enumerate();
        for (layer, (&attention, [keys, values])) in layers {
            let pages = caches.pages(sequence, attention).expect("reserved");
            let pool = caches.layer(layer).pool;
            for (pool, item) in [(&pool.keys, keys), (&pool.values, values)] {
                let mut words = gpu.read(pool)?;
                for (&page, from) in pages.iter().zip(item.chunks_exact(4 * caches.row.page_words())) {
                    let to = &mut words[page as usize * caches.row.page_words()..][..caches.row.page_words()];
                    to.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| *to = u32::from_le_bytes(*from));
                }
                gpu.write(pool, words);
            }
        }
        self.caches.set_length(sequence, snapshot.length);
        Ok(())
    }
}

/// Pages that a snapshot of `length` positions has of such a layer.
fn page_count(caches: &Caches, attention: AttentionKind, length: usize) -> usize {
    match attention {
        AttentionKind::Full => length.div_ceil(PAGE),
        AttentionKind::Sliding => length.div_ceil(PAGE).min(caches.ring_pages),
    }
}

/// Some pages of a pool, zeros where the sequence has written nothing yet.
fn take(gpu: &Gpu, caches: &Caches, pool: &Buffer, pages: &[u32], length: usize) -> Result<Bytes, GpuError> {
    let words = gpu.read(pool)?;
    let (page_words, row_words) = (caches.row.page_words(), caches.row.words());
    let mut item = Vec::with_capacity(4 * pages.len() * page_words);
    for (number, &page) in pages.iter().enumerate() {
        let page = &words[page as usize * page_words..][..page_words];
        for (row, words) in page.chunks_exact(row_words).enumerate() {
            let written = number * PAGE + row % PAGE < length;
            item.extend(words.iter().flat_map(|word| if written { word.to_le_bytes() } else { [0; 4] }));
        }
    }
    Ok(item.into())
}
