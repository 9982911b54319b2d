//! Keys and values of all sequences, in pages of 64 positions.
//!
//! A layer has one pool of pages for its keys and one for its values, whatever sequences there are; tables say which page of a
//! pool holds which positions of a sequence. All full layers share one table, all sliding layers another: a sliding sequence has
//! a ring of as many pages as its window and one pass of new tokens need.

use std::collections::HashMap;

use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::SequenceId;
use phase3_kvcache::CacheType;

use super::GpuError;
use super::device::{Buffer, Gpu};
use super::kernels::cache::{self, CacheRow};

/// Positions of a page.
pub(crate) const PAGE: usize = 64;

/// The caches of all sequences.
pub(crate) struct Caches {
    pub row: CacheRow,
    /// One a layer.
    layers: Vec<Pool>,
    kinds: Vec<AttentionKind>,
    full: Pages,
    sliding: Pages,
    pub ring_pages: usize,
    sequences: HashMap<SequenceId, Sequence>,
    free_slots: Vec<u32>,
}

/// The pages of one layer.
#[derive(Clone)]
pub(crate) struct Pool {
    pub keys: Buffer,
    pub values: Buffer,
}

/// Which pages of the pools of one kind of layer belong to whom.
struct Pages {
    free: Vec<u32>,
    /// Pages that the pools hold.
    held: usize,
    /// `[slots, columns]` page numbers.
    table: Vec<u32>,
    columns: usize,
    device: Buffer,
    changed: bool,
}

/// A sequence's place in the tables.
struct Sequence {
    slot: u32,
    length: usize,
    full: Vec<u32>,
    ring: Vec<u32>,
}

/// What an attention kernel needs to find a layer's keys.
pub(crate) struct LayerCache<'a> {
    pub pool: &'a Pool,
    pub table: &'a Buffer,
    /// Columns of the table.
    pub columns: usize,
    /// After how many pages positions begin again; as many as there can be, for full layers.
    pub ring_pages: usize,
}

impl Caches {
    /// Caches for no sequence yet. `longest_pass` is the most tokens of one sequence that one pass adds.
    pub fn new(gpu: &Gpu, config: &GptOssConfig, kind: CacheType, longest_pass: usize) -> Result<Caches, GpuError> {
        let row = CacheRow::new(kind, config)?;
        let ring_pages = (config.sliding_window + longest_pass - 1).div_ceil(PAGE);
        let pool = || Pool { keys: gpu.empty(0), values: gpu.empty(0) };
        Ok(Caches {
            row,
            layers: config.attention.iter().map(|_| pool()).collect(),
            kinds: config.attention.clone(),
            full: Pages::new(gpu, 1),
            sliding: Pages::new(gpu, ring_pages),
            ring_pages,
            sequences: HashMap::new(),
            free_slots: Vec::new(),
        })
    }

