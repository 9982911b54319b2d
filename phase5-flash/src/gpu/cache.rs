//! The KV cache on the device: keys and values of all sequences, in pages of 64 positions.
//!
//! [`Pages`] allocates pages on the host. This file has the pools that hold them, and the page tables that kernels read. The n-th full
//! layer and the n-th sliding layer share a pool: no page belongs to both kinds of layers at once.

use gpu_kernels::kv::{NO_PAGE, prepare_pages};
use gpu_kernels::{Buffer, Device, Error, KvCache, KvPool, KvRow, PAGE};
use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::SequenceId;

use super::error::GpuError;
use crate::pages::{Full, POSITIONS, PageUpdates, Pages, REWIND, Reuse};

const _: () = assert!(PAGE == POSITIONS, "the host counts pages as kernels do");

/// The most sequences that the page tables have room for.
pub(crate) const SLOTS: usize = 1024;
/// Default size in bytes of the pools if the driver does not report how much memory there is.
const UNKNOWN_MEMORY: u64 = 1 << 30;
/// A sequence of one token has a page in each kind of layer; one more is for padding.
const MIN_PAGES: usize = 3;

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
    /// Allocates pools of `total` pages for sequences and one for padding. `longest_pass` is the most tokens that one pass adds to a
    /// sequence.
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

    /// The number of pages for sequences, with which the pools fit into `bytes`. By default those of a full context and some more, as far
    /// as they fit into nine tenths of the memory that the device has left.
    ///
    /// # Errors
    /// As [`Bounds::pages`], or there is less free memory than `bytes`.
    pub fn count(device: &Device, config: &GptOssConfig, row: KvRow, bytes: Option<u64>) -> Result<usize, GpuError> {
        if let Some(bytes) = bytes {
            device.expect_memory("the KV cache", bytes)?;
        }
        Bounds { given: bytes, left: device.memory_available(), binding: device.binding_bytes() }.pages(config, row)
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
    /// Too few pages are free; nothing has changed then.
    pub fn extend(&mut self, device: &Device, lengths: &[(SequenceId, usize)]) -> Result<(), Full> {
        let updates = self.pages.extend(lengths)?;
        self.prepare(device, updates);
        Ok(())
    }

    /// Copies and clears the pages of `updates`, and updates the page tables on the device.
    pub fn prepare(&mut self, device: &Device, updates: PageUpdates) {
        let copies = updates.copies.iter().map(|copy| [copy.from, copy.to]);
        let pairs: Vec<[u32; 2]> = copies.chain(updates.cleared.iter().map(|&page| [NO_PAGE, page])).collect();
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
    pub fn position_rows(&self, sequence: SequenceId, layer: usize, window: usize) -> Vec<(usize, usize)> {
        let length = self.length(sequence);
        let oldest = match self.kinds[layer] {
            AttentionKind::Full => 0,
            AttentionKind::Sliding => length.saturating_sub(window),
        };
        let mut places = self.position_rows_up_to(sequence, layer, length);
        places.retain(|&(position, _)| position >= oldest);
        places
    }

    /// All cached positions below `length` in `layer`, each with the row of its pool for head 0.
    pub fn position_rows_up_to(&self, sequence: SequenceId, layer: usize, length: usize) -> Vec<(usize, usize)> {
        let (gone, pages) = self.pages.held(sequence, self.kinds[layer]);
        let place = |position: usize| {
            let page = pages[position / PAGE - gone] as usize;
            (position, page * self.row.kv_heads() * PAGE + position % PAGE)
        };
        (gone * PAGE..length).map(place).collect()
    }
}

/// The limits of the pools' sizes, in bytes.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// For all pools together, from the user.
    given: Option<u64>,
    /// Memory that this process does not use yet, if the driver reports the total.
    left: Option<u64>,
    /// The largest size of a binding. The keys of a pool must fit into one binding, and so must its values.
    binding: u64,
}

