//! The pages of the KV cache in memory.
//!
//! The n-th full layer and the n-th sliding layer share a pool, because a page is used by only one of the two kinds of layers. In a page,
//! the keys and then the values of a key/value head are contiguous.
//!
//! The system allocates memory to a pool when it is first written, in huge memory pages of 2 MB if it can: attention over a long sequence
//! reads its whole cache once per token, and each memory page of the usual 4 kB would cost a TLB miss.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use cpu_kernels::{CacheFormat, KeyBlock};
use memmap2::{MmapMut, MmapOptions};
use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::SequenceId;

use crate::pages::{POSITIONS, PageCopy, Pages};

const _: () = assert!(POSITIONS == cpu_kernels::POSITIONS, "a page is a block of the kernels");

/// The cached keys and values of all layers.
pub(super) struct Cache {
    pub format: CacheFormat,
    pub head_dim: usize,
    kv_heads: usize,
    window: usize,
    /// `[pages, kv_heads]` blocks of [`KeyBlock::bytes`] each. Mappings begin at a memory page, so no vector crosses a cache line.
    pools: Vec<MmapMut>,
    /// The kind and the pool of each layer.
    layers: Vec<(AttentionKind, usize)>,
}

/// The pages of a sequence in one kind of layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageList<'a> {
    /// Index of the first page that was not freed.
    pub first: usize,
    pub pages: &'a VecDeque<u32>,
}

impl Cache {
    /// # Errors
    /// If the system cannot reserve the address range.
    pub fn new(config: &GptOssConfig, format: CacheFormat, pages: usize) -> io::Result<Cache> {
        let mut counts = [0, 0];
        let place = |&kind: &AttentionKind| {
            let count = &mut counts[usize::from(kind == AttentionKind::Sliding)];
            *count += 1;
            (kind, *count - 1)
        };
        let layers: Vec<_> = config.attention.iter().map(place).collect();
        let GptOssConfig { head_dim, kv_heads, sliding_window: window, .. } = *config;
        let bytes = pages.saturating_mul(Self::page_bytes(config, format));
        let pools = (0..counts[0].max(counts[1])).map(|_| map(bytes)).collect::<io::Result<Vec<_>>>()?;
        Ok(Cache { format, head_dim, kv_heads, window, pools, layers })
    }

    /// Size in bytes of a page in one layer.
    pub fn page_bytes(config: &GptOssConfig, format: CacheFormat) -> usize {
        config.kv_heads * KeyBlock::bytes(format, config.head_dim)
    }

    /// Size in bytes of a page in all pools together.
    pub fn bytes_per_page(config: &GptOssConfig, format: CacheFormat) -> usize {
        let full = config.attention.iter().filter(|&&kind| kind == AttentionKind::Full).count();
        full.max(config.layers() - full) * Self::page_bytes(config, format)
    }

    fn head_bytes(&self) -> usize {
        KeyBlock::bytes(self.format, self.head_dim)
    }

    /// Number of positions that a query attends to in layers of this kind.
    pub fn reach(&self, kind: AttentionKind) -> usize {
        match kind {
            AttentionKind::Sliding => self.window,
            AttentionKind::Full => usize::MAX,
        }
    }

    pub fn kind(&self, layer: usize) -> AttentionKind {
        self.layers[layer].0
    }

