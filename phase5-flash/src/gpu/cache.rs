//! The KV cache on the device: keys and values of all sequences, in pages of 64 positions.
//!
//! [`Pages`] allocates pages on the host. This file has the pools that hold them, and the page tables that kernels read. The n-th full
//! layer and the n-th sliding layer share a pool: no page belongs to both kinds of layers at once.

use gpu_kernels::kv::{NO_PAGE, prepare_pages};
use gpu_kernels::{Buffer, Device, KvCache, KvPool, KvRow, PAGE};
use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::SequenceId;

use super::error::GpuError;
use crate::pages::{Full, POSITIONS, Pages, REWIND, Reuse, Room};

const _: () = assert!(PAGE == POSITIONS, "the host counts pages as kernels do");

/// The most sequences that the page tables have room for.
pub(crate) const SLOTS: usize = 1024;
/// Default size in bytes of the pools if the driver does not report how much memory there is.
const UNKNOWN_MEMORY: u64 = 1 << 30;

/// The caches of all sequences.
pub(crate) struct Cache {
    pub row: KvRow,
    pub pages: Pages,
    kinds: Vec<AttentionKind>,
    /// The pool of each layer.
    pool_of: Vec<usize>,
    pools: Vec<KvPool>,
    full: Table,
    sliding: Table,
    /// The slot of padding rows. Its page is the one after those of sequences.
    pub padding_slot: u32,
}

/// The page table of layers of one kind: the pages of each slot.
struct Table {
    /// `[slots, columns]`; page n is in column n modulo `ring`.
    device: Buffer,
    columns: usize,
    ring: usize,
}

impl Cache {
    /// Allocates pools of `total` pages. `longest_pass` is the most tokens that one pass adds to a sequence.
    pub fn new(device: &Device, config: &GptOssConfig, row: KvRow, total: usize, longest_pass: usize) -> Cache {
        let context = config.context_length.div_ceil(PAGE).min(total).max(1);
        let ring = ((config.sliding_window + REWIND + longest_pass).div_ceil(PAGE) + 1).min(context);
        let slots = SLOTS.min(total) + 1;
        let pool = |_| KvPool::new(device, row, total + 1);
        let table = |columns: usize, ring| {
            let mut words = vec![0; slots * columns];
            words[(slots - 1) * columns..].fill(total as u32);
            Table { device: device.upload(words), columns, ring }
        };
        let cache = Cache {
            row,
            pages: Pages::new(total, config.sliding_window, &config.attention, Reuse::Cleared),
            kinds: config.attention.clone(),
            pool_of: numbers_by_kind(&config.attention),
            pools: (0..pool_count(config)).map(pool).collect(),
            full: table(context, u32::MAX as usize),
            sliding: table(ring, ring),
            padding_slot: (slots - 1) as u32,
        };
        let every: Vec<[u32; 2]> = (0..=total as u32).map(|page| [NO_PAGE, page]).collect();
        prepare_pages(device, &cache.pools, &every);
        cache
    }

    /// Size in bytes of a page in all pools together.
    fn page_bytes(config: &GptOssConfig, row: KvRow) -> u64 {
        (pool_count(config) * 2 * row.page_words() * 4) as u64
    }

    /// The number of pages that fit into `bytes`, or by default into the memory that the device has left.
    ///
    /// # Errors
    /// Too little for one page per kind of layer, or less free memory than `bytes`.
    pub fn count(device: &Device, config: &GptOssConfig, row: KvRow, bytes: Option<u64>) -> Result<usize, GpuError> {
        let page = Cache::page_bytes(config, row);
        let bindable = (device.binding_bytes() / (row.page_words() as u64 * 4)).saturating_sub(1) as usize;
        if let Some(bytes) = bytes {
            device.expect_memory("the KV cache", bytes)?;
        }
        let left = device.memory_left().map_or(UNKNOWN_MEMORY, |left| left / 10 * 9);
        // One page is reserved for padding rows.
        let count = Pages::count(config.context_length, page, bytes, Some(left)).saturating_sub(1).min(bindable);
        // A sequence of one token has one page in each kind of layer.
        match count >= 2 {
            true => Ok(count),
            false => Err(GpuError::NoCache { page, given: bytes.or(device.memory_left()).unwrap_or(UNKNOWN_MEMORY) }),
        }
    }

