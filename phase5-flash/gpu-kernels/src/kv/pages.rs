//! Pools of pages, and the preparation of pages for a new sequence.
//!
//! A pool holds the pages of a layer's keys and values, for all sequences. A page table, `[slots, columns]`, has one row per sequence (the
//! sequence's slot is the row's number), and gives the page of each range of 64 positions.

use cubecl::prelude::*;

use super::layout::KvRow;
use crate::device::{Buffer, Device};

const UNITS: u32 = 256;
/// Used instead of a source page to clear the target page.
pub const NO_PAGE: u32 = u32::MAX;
/// The most page pairs per launch of the preparation: the most cubes along one axis that every GPU accepts.
const MAX_PAIRS: usize = u16::MAX as usize;

/// A pool of pages of keys and values.
#[derive(Clone)]
pub struct KvPool {
    row: KvRow,
    pages: usize,
    keys: Buffer,
    values: Buffer,
}

/// The buffers in which kernels find a layer's keys and values.
#[derive(Clone, Copy)]
pub struct KvCache<'a> {
    pub pool: &'a KvPool,
    /// Page numbers, `[slots, columns]`.
    pub table: &'a Buffer,
    pub columns: usize,
    /// Page `n` of a sequence is in column `n % ring_pages`. In a ring, where old pages are overwritten, `ring_pages` is smaller than the
    /// sequence's number of pages.
    pub ring_pages: usize,
}

impl KvCache<'_> {
    /// [`KvCache::ring_pages`] as a word; larger values are limited to `u32::MAX`, which no number of pages exceeds.
    pub(crate) fn ring_word(&self) -> u32 {
        u32::try_from(self.ring_pages).unwrap_or(u32::MAX)
    }

    /// # Panics
    /// If the table has no columns or does not hold at least one whole row, or `ring_pages` is 0.
    #[track_caller]
    pub(crate) fn check(&self) {
        assert!(self.columns > 0 && self.ring_pages > 0, "a page table without columns");
        self.table.expect("the page table", self.columns);
    }
}

impl KvPool {
    /// A pool of uninitialized pages.
    pub fn new(device: &Device, row: KvRow, pages: usize) -> KvPool {
        let words = pages * row.page_words();
        KvPool { row, pages, keys: device.empty(words), values: device.empty(words) }
    }

    pub fn row(&self) -> KvRow {
        self.row
    }

    pub fn pages(&self) -> usize {
        self.pages
    }

    /// `[pages, kv_heads, 64, words]`, with the words of one head's key at one position last.
    pub fn keys(&self) -> &Buffer {
        &self.keys
    }

    /// As [`KvPool::keys`].
    pub fn values(&self) -> &Buffer {
        &self.values
    }
}

/// Copies or clears pages, in every pool. Each pair is `[from, to]`, with [`NO_PAGE`] as `from` to clear. No page may be both read and
/// written, or written twice.
///
/// # Panics
/// If a page is not in a pool, or `to` is [`NO_PAGE`].
pub fn prepare_pages(device: &Device, pools: &[KvPool], pairs: &[[u32; 2]]) {
    for pool in pools {
        for page in pairs.iter().flatten().filter(|&&page| page != NO_PAGE) {
            assert!((*page as usize) < pool.pages, "page {page} of a pool of {}", pool.pages);
        }
        assert!(pairs.iter().all(|&[_, to]| to != NO_PAGE), "`NO_PAGE` cannot be written");
    }
    for pairs in pairs.chunks(MAX_PAIRS) {
        let words = device.upload(pairs.as_flattened().to_vec());
        for pool in pools {
            let vectors = pool.row.page_words() as u32 / 4;
            // SAFETY: all pages are in the pool, and the kernel bounds vectors by the size of a page.
            unsafe {
                prepare::launch_unchecked(
                    device.client(),
                    CubeCount::Static(vectors.div_ceil(UNITS), pairs.len() as u32, 1),
                    CubeDim::new_1d(UNITS),
                    words.arg(),
                    pool.keys.arg4(),
                    pool.values.arg4(),
                    vectors,
                );
            }
        }
    }
}

#[cube(launch_unchecked)]
fn prepare(pairs: &[u32], keys: &mut [Vector<u32, Const<4>>], values: &mut [Vector<u32, Const<4>>], vectors: u32) {
    let i = CUBE_POS_X * UNITS + UNIT_POS;
    if i < vectors {
        let page = pairs[(2 * CUBE_POS_Y) as usize];
        let to = (pairs[(2 * CUBE_POS_Y + 1) as usize] * vectors + i) as usize;
        if page == NO_PAGE {
            keys[to] = Vector::<u32, Const<4>>::new(0u32);
            values[to] = Vector::<u32, Const<4>>::new(0u32);
        } else {
            let from = (page * vectors + i) as usize;
            keys[to] = keys[from];
            values[to] = values[from];
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::CacheFormat;

    use super::*;
    use crate::testing::{Random, device};

    /// A pool of `pages` pages of random words, and those words of keys and values.
    fn filled(device: &Device, random: &mut Random, row: KvRow, pages: usize) -> (KvPool, [Vec<u32>; 2]) {
        let pool = KvPool::new(device, row, pages);
        let mut words = || (0..pages * row.page_words()).map(|_| random.below(1 << 30) as u32).collect::<Vec<_>>();
        let words = [words(), words()];
        device.write_at(pool.keys(), 0, words[0].clone());
        device.write_at(pool.values(), 0, words[1].clone());
        (pool, words)
    }

    fn page(words: &[u32], row: KvRow, page: u32) -> &[u32] {
        &words[page as usize * row.page_words()..][..row.page_words()]
    }

    #[test]
    fn pages_are_copied_and_cleared() {
        let (device, mut random) = (device(), Random::fresh());
        let shapes = [(CacheFormat::F32, 1, 64), (CacheFormat::F16, 3, 32), (CacheFormat::Q8_0, 2, 96)];
        for (format, heads, dim) in shapes {
            let row = KvRow::new(format, heads, dim).expect("whole blocks");
            let pools = [(); 2].map(|()| filled(&device, &mut random, row, 6));
            let plain = [pools[0].0.clone(), pools[1].0.clone()];
            prepare_pages(&device, &plain, &[[0, 3], [0, 5], [NO_PAGE, 2], [4, 1]]);
            prepare_pages(&device, &plain, &[]);
            for (pool, words) in &pools {
                for (now, words) in [pool.keys(), pool.values()].into_iter().zip(words) {
                    let now = device.read(now).expect("reads");
                    for (number, from) in [Some(0), Some(4), None, Some(0), Some(4), Some(0)].into_iter().enumerate() {
                        let zeros = vec![0; row.page_words()];
                        let expected = from.map_or(&zeros[..], |from| page(words, row, from));
                        assert_eq!(page(&now, row, number as u32), expected, "{number} {row:?} {random:?}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "page 3 of a pool of 3")]
    fn page_outside_the_pool_is_refused() {
        let device = device();
        let pool = KvPool::new(&device, KvRow::new(CacheFormat::F16, 1, 64).expect("whole"), 3);
        prepare_pages(&device, &[pool], &[[0, 3]]);
    }
}
