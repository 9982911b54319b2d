//! The page allocator of the KV cache: which pages belong to which sequence. Host code only, without access to devices or cache contents.
//!
//! A page holds [`POSITIONS`] positions of all full layers, or of all sliding layers; both take pages from one pool of fixed size.
//! Sequences share pages by reference count. Before a sequence writes into a shared page, it gets a copy; this happens only to a partial
//! last page. Pages of sliding layers are freed when no query can attend to them any more.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::{EngineError, SequenceId};
use phase3_kvcache::CacheType;

/// Positions in a page.
pub(crate) const POSITIONS: usize = 64;
/// Number of tokens that a sequence can always be shortened by, counted from its greatest length so far: sliding layers keep this many
/// positions beyond their window.
pub(crate) const REWIND: usize = 8;

/// The most pages that a step with a prompt clears before it takes pages. Those that it does not take are ready for later steps.
const CLEARED_AHEAD: usize = 16;
/// The default pool has at most this many pages in addition to those of one full context: for many short sequences, and for sliding
/// layers.
const EXTRA_PAGES: usize = 256;

/// The most bytes of KV cache that a phase 5 engine allocates for all sequences: the whole pages that fit into `given` bytes; by default
/// those of one full context and some short sequences, limited to the `free` bytes of memory. On a GPU the cache may be smaller, because
/// each pool must fit into a binding.
pub fn cache_bytes(config: &GptOssConfig, kv: CacheType, given: Option<u64>, free: Option<u64>) -> u64 {
    let full = config.attention.iter().filter(|&&kind| kind == AttentionKind::Full).count();
    let pools = full.max(config.attention.len() - full);
    let page = (pools * 2 * POSITIONS * config.kv_heads * kv.row_bytes(config.head_dim)) as u64;
    Pages::count(config.context_length, page, given, free) as u64 * page
}

/// The pages of all sequences.
#[derive(Debug)]
pub(crate) struct Pages {
    window: usize,
    pool: Pool,
    /// The kinds of attention layers in the model.
    kinds: Vec<AttentionKind>,
    sequences: HashMap<SequenceId, Sequence>,
    free_slots: Vec<u32>,
    /// Sequences whose pages have changed since the last [`Pages::take_changed`].
    changed: BTreeSet<SequenceId>,
}

/// What a page must contain before a sequence writes into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Anything: attention reads only positions that the sequence has written.
    AsLeft,
    /// Zeros: attention multiplies positions past the end of a sequence by weights of 0, which does not hide NaN.
    Cleared,
}

/// The free list and the reference counts.
#[derive(Debug)]
struct Pool {
    reuse: Reuse,
    /// Free pages that may be taken without clearing, the next one last.
    ready: Vec<u32>,
    /// Free pages that must be cleared before they are taken.
    used: Vec<u32>,
    /// The reference count of each page.
    holders: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
struct Sequence {
    /// A small number that no other existing sequence has.
    slot: u32,
    length: usize,
    full: List,
    sliding: List,
}

/// The pages of a sequence in one kind of layer, in order of position.
#[derive(Clone, Debug, Default)]
struct List {
    /// Number of pages before the first of `pages`, which were freed.
    gone: usize,
    pages: VecDeque<u32>,
}

/// A page that must be copied, in every layer, before anything else is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageCopy {
    pub from: u32,
    pub to: u32,
}

/// Copies and clears that must be done before a step writes into its pages.
#[derive(Debug, Default)]
pub(crate) struct PageUpdates {
    pub copies: Vec<PageCopy>,
    /// Pages to fill with zeros; empty with [`Reuse::AsLeft`].
    pub cleared: Vec<u32>,
}

/// More pages are needed than are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub needed: usize,
    pub free: usize,
}

impl From<Full> for EngineError {
    fn from(Full { needed, free }: Full) -> EngineError {
        EngineError::Full { needed, free }
    }
}

impl Pages {
    /// A pool of `total` pages that hold zeros, for a model with these layers and a sliding window of `window` positions.
    pub fn new(total: usize, window: usize, layers: &[AttentionKind], reuse: Reuse) -> Pages {
        let kinds = [AttentionKind::Full, AttentionKind::Sliding].into_iter().filter(|kind| layers.contains(kind));
        Pages {
            window,
            pool: Pool { reuse, ready: (0..total as u32).rev().collect(), used: Vec::new(), holders: vec![0; total] },
            kinds: kinds.collect(),
            sequences: HashMap::new(),
            free_slots: Vec::new(),
            changed: BTreeSet::new(),
        }
    }