    pub fn length(&self, sequence: SequenceId) -> usize {
        self.pages.length(sequence)
    }

    pub fn slot(&self, sequence: SequenceId) -> u32 {
        self.pages.slot(sequence)
    }

    /// Allocates pages so that sequences can grow to new lengths: for all of them or for none.
    ///
    /// # Errors
    /// Too few free pages; nothing has changed then.
    pub fn extend(&mut self, device: &Device, wishes: &[(SequenceId, usize)]) -> Result<(), Full> {
        let room = self.pages.extend(wishes)?;
        self.prepare(device, room);
        Ok(())
    }

    /// Copies and clears the pages of `room`, and updates the page tables on the device.
    pub fn prepare(&mut self, device: &Device, room: Room) {
        let copies = room.copies.iter().map(|copy| [copy.from, copy.to]);
        let pairs: Vec<[u32; 2]> = copies.chain(room.cleared.iter().map(|&page| [NO_PAGE, page])).collect();
        prepare_pages(device, &self.pools, &pairs);
        for sequence in self.pages.take_changed() {
            for (kind, table) in [(AttentionKind::Full, &self.full), (AttentionKind::Sliding, &self.sliding)] {
                let (first, pages) = self.pages.held(sequence, kind);
                let mut words = vec![0; (first + pages.len()).min(table.columns)];
                for (number, &page) in (first..).zip(pages) {
                    words[number % table.columns] = page;
                }
                device.write_at(&table.device, self.pages.slot(sequence) as usize * table.columns, words);
            }
        }
    }

    pub fn layer(&self, layer: usize) -> KvCache<'_> {
        let table = match self.kinds[layer] {
            AttentionKind::Full => &self.full,
            AttentionKind::Sliding => &self.sliding,
        };
        let pool = &self.pools[self.pool_of[layer]];
        KvCache { pool, table: &table.device, columns: table.columns, ring_pages: table.ring }
    }

    /// The positions that the next token of an existing sequence attends to in `layer`, each with the row of its pool for head 0.
    pub fn places(&self, sequence: SequenceId, layer: usize, window: usize) -> Vec<(usize, usize)> {
        let length = self.length(sequence);
        let oldest = match self.kinds[layer] {
            AttentionKind::Full => 0,
            AttentionKind::Sliding => length.saturating_sub(window),
        };
        let mut places = self.places_up_to(sequence, layer, length);
        places.retain(|&(position, _)| position >= oldest);
        places
    }

    /// All cached positions below `length` in `layer`, each with the row of its pool for head 0.
    pub fn places_up_to(&self, sequence: SequenceId, layer: usize, length: usize) -> Vec<(usize, usize)> {
        let (gone, pages) = self.pages.held(sequence, self.kinds[layer]);
        let place = |position: usize| {
            let page = pages[position / PAGE - gone] as usize;
            (position, page * self.row.kv_heads() * PAGE + position % PAGE)
        };
        (gone * PAGE..length).map(place).collect()
    }
}

/// Number of pools that the layers need.
fn pool_count(config: &GptOssConfig) -> usize {
    numbers_by_kind(&config.attention).into_iter().max().map_or(0, |last| last + 1)
}

/// For each layer, the number of earlier layers of its kind.
fn numbers_by_kind(kinds: &[AttentionKind]) -> Vec<usize> {
    let before = |layer: usize| kinds[..layer].iter().filter(|&&kind| kind == kinds[layer]).count();
    (0..kinds.len()).map(before).collect()
}
