//! Which pages of the KV cache belong to which sequence. Host code only: no device, no bytes.
//!
//! A page holds [`POSITIONS`] positions of all full layers, or of all sliding ones; both take pages from one pool of a size fixed at
//! start. Sequences share pages by reference count. Before a sequence writes into a page that others hold too, it gets a copy: that
//! is only ever a partial last page. Sliding layers give back pages that no query will see again.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::{EngineError, SequenceId};
use phase3_kvcache::CacheType;

/// Positions of a page.
pub(crate) const POSITIONS: usize = 64;
/// Tokens that a sequence can always be shortened by, counted from the longest it has been: sliding layers keep as many positions
/// beyond their window.
pub(crate) const REWIND: usize = 8;

/// Pages that are cleared at most beside those that a chunk of a prompt takes.
const CLEARED_AHEAD: usize = 16;
/// Pages that a pool has beside those of one context at most, unless its size is given: of many short sequences, or of what sliding
/// layers hold of them.
const BESIDE_CONTEXT: usize = 256;

/// Bytes of the KV cache that an engine has for all sequences, on the CPU or a GPU: as many whole pages as the `given` bytes hold; if none
/// are given, those of one context and some short sequences, as far as the `free` bytes hold them.
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
    /// The kinds of layers that the model has.
    kinds: Vec<AttentionKind>,
    sequences: HashMap<SequenceId, Sequence>,
    free_slots: Vec<u32>,
    /// Sequences whose pages have changed since they were last asked for.
    changed: BTreeSet<SequenceId>,
}

/// What a page must hold before a sequence writes into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Whatever an earlier sequence left: attention reads only what its own sequence has written.
    AsLeft,
    /// Zeros: attention multiplies what lies behind a sequence's end by weights of 0, and these do not hide NaN.
    Cleared,
}

/// The pages themselves.
#[derive(Debug)]
struct Pool {
    reuse: Reuse,
    /// Free pages that may be taken as they are, the one to take next last.
    ready: Vec<u32>,
    /// Free pages to clear before they are taken.
    used: Vec<u32>,
    /// How many lists of pages name a page, by page.
    holders: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
struct Sequence {
    /// Its own small number among the sequences that exist.
    slot: u32,
    length: usize,
    full: List,
    sliding: List,
}

/// Pages of a sequence in one kind of layer, in order of position.
#[derive(Clone, Debug, Default)]
struct List {
    /// Pages before the first of `pages`: they were given back.
    gone: usize,
    pages: VecDeque<u32>,
}

/// A page whose contents must be copied, in every layer, before anything else is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageCopy {
    pub from: u32,
    pub to: u32,
}

/// What must happen to pages before anything is written.
#[derive(Debug, Default)]
pub(crate) struct Room {
    pub copies: Vec<PageCopy>,
    /// Pages to fill with zeros; none with [`Reuse::AsLeft`].
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
    /// `total` pages, which hold zeros, for a model with these layers, whose sliding layers see `window` positions.
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

    /// How many pages of `page` bytes a cache has, on every device: as many as the `given` bytes hold. If none are given, those of one
    /// context of the model and [`BESIDE_CONTEXT`] more, as far as the `free` bytes hold them; where nobody knows what is free, all.
    pub fn count(context_length: usize, page: u64, given: Option<u64>, free: Option<u64>) -> usize {
        let held = |bytes: u64| usize::try_from(bytes / page.max(1)).unwrap_or(usize::MAX).min(u32::MAX as usize);
        let most = context_length.div_ceil(POSITIONS) + BESIDE_CONTEXT;
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

    /// Sequences that exist.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    pub fn contains(&self, sequence: SequenceId) -> bool {
        self.sequences.contains_key(&sequence)
    }