    pub fn length(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, |sequence| sequence.length)
    }

    pub fn slot(&self, sequence: SequenceId) -> u32 {
        self.sequences[&sequence].slot
    }

    /// Makes room for a sequence to reach `length` positions. Whether buffers moved, so that captured steps are void.
    ///
    /// # Errors
    /// A pool that outgrows what the device binds.
    pub fn reserve(&mut self, gpu: &Gpu, sequence: SequenceId, length: usize) -> Result<bool, GpuError> {
        let known = self.sequences.len() as u32;
        let free_slots = &mut self.free_slots;
        let entry = self.sequences.entry(sequence).or_insert_with(|| Sequence {
            slot: free_slots.pop().unwrap_or(known),
            length: 0,
            full: Vec::new(),
            ring: Vec::new(),
        });
        let missing = length.div_ceil(PAGE).saturating_sub(entry.full.len());
        let ring_missing = self.ring_pages - entry.ring.len();
        let mut moved = false;
        for (kind, missing) in [(AttentionKind::Full, missing), (AttentionKind::Sliding, ring_missing)] {
            let pages = match kind {
                AttentionKind::Full => &mut self.full,
                AttentionKind::Sliding => &mut self.sliding,
            };
            if missing > pages.free.len() {
                let held = (pages.held + missing - pages.free.len()).max(2 * pages.held);
                let layers = self.kinds.iter().filter(|&&other| other == kind).count();
                let words = (held - pages.held) * self.row.page_words() * 2 * layers;
                gpu.expect_memory(&format!("the cache of {} sequences", known + 1), words as u64 * 4)?;
                for (layer, pool) in self.layers.iter_mut().enumerate() {
                    if self.kinds[layer] == kind {
                        pool.keys = cache::grow(gpu, &pool.keys, held * self.row.page_words())?;
                        pool.values = cache::grow(gpu, &pool.values, held * self.row.page_words())?;
                    }
                }
                pages.free.extend((pages.held as u32..held as u32).rev());
                pages.held = held;
                moved = true;
            }
        }
        for _ in 0..missing {
            let page = self.full.free.pop().expect("grown");
            moved |= self.full.set(entry.slot as usize, entry.full.len(), page);
            entry.full.push(page);
        }
        for _ in 0..ring_missing {
            let page = self.sliding.free.pop().expect("grown");
            moved |= self.sliding.set(entry.slot as usize, entry.ring.len(), page);
            entry.ring.push(page);
        }
        moved |= self.full.upload(gpu) | self.sliding.upload(gpu);
        Ok(moved)
    }

    /// Counts positions that a pass has added.
    pub fn advance(&mut self, sequence: SequenceId, new: usize) {
        if let Some(sequence) = self.sequences.get_mut(&sequence) {
            sequence.length += new;
        }
    }

    /// Counts the positions of a restored sequence.
    pub fn set_length(&mut self, sequence: SequenceId, length: usize) {
        self.sequences.get_mut(&sequence).expect("room was reserved").length = length;
    }

    /// The pages of a sequence in every pool of such layers, in order of position.
    pub fn pages(&self, sequence: SequenceId, attention: AttentionKind) -> Option<&[u32]> {
        let sequence = self.sequences.get(&sequence)?;
        Some(match attention {
            AttentionKind::Full => &sequence.full,
            AttentionKind::Sliding => &sequence.ring,
        })
    }

    pub fn release(&mut self, sequence: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&sequence) {
            self.full.free.extend(sequence.full);
            self.sliding.free.extend(sequence.ring);
            self.free_slots.push(sequence.slot);
        }
    }

    pub fn layer(&self, layer: usize) -> LayerCache<'_> {
        let (pages, ring_pages) = match self.kinds[layer] {
            AttentionKind::Full => (&self.full, u32::MAX as usize),
            AttentionKind::Sliding => (&self.sliding, self.ring_pages),
        };
        LayerCache { pool: &self.layers[layer], table: &pages.device, columns: pages.columns, ring_pages }
    }

    /// The positions that `layer` remembers, and the row of its pool where each lies for head 0.
    pub fn places(&self, sequence: SequenceId, layer: usize, window: usize) -> Option<Vec<(usize, usize)>> {
        let sequence = self.sequences.get(&sequence)?;
        let (first, pages) = match self.kinds[layer] {
            AttentionKind::Full => (0, &sequence.full),
            AttentionKind::Sliding => (sequence.length.saturating_sub(window), &sequence.ring),
        };
        let place = |position: usize| {
            let page = pages[position / PAGE % pages.len()] as usize;
            (position, page * self.row.kv_heads * PAGE + position % PAGE)
        };
        Some((first..sequence.length).map(place).collect())
    }
}

impl Pages {
    fn new(gpu: &Gpu, columns: usize) -> Pages {
        Pages { free: Vec::new(), held: 0, table: Vec::new(), columns, device: gpu.empty(0), changed: false }
    }

    /// Whether the table had to be widened.
    fn set(&mut self, slot: usize, column: usize, page: u32) -> bool {
        let widened = column >= self.columns;
        if widened {
            let columns = 2 * self.columns.max(column);
            let rows = self.table.len() / self.columns;
            let mut table = vec![0; rows * columns];
            for (old, new) in self.table.chunks_exact(self.columns).zip(table.chunks_exact_mut(columns)) {
                new[..self.columns].copy_from_slice(old);
            }
            (self.table, self.columns) = (table, columns);
        }
        let rows = (slot + 1).max(self.table.len() / self.columns);
        self.table.resize(rows * self.columns, 0);
        self.table[slot * self.columns + column] = page;
        self.changed = true;
        widened
    }

    /// Whether the table's buffer is another one now.
    fn upload(&mut self, gpu: &Gpu) -> bool {
        if !std::mem::take(&mut self.changed) {
            return false;
        }
        let grown = self.table.len() > self.device.len;
        if grown {
            self.device = gpu.empty(self.table.len().next_power_of_two());
        }
        gpu.write(&self.device, self.table.clone());
        grown
    }
}