    /// The block of one key/value head in a page of a layer.
    pub fn block(&self, layer: usize, page: u32, head: usize) -> KeyBlock<'_> {
        let start = (page as usize * self.kv_heads + head) * self.head_bytes();
        let data = &self.pools[self.layers[layer].1][start..start + self.head_bytes()];
        KeyBlock { format: self.format, head_dim: self.head_dim, data }
    }

    /// A layer's pool, for tasks that write different heads, and the size in bytes of one head's block.
    pub fn pool_mut(&mut self, layer: usize) -> (&mut [u8], usize) {
        let head_bytes = self.head_bytes();
        (&mut self.pools[self.layers[layer].1], head_bytes)
    }

    /// Copies pages in every layer. Pages need no clearing, since attention reads nothing past the end of a sequence.
    pub fn copy(&mut self, copies: &[PageCopy]) {
        let bytes = self.kv_heads * self.head_bytes();
        for pool in &mut self.pools {
            for &PageCopy { from, to } in copies {
                pool.copy_within(from as usize * bytes..(from as usize + 1) * bytes, to as usize * bytes);
            }
        }
    }

    /// The pages of each layer as one item, with zeros past the end of the sequence.
    pub fn save<'a>(&self, lists: impl Fn(AttentionKind) -> PageList<'a>, length: usize) -> Vec<Bytes> {
        let save = |layer: usize| {
            let PageList { first, pages } = lists(self.kind(layer));
            let mut item = Vec::with_capacity(pages.len() * self.kv_heads * self.head_bytes());
            for (number, &page) in (first..).zip(pages) {
                let written = length.saturating_sub(number * POSITIONS).min(POSITIONS);
                for head in 0..self.kv_heads {
                    item.extend(self.block(layer, page, head).first(written));
                }
            }
            Bytes::from(item)
        };
        (0..self.layers.len()).map(save).collect()
    }

    /// Number of whole pages in the first item of a layer of this kind.
    pub fn saved_pages(&self, items: &[Bytes], kind: AttentionKind) -> usize {
        let item = self.layers.iter().zip(items).find(|((of, _), _)| *of == kind);
        item.map_or(0, |(_, item)| item.len() / (self.kv_heads * self.head_bytes()))
    }

    /// Size in bytes of each item of [`Cache::save`], with `pages(kind)` pages in layers of a kind.
    pub fn saved_bytes(&self, pages: impl Fn(AttentionKind) -> usize) -> Vec<usize> {
        self.layers.iter().map(|&(kind, _)| pages(kind) * self.kv_heads * self.head_bytes()).collect()
    }

    /// Writes items of [`Cache::save`] into the same number of pages.
    pub fn restore<'a>(&mut self, lists: impl Fn(AttentionKind) -> PageList<'a>, items: &[Bytes]) {
        let bytes = self.kv_heads * self.head_bytes();
        for (layer, item) in items.iter().enumerate() {
            let (kind, pool) = self.layers[layer];
            for (&page, from) in lists(kind).pages.iter().zip(item.chunks_exact(bytes)) {
                self.pools[pool][page as usize * bytes..][..bytes].copy_from_slice(from);
            }
        }
    }

    /// The cached positions of a sequence of `length` tokens in a layer, oldest first, and their keys and values
    /// `[kv_heads, positions, head_dim]`. In sliding layers these are the positions within the window.
    pub fn contents(&self, layer: usize, list: PageList<'_>, length: usize) -> (Vec<usize>, Vec<f32>, Vec<f32>) {
        // The next token does not attend to the oldest position of this window, and a truncated sequence may no longer have it.
        let oldest = length.saturating_sub(self.reach(self.kind(layer))).max(list.first * POSITIONS);
        let positions: Vec<usize> = (oldest..length).collect();
        let dim = self.head_dim;
        let mut keys = vec![0.0; self.kv_heads * positions.len() * dim];
        let mut values = keys.clone();
        for head in 0..self.kv_heads {
            for (i, position) in positions.iter().enumerate() {
                let at = (head * positions.len() + i) * dim;
                let block = self.block(layer, list.at(*position), head);
                block.read(position % POSITIONS, &mut keys[at..at + dim], &mut values[at..at + dim]);
            }
        }
        (positions, keys, values)
    }
}

impl PageList<'_> {
    /// The pages of an existing sequence.
    pub fn of(pages: &Pages, sequence: SequenceId, kind: AttentionKind) -> PageList<'_> {
        let (first, pages) = pages.held(sequence, kind);
        PageList { first, pages }
    }

    /// The page of a position.
    pub fn at(&self, position: usize) -> u32 {
        self.pages[position / POSITIONS - self.first]
    }
}

/// Maps zeroed memory that is allocated when it is written.
fn map(bytes: usize) -> io::Result<MmapMut> {
    let memory = MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?;
    // The system may ignore this, which affects only speed.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}