    /// 0 for an unknown sequence.
    pub fn length(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, |known| known.length)
    }

    /// The small number of a sequence that exists.
    pub fn slot(&self, sequence: SequenceId) -> u32 {
        self.sequences[&sequence].slot
    }

    /// The number of the first page that layers of this kind still hold of a sequence that exists, and the pages from there on.
    pub fn held(&self, sequence: SequenceId, kind: AttentionKind) -> (usize, &VecDeque<u32>) {
        let list = self.sequences[&sequence].list(kind);
        (list.gone, &list.pages)
    }

    /// Sequences whose pages have changed since this was last asked.
    pub fn take_changed(&mut self) -> BTreeSet<SequenceId> {
        std::mem::take(&mut self.changed)
    }

    /// Makes room for sequences to reach new lengths: for all of them, or for none. Unknown ones begin. After the copies, anything
    /// behind each sequence's length may be written.
    ///
    /// # Errors
    /// Too few free pages; nothing has changed then.
    pub fn extend(&mut self, wishes: &[(SequenceId, usize)]) -> Result<Room, Full> {
        let needed = self.needed(wishes);
        if needed > self.free() {
            return Err(Full { needed, free: self.free() });
        }
        let mut room = Room::default();
        // Clearing many pages takes no longer than one: a prompt does it for the tokens that follow.
        if wishes.iter().any(|&(sequence, length)| length > self.length(sequence) + 1) {
            room.cleared = self.pool.clear_some(CLEARED_AHEAD);
        }
        for &(sequence, length) in wishes {
            let next_slot = self.sequences.len() as u32;
            let free_slots = &mut self.free_slots;
            let begin = || Sequence { slot: free_slots.pop().unwrap_or(next_slot), ..Sequence::default() };
            let known = self.sequences.entry(sequence).or_insert_with(begin);
            let mut changed = false;
            for &kind in &self.kinds {
                let begun = known.begun(length);
                let list = known.list_mut(kind);
                if let Some(page) = begun.and_then(|number| list.page_mut(number))
                    && self.pool.is_shared(*page)
                {
                    let (to, _) = self.pool.take();
                    room.cleared.retain(|&page| page != to);
                    room.copies.push(PageCopy { from: *page, to });
                    self.pool.put(*page);
                    *page = to;
                    changed = true;
                }
                while list.end() < length.div_ceil(POSITIONS) {
                    list.pages.push_back(self.pool.take_new(&mut room));
                    changed = true;
                }
            }
            if changed {
                self.changed.insert(sequence);
            }
        }
        Ok(room)
    }

    /// Pages that [`Pages::extend`] takes.
    fn needed(&self, wishes: &[(SequenceId, usize)]) -> usize {
        let mut new = 0;
        // By shared page the sequences that write into it: each gets a copy, but the last holder keeps the page.
        let mut writers: BTreeMap<u32, usize> = BTreeMap::new();
        for &(sequence, length) in wishes {
            let count = length.div_ceil(POSITIONS);
            let Some(known) = self.sequences.get(&sequence) else {
                new += count * self.kinds.len();
                continue;
            };
            for &kind in &self.kinds {
                let list = known.list(kind);
                new += count.saturating_sub(list.end());
                let begun = known.begun(length).and_then(|number| list.page(number));
                if let Some(page) = begun.filter(|&page| self.pool.is_shared(page)) {
                    *writers.entry(page).or_default() += 1;
                }
            }
        }
        let copies = |(&page, &writers): (&u32, &usize)| writers.min(self.pool.holders[page as usize] as usize - 1);
        new + writers.iter().map(copies).sum::<usize>()
    }

    /// Counts positions that have been written, and takes back the pages that no query will see again.
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

    /// The first page of sliding layers that the next token of a sequence of `length` tokens sees.
    fn first_seen(&self, length: usize) -> usize {
        length.saturating_add(1).saturating_sub(self.window) / POSITIONS
    }

    /// The first page that sliding layers need of a sequence of `length` tokens, or of one up to [`REWIND`] tokens shorter.
    fn first_needed(&self, length: usize) -> usize {
        self.first_seen(length.saturating_sub(REWIND))
    }

    /// Whether a sequence holds everything that its first `length` tokens need.
    pub fn reaches_back(&self, sequence: SequenceId, length: usize) -> bool {
        self.sequences.get(&sequence).is_some_and(|known| known.sliding.gone <= self.first_seen(length))
    }

    /// Makes `to`, which is unknown, a sequence of the first `length` tokens of `from`, which [reaches back](Pages::reaches_back).
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

    /// Shortens a sequence, which [reaches back](Pages::reaches_back), to `length` tokens. Room beyond is given back.
    pub fn truncate(&mut self, sequence: SequenceId, length: usize) {
        let Some(known) = self.sequences.get_mut(&sequence) else { return };
        known.length = length;
        for list in [&mut known.full, &mut known.sliding] {
            let kept = length.div_ceil(POSITIONS).saturating_sub(list.gone).min(list.pages.len());
            list.pages.drain(kept..).for_each(|page| self.pool.put(page));
        }
        self.changed.insert(sequence);
    }

    /// Gives back the room that a sequence was given beyond its length.
    pub fn retract(&mut self, sequence: SequenceId) {
        match self.length(sequence) {
            0 => self.release(sequence),
            length => self.truncate(sequence, length),
        }
    }

    /// Pages that a sequence of `length` tokens may hold in one kind of layer; in sliding ones `found`, if that is possible. They hold
    /// at least what a next token sees, and at most what the sequence can go back by.
    pub fn count_held(&self, length: usize, kind: AttentionKind, found: usize) -> usize {
        let end = length.div_ceil(POSITIONS);
        match kind {
            _ if !self.kinds.contains(&kind) => 0,
            AttentionKind::Full => end,
            AttentionKind::Sliding => found.clamp(end - self.first_seen(length), end - self.first_needed(length)),
        }
    }

    /// Makes `sequence` one of `length` tokens, with `counts` of pages by kind, that nothing is known of yet, in place of what it was.
    ///
    /// # Errors
    /// Too few free pages; nothing has changed then.
    pub fn replace(
        &mut self,
        sequence: SequenceId,
        length: usize,
        counts: impl Fn(AttentionKind) -> usize,
    ) -> Result<Room, Full> {
        let needed: usize = self.kinds.iter().map(|&kind| counts(kind)).sum();
        // What the sequence alone holds becomes free.
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
        let mut room = Room::default();
        for &kind in &self.kinds {
            let count = counts(kind);
            let list = known.list_mut(kind);
            list.gone = length.div_ceil(POSITIONS) - count;
            for _ in 0..count {
                list.pages.push_back(self.pool.take_new(&mut room));
            }
        }
        self.sequences.insert(sequence, known);
        self.changed.insert(sequence);
        Ok(room)
    }

    /// Forgets a sequence. Unknown ones are ignored.
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
    /// A page for one holder, and whether it may be used as it is. There must be a free one.
    fn take(&mut self) -> (u32, bool) {
        let is_ready = !self.ready.is_empty();
        let page = self.ready.pop().or_else(|| self.used.pop()).expect("free pages were counted");
        self.holders[page as usize] = 1;
        (page, is_ready)
    }

    /// A page to append, once `room` has been made. There must be a free one.
    fn take_new(&mut self, room: &mut Room) -> u32 {
        let (page, is_ready) = self.take();
        room.cleared.extend((!is_ready).then_some(page));
        page
    }

    /// Up to `most` free pages that must be cleared, and may then be taken as they are.
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

    /// One holder fewer; the last one frees the page.
    fn put(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            match self.reuse {
                // What was used last is taken first: no more memory is ever written than was in use at once.
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

    /// The number of the partial last page, if growing to `length` writes into it.
    fn begun(&self, length: usize) -> Option<usize> {
        (length > self.length && !self.length.is_multiple_of(POSITIONS)).then_some(self.length / POSITIONS)
    }
}

impl List {
    /// Pages of the sequence so far, those given back among them.
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