    /// The number of pages of `page` bytes in a cache: as many as fit into `given` bytes. By default those of one full context and
    /// [`EXTRA_PAGES`] more, limited to the `free` bytes of memory if that is known.
    pub fn count(context_length: usize, page: u64, given: Option<u64>, free: Option<u64>) -> usize {
        let held = |bytes: u64| usize::try_from(bytes / page.max(1)).unwrap_or(usize::MAX).min(u32::MAX as usize);
        let most = context_length.div_ceil(POSITIONS) + EXTRA_PAGES;
        match (given, free) {
            (Some(given), _) => held(given),
            (None, Some(free)) => held(free).min(most),
            (None, None) => most,
        }
    }

    pub fn total(&self) -> usize {
        self.pool.holders.len()
    }

    pub fn free(&self) -> usize {
        self.pool.ready.len() + self.pool.used.len()
    }

    /// Number of existing sequences.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    pub fn contains(&self, sequence: SequenceId) -> bool {
        self.sequences.contains_key(&sequence)
    }

    /// Number of tokens of a sequence; 0 if it is unknown.
    pub fn length(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, |known| known.length)
    }

    /// The slot of an existing sequence: a small number that no other one has.
    pub fn slot(&self, sequence: SequenceId) -> u32 {
        self.sequences[&sequence].slot
    }

    /// The pages that an existing sequence still holds in layers of this kind, and before them the index of the first of these pages.
    /// Indices also count the freed pages at the start of the sequence.
    pub fn held(&self, sequence: SequenceId, kind: AttentionKind) -> (usize, &VecDeque<u32>) {
        let list = self.sequences[&sequence].list(kind);
        (list.gone, &list.pages)
    }

    /// Sequences whose pages have changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<SequenceId> {
        std::mem::take(&mut self.changed)
    }

    /// Allocates pages so that each sequence can grow to a new length: for all of them or for none. Unknown sequences are created. Once the
    /// returned copies and clears are done, positions past each sequence's length may be written.
    ///
    /// # Errors
    /// Too few pages are free; nothing has changed.
    pub fn extend(&mut self, lengths: &[(SequenceId, usize)]) -> Result<PageUpdates, Full> {
        let needed = self.needed(lengths);
        if needed > self.free() {
            return Err(Full { needed, free: self.free() });
        }
        let mut updates = PageUpdates::default();
        // Clearing many pages takes no longer than clearing one, so a prompt also clears pages for the tokens after it.
        if lengths.iter().any(|&(sequence, length)| length > self.length(sequence) + 1) {
            updates.cleared = self.pool.clear_some(CLEARED_AHEAD);
        }
        for &(sequence, length) in lengths {
            let next_slot = self.sequences.len() as u32;
            let free_slots = &mut self.free_slots;
            let begin = || Sequence { slot: free_slots.pop().unwrap_or(next_slot), ..Sequence::default() };
            let known = self.sequences.entry(sequence).or_insert_with(begin);
            let mut changed = false;
            for &kind in &self.kinds {
                let partial = known.partial_page(length);
                let list = known.list_mut(kind);
                if let Some(page) = partial.and_then(|number| list.page_mut(number))
                    && self.pool.is_shared(*page)
                {
                    let (to, _) = self.pool.take();
                    updates.cleared.retain(|&page| page != to);
                    updates.copies.push(PageCopy { from: *page, to });
                    self.pool.put(*page);
                    *page = to;
                    changed = true;
                }
                while list.end() < length.div_ceil(POSITIONS) {
                    list.pages.push_back(self.pool.take_new(&mut updates));
                    changed = true;
                }
            }
            if changed {
                self.changed.insert(sequence);
            }
        }
        Ok(updates)
    }

    /// Number of pages that [`Pages::extend`] would take.
    fn needed(&self, lengths: &[(SequenceId, usize)]) -> usize {
        let mut new = 0;
        // For each shared page, the number of sequences that write into it: each gets a copy, but the last holder keeps the page.
        let mut writers: BTreeMap<u32, usize> = BTreeMap::new();
        for &(sequence, length) in lengths {
            let count = length.div_ceil(POSITIONS);
            let Some(known) = self.sequences.get(&sequence) else {
                new += count * self.kinds.len();
                continue;
            };
            for &kind in &self.kinds {
                let list = known.list(kind);
                new += count.saturating_sub(list.end());
                let partial = known.partial_page(length).and_then(|number| list.page(number));
                if let Some(page) = partial.filter(|&page| self.pool.is_shared(page)) {
                    *writers.entry(page).or_default() += 1;
                }
            }
        }
        let copies = |(&page, &writers): (&u32, &usize)| writers.min(self.pool.holders[page as usize] as usize - 1);
        new + writers.iter().map(copies).sum::<usize>()
    }

    /// Sets a sequence's length after its positions were written, and frees pages of sliding layers that no query can attend to any more.
    pub fn advance(&mut self, sequence: SequenceId, length: usize) {
        let first = self.first_needed(length);
        let Some(known) = self.sequences.get_mut(&sequence) else { return };
        known.length = length;
        while known.sliding.gone < first
            && let Some(page) = known.sliding.pages.pop_front()
        {
            self.pool.put(page);
            known.sliding.gone += 1;
            self.changed.insert(sequence);
        }
    }

    /// Index of the first page of sliding layers that the next token attends to, after `length` tokens.
    fn first_seen(&self, length: usize) -> usize {
        length.saturating_add(1).saturating_sub(self.window) / POSITIONS
    }

    /// Index of the first page that sliding layers need after `length` tokens, or after up to [`REWIND`] fewer.
    fn first_needed(&self, length: usize) -> usize {
        self.first_seen(length.saturating_sub(REWIND))
    }

    /// Whether a sequence can go back to its first `length` tokens: no page that they need was freed.
    pub fn reaches_back(&self, sequence: SequenceId, length: usize) -> bool {
        self.sequences.get(&sequence).is_some_and(|known| known.sliding.gone <= self.first_seen(length))
    }

    /// Creates `to`, which must be unknown, with the first `length` tokens of `from`, which must [reach back](Pages::reaches_back) to them.
    pub fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) {
        let next_slot = self.sequences.len() as u32;
        let mut copy = self.sequences[&from].clone();
        copy.slot = self.free_slots.pop().unwrap_or(next_slot);
        copy.length = length;
        for list in [&mut copy.full, &mut copy.sliding] {
            list.pages.truncate(length.div_ceil(POSITIONS).saturating_sub(list.gone));
            list.pages.iter().for_each(|&page| self.pool.share(page));
        }
        self.sequences.insert(to, copy);
        self.changed.insert(to);
        self.advance(to, length);
    }

    /// Shortens a sequence to `length` tokens, which it must [reach back](Pages::reaches_back) to, and frees pages past them.
    pub fn truncate(&mut self, sequence: SequenceId, length: usize) {
        let Some(known) = self.sequences.get_mut(&sequence) else { return };
        known.length = length;
        for list in [&mut known.full, &mut known.sliding] {
            let kept = length.div_ceil(POSITIONS).saturating_sub(list.gone).min(list.pages.len());
            list.pages.drain(kept..).for_each(|page| self.pool.put(page));
        }
        self.changed.insert(sequence);
    }

    /// Frees the pages that a sequence was given past its length; removes a sequence without tokens.
    pub fn retract(&mut self, sequence: SequenceId) {
        match self.length(sequence) {
            0 => self.release(sequence),
            length => self.truncate(sequence, length),
        }
    }

    /// Number of pages of a restored sequence of `length` tokens in one kind of layer. In sliding layers this is `found`, the number in the
    /// snapshot, but at least the pages that the next token attends to, and at most those that shortening by [`REWIND`] tokens needs.
    pub fn held_pages(&self, length: usize, kind: AttentionKind, found: usize) -> usize {
        let end = length.div_ceil(POSITIONS);
        match kind {
            _ if !self.kinds.contains(&kind) => 0,
            AttentionKind::Full => end,
            AttentionKind::Sliding => found.clamp(end - self.first_seen(length), end - self.first_needed(length)),
        }
    }

    /// Replaces `sequence` by one of `length` tokens whose pages have yet to be written: `counts` pages for each kind of layer.
    ///
    /// # Errors
    /// Too few pages are free; nothing has changed.
    pub fn replace(
        &mut self,
        sequence: SequenceId,
        length: usize,
        counts: impl Fn(AttentionKind) -> usize,
    ) -> Result<PageUpdates, Full> {
        let needed: usize = self.kinds.iter().map(|&kind| counts(kind)).sum();
        // Pages that only this sequence holds become free.
        let of_own = |known: &Sequence| {
            let pages = known.full.pages.iter().chain(&known.sliding.pages);
            pages.filter(|&&page| !self.pool.is_shared(page)).count()
        };
        let free = self.free() + self.sequences.get(&sequence).map_or(0, of_own);
        if needed > free {
            return Err(Full { needed, free });
        }
        self.release(sequence);
        let slot = self.free_slots.pop().unwrap_or(self.sequences.len() as u32);
        let mut known = Sequence { slot, length, ..Sequence::default() };
        let mut updates = PageUpdates::default();
        for &kind in &self.kinds {
            let count = counts(kind);
            let list = known.list_mut(kind);
            list.gone = length.div_ceil(POSITIONS) - count;
            for _ in 0..count {
                list.pages.push_back(self.pool.take_new(&mut updates));
            }
        }
        self.sequences.insert(sequence, known);
        self.changed.insert(sequence);
        Ok(updates)
    }

    /// Removes a sequence and frees its pages. Unknown sequences are ignored.
    pub fn release(&mut self, sequence: SequenceId) {
        let Some(known) = self.sequences.remove(&sequence) else { return };
        for page in known.full.pages.into_iter().chain(known.sliding.pages) {
            self.pool.put(page);
        }
        self.free_slots.push(known.slot);
        self.changed.remove(&sequence);
    }
}