impl Bounds {
    /// The number of pages for sequences; the pools hold one more, for padding. It is limited so that each pool fits its bindings.
    ///
    /// # Errors
    /// Fewer than [`MIN_PAGES`] pages fit into the given memory, into nine tenths of the memory that is left, or into a binding.
    fn pages(self, config: &GptOssConfig, row: KvRow) -> Result<usize, GpuError> {
        let part = 4 * row.page_words() as u64;
        let page = 2 * pool_count(config) as u64 * part;
        let bindable = usize::try_from(self.binding / part).unwrap_or(usize::MAX);
        if bindable < MIN_PAGES {
            let (need, limit) = (MIN_PAGES as u64 * part, self.binding);
            return Err(Error::Limit { what: "the smallest KV cache".into(), need, limit }.into());
        }
        let free = self.left.map_or(UNKNOWN_MEMORY, |left| left / 10 * 9);
        let count = Pages::count(config.context_length, page, self.given, Some(free)).min(bindable);
        match count >= MIN_PAGES {
            true => Ok(count - 1),
            false => Err(GpuError::NoCache { page, given: self.given.unwrap_or(free) }),
        }
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

#[cfg(test)]
mod tests {
    use phase1_loading::RopeConfig;
    use phase3_kvcache::CacheType;

    use super::*;

    /// Bytes of a page in one binding: 64 positions of 2 heads of 64 values in f16.
    const PART_BYTES: u64 = 64 * 2 * 64 * 2;
    /// Bytes of a page in all pools: keys and values, and 3 pools for 6 layers of which half are sliding.
    const PAGE_BYTES: u64 = 3 * 2 * PART_BYTES;

    fn pages(bounds: Bounds) -> Result<usize, GpuError> {
        let config = GptOssConfig {
            hidden: 64,
            expert_width: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            experts: 4,
            experts_per_token: 4,
            vocab: 100,
            context_length: 1 << 20,
            rms_eps: 1e-5,
            sliding_window: 128,
            attention: AttentionKind::alternating(6),
            rope: RopeConfig { theta: 1e4, factor: 1.0, original_context: 4096, ramp: Default::default() },
        };
        bounds.pages(&config, KvRow::new(CacheType::F16, config.kv_heads, config.head_dim).expect("whole words"))
    }

    /// A pool has as many pages as fit into a binding, even if more memory is given or free.
    #[test]
    fn a_pool_fits_its_binding() {
        let most = |binding, given| {
            let count = pages(Bounds { given, left: Some(1 << 40), binding }).expect("a cache");
            // With the page for padding.
            (count as u64 + 1) * PART_BYTES
        };
        for count in [3, 10, 8191] {
            let limit = count * PART_BYTES;
            for given in [None, Some(count * PAGE_BYTES), Some((count + 1) * PAGE_BYTES), Some(u64::MAX)] {
                assert_eq!(most(limit, given), limit, "{given:?}");
                assert_eq!(most(limit + PART_BYTES - 1, given), limit, "{given:?}");
            }
            // The user's limit applies if it is lower.
            assert_eq!(most(limit + PART_BYTES, Some((count + 1) * PAGE_BYTES - 1)), limit);
            assert_eq!(most(limit + PART_BYTES, Some((count + 1) * PAGE_BYTES)), limit + PART_BYTES);
        }
    }

    #[test]
    fn cache_larger_than_a_binding_is_refused() {
        let refused =
            pages(Bounds { given: None, left: None, binding: 3 * PART_BYTES - 1 }).expect_err("refused").to_string();
        let (need, limit) = (3 * PART_BYTES, 3 * PART_BYTES - 1);
        assert_eq!(
            refused,
            format!(
                "the smallest KV cache needs a buffer of {need} bytes, but this adapter binds at most {limit}; \
                 use --device cpu or another adapter"
            )
        );
    }

    #[test]
    fn too_little_cache_memory_is_refused() {
        let bounds = |given, left| Bounds { given, left, binding: u64::MAX };
        assert_eq!(pages(bounds(Some(3 * PAGE_BYTES), None)).expect("a cache"), 2);
        let refused = pages(bounds(Some(3 * PAGE_BYTES - 1), None)).expect_err("refused").to_string();
        assert!(
            refused.contains(&format!("takes {PAGE_BYTES} bytes, but only {} bytes are available", 3 * PAGE_BYTES - 1)),
            "{refused}"
        );
        // Without a user's limit, nine tenths of the free memory.
        assert_eq!(pages(bounds(None, Some(100 * PAGE_BYTES))).expect("a cache"), 89);
        assert!(pages(bounds(None, Some(3 * PAGE_BYTES))).is_err());
        assert_eq!(pages(bounds(None, None)).expect("a cache") as u64, UNKNOWN_MEMORY / PAGE_BYTES - 1);
    }
}