impl Pool {
    /// Takes a free page with a reference count of one; also returns whether it may be used without clearing. Panics if no page is free.
    fn take(&mut self) -> (u32, bool) {
        let is_ready = !self.ready.is_empty();
        let page = self.ready.pop().or_else(|| self.used.pop()).expect("free pages were counted");
        self.holders[page as usize] = 1;
        (page, is_ready)
    }

    /// Takes a free page to append, and adds it to `updates` if it must be cleared. Panics if no page is free.
    fn take_new(&mut self, updates: &mut PageUpdates) -> u32 {
        let (page, is_ready) = self.take();
        updates.cleared.extend((!is_ready).then_some(page));
        page
    }

    /// Moves up to `most` free pages from `used` to `ready`, and returns them: the caller must clear them.
    fn clear_some(&mut self, most: usize) -> Vec<u32> {
        let some = self.used.split_off(self.used.len() - most.min(self.used.len()));
        self.ready.extend(&some);
        some
    }

    fn share(&mut self, page: u32) {
        self.holders[page as usize] += 1;
    }

    fn is_shared(&self, page: u32) -> bool {
        self.holders[page as usize] > 1
    }

    /// Decrements a page's reference count and frees the page at 0.
    fn put(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            match self.reuse {
                // The page used last is taken first, so that no more memory is written than was in use at the same time.
                Reuse::AsLeft => self.ready.push(page),
                Reuse::Cleared => self.used.push(page),
            }
        }
    }
}

impl Sequence {
    fn list(&self, kind: AttentionKind) -> &List {
        match kind {
            AttentionKind::Full => &self.full,
            AttentionKind::Sliding => &self.sliding,
        }
    }

    fn list_mut(&mut self, kind: AttentionKind) -> &mut List {
        match kind {
            AttentionKind::Full => &mut self.full,
            AttentionKind::Sliding => &mut self.sliding,
        }
    }

    /// The index of the partial last page, if growing to `length` writes into it.
    fn partial_page(&self, length: usize) -> Option<usize> {
        (length > self.length && !self.length.is_multiple_of(POSITIONS)).then_some(self.length / POSITIONS)
    }
}

impl List {
    /// Number of pages so far, including freed ones.
    fn end(&self) -> usize {
        self.gone + self.pages.len()
    }

    fn page(&self, number: usize) -> Option<u32> {
        self.pages.get(number.checked_sub(self.gone)?).copied()
    }

    fn page_mut(&mut self, number: usize) -> Option<&mut u32> {
        self.pages.get_mut(number.checked_sub(self.gone)?)
    }
}

#[cfg(test)]
mod tests;
