//! The prefix cache: sequences that stay in the engine after their requests, for later prompts with the same beginning, and those on disk.
//!
//! When memory is full, the least recently used sequence is dropped. With a folder, useful sequences are first written to disk. Files do
//! not share pages, so writing all sequences would store every turn of a chat completely. Only these sequences are written, if they have at
//! least `MIN_FILE_TOKENS` tokens:
//! - those that end where a prompt or its generated text ends, unless exactly one later request continued from there, or none did but
//!   some continued from another entry of the same request: the end of a later request is then more useful;
//! - those that end where several prompts began to differ.
//!
//! No step can begin while a sequence is read from the engine. Therefore, when memory is scarce, one of the oldest sequences is read in
//! each iteration of the scheduler, before it must be dropped. To make room for a request, at most two are read per iteration; further
//! sequences that must be dropped are not written.

use std::collections::HashMap;
use std::time::Instant;

use phase1_loading::{SavedSession, SessionHeader};
use phase2_forward::{Capacity, Engine, EngineError, SequenceId, Snapshot};

use crate::prefix::{Found, Hit, PrefixIndex};
use crate::sequence::RequestId;
use crate::spill::{FileId, Spill};
use crate::statistics::Spilled;

/// The fewest tokens of a file, and the fewest that reading a file must save. Computing fewer tokens takes less time than reading them.
const MIN_FILE_TOKENS: usize = 64;
/// The most sequences that are read from the engine in one iteration of the scheduler, except when the server stops.
const MAX_SAVED: usize = 2;

/// The sequences that stay in the engine, and those on disk.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    index: PrefixIndex,
    entries: HashMap<SequenceId, Entry>,
    /// The largest number of entries; with 0 there is no prefix cache.
    most: usize,
    /// The number of tokens by which the engine can always truncate a sequence.
    rewind: usize,
    disk: Option<Spill>,
    /// Number of sequences that were read from the engine in this iteration.
    saved: usize,
}

#[derive(Debug)]
struct Entry {
    /// The request that created it; `None` for one from disk.
    creator: Option<RequestId>,
    kind: EntryKind,
    tokens: usize,
    /// Number of requests that continued from its end and left an entry themselves.
    followers: usize,
    /// Whether it was queued for the disk, already was there, could not be read from the engine, or was read from the disk.
    is_saved: bool,
}

/// The position in a text at which an entry ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// At the end of a prompt, or of the text generated after it.
    End,
    /// At the position where prompts differ.
    Branch,
    /// Anywhere else in a long prompt.
    Interval,
}

impl PrefixCache {
    pub fn new(most: usize, rewind: usize) -> PrefixCache {
        let (index, entries) = (PrefixIndex::default(), HashMap::new());
        PrefixCache { index, entries, most, rewind, disk: None, saved: 0 }
    }

    /// Sets the disk to which dropped sequences are written.
    pub fn set_disk(&mut self, disk: Spill) {
        self.disk = Some(disk);
    }

    /// Whether the prefix cache is enabled.
    pub fn is_on(&self) -> bool {
        self.most > 0
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Statistics of the disk.
    pub fn spilled(&self) -> Spilled {
        self.disk.as_ref().map_or_else(Spilled::default, Spill::statistics)
    }

    pub fn find(&self, prompt: &[u32]) -> Found {
        self.index.find(prompt)
    }

    /// The entry with exactly these tokens.
    pub fn exact(&self, tokens: &[u32]) -> Option<SequenceId> {
        self.index.exact(tokens)
    }

    pub fn touch(&mut self, sequence: SequenceId) {
        self.index.touch(sequence);
    }

    /// Adds a request's sequence with these tokens; false if there already is one.
    pub fn insert(&mut self, tokens: &[u32], sequence: SequenceId, creator: RequestId, kind: EntryKind) -> bool {
        let is_new = self.index.insert(tokens, sequence);
        if is_new {
            let entry = Entry { creator: Some(creator), kind, tokens: tokens.len(), followers: 0, is_saved: false };
            self.entries.insert(sequence, entry);
        }
        is_new
    }

    /// Records that a request, which was forked from a part of the entry `begun`, has added an entry of its own. It is counted as a
    /// follower of the longest entry of kind `End` that this part includes: `begun` itself, or an entry of the same creator, because the
    /// next turn of a chat may begin with the creator's prompt and one token of its text.
    pub fn count_follower(&mut self, begun: Hit) {
        let Some(creator) = self.entries.get(&begun.sequence).map(|entry| entry.creator) else { return };
        let is_before = |(sequence, entry): &(&SequenceId, &mut Entry)| {
            let has_same_creator = **sequence == begun.sequence || creator.is_some() && entry.creator == creator;
            has_same_creator && entry.kind == EntryKind::End && entry.tokens <= begun.length
        };
        let ends = self.entries.iter_mut().filter(is_before);
        if let Some((_, last)) = ends.max_by_key(|(_, entry)| entry.tokens) {
            last.followers += 1;
        }
    }

    /// Drops the least recently used sequence; false if none is left. If it is useful and fewer than `MAX_SAVED` sequences were read from
    /// the engine in this iteration, it is first queued for writing to disk, as far as the queue has room.
    pub fn evict_oldest(&mut self, engine: &mut dyn Engine) -> bool {
        let Some(oldest) = self.index.oldest() else { return false };
        if self.is_worth_saving(oldest) && self.saved < MAX_SAVED {
            self.save(engine, oldest);
        }
        self.remove(engine, oldest);
        true
    }

    /// Drops sequences until their number is within the limit.
    pub fn enforce_limit(&mut self, engine: &mut dyn Engine) {
        while self.index.len() > self.most && self.evict_oldest(engine) {}
    }

    /// Drops the entries of a request that failed. Files that hold a beginning of its tokens, of at least `cached` tokens, are deleted.
    pub fn drop_failed(&mut self, engine: &mut dyn Engine, made: &[SequenceId], tokens: &[u32], cached: usize) {
        made.iter().for_each(|&made| self.remove(engine, made));
        if let Some(disk) = &mut self.disk {
            disk.forget(tokens, cached);
        }
    }

    /// Drops all sequences in the engine.
    pub fn clear(&mut self, engine: &mut dyn Engine) {
        while let Some(oldest) = self.index.oldest() {
            self.remove(engine, oldest);
        }
    }

    fn remove(&mut self, engine: &mut dyn Engine, sequence: SequenceId) {
        if self.index.remove(sequence) {
            self.entries.remove(&sequence);
            engine.release(sequence);
        }
    }

    /// Begins an iteration of the scheduler: records completed writes.
    pub fn begin_iteration(&mut self) {
        self.saved = 0;
        if let Some(disk) = &mut self.disk {
            disk.take_written();
        }
    }

    /// Whether files are being read or written.
    pub fn is_busy(&self) -> bool {
        self.disk.as_ref().is_some_and(Spill::is_busy)
    }

    /// Starts reading the file that holds most of a prompt, if that is at least `MIN_FILE_TOKENS` more than the `cached` tokens.
    pub fn read_from_disk(&mut self, prompt: &[u32], cached: usize) -> Option<FileId> {
        let disk = self.disk.as_mut().filter(|_| self.most > 0)?;
        let hit = disk.longest(prompt, self.rewind).filter(|hit| hit.length >= cached + MIN_FILE_TOKENS)?;
        disk.read(hit.sequence);
        Some(hit.sequence)
    }

    /// Receives a file that was read. If no entry has exactly its tokens and there is room, it is restored in the engine as sequence
    /// `number`.
    pub fn take_read(&mut self, engine: &mut dyn Engine, number: SequenceId) -> Option<FileId> {
        let (file, saved) = self.disk.as_mut()?.take_read()?;
        if let Some(saved) = saved {
            self.restore(engine, number, file, saved);
        }
        Some(file)
    }

    fn restore(&mut self, engine: &mut dyn Engine, number: SequenceId, file: FileId, saved: SavedSession) {
        let bytes = saved.file_bytes();
        let SavedSession { header: SessionHeader { engine: kind, tokens, length, .. }, items } = saved;
        if self.index.exact(&tokens).is_some() {
            return;
        }
        let snapshot = Snapshot { engine: kind, length, items };
        loop {
            let Some(snapshots) = engine.snapshots() else { return };
            match snapshots.restore(number, &snapshot) {
                Ok(()) => break,
                Err(EngineError::Full { .. }) if self.evict_oldest(engine) => {}
                // Without room, the request is computed without the file. A failure of the device is reported by the next step.
                Err(EngineError::Full { .. } | EngineError::Lost(_) | EngineError::Device(_)) => return,
                Err(error) => {
                    if let Some(disk) = &mut self.disk {
                        disk.refuse(file, &error.to_string());
                    }
                    return;
                }
            }
        }
        self.index.insert(&tokens, number);
        let entry = Entry { creator: None, kind: EntryKind::End, tokens: tokens.len(), followers: 0, is_saved: true };
        self.entries.insert(number, entry);
        if let Some(disk) = &mut self.disk {
            disk.restored(tokens.len(), bytes);
        }
        self.enforce_limit(engine);
    }

    /// Whether a sequence is useful enough to be written to a file.
    fn is_worth_saving(&self, sequence: SequenceId) -> bool {
        let Some(entry) = self.entries.get(&sequence) else { return false };
        let is_of_use = match (entry.kind, entry.followers) {
            (EntryKind::Interval, _) => false,
            (EntryKind::Branch, _) => true,
            (EntryKind::End, 0) => {
                let has_same_creator = |other: &&Entry| other.creator.is_some() && other.creator == entry.creator;
                self.entries.values().filter(has_same_creator).all(|other| other.followers == 0)
            }
            // If several requests continued from this entry, more may follow.
            (EntryKind::End, followers) => followers > 1,
        };
        self.disk.is_some() && entry.tokens >= MIN_FILE_TOKENS && is_of_use
    }

    /// Reads a sequence from the engine and queues it for writing, unless it is already on disk or the queue is full.
    fn save(&mut self, engine: &mut dyn Engine, sequence: SequenceId) {
        let Some(disk) = self.disk.as_mut().filter(|disk| disk.has_room()) else { return };
        let (Some(tokens), Some(entry)) = (self.index.tokens(sequence), self.entries.get_mut(&sequence)) else {
            return;
        };
        // Set even if reading fails, so that `save_ahead` does not try it again.
        entry.is_saved = true;
        if disk.holds(&tokens) {
            return;
        }
        self.saved += 1;
        if let Some(snapshots) = engine.snapshots()
            && let Ok(snapshot) = snapshots.save(sequence)
            && snapshot.length == tokens.len()
        {
            disk.write(tokens, snapshot);
        }
    }

    /// Writes one of the oldest sequences in advance, if it will soon have to be dropped.
    pub fn save_ahead(&mut self, engine: &mut dyn Engine) {
        if self.disk.is_none() || self.saved > 0 || !self.is_scarce(engine) {
            return;
        }
        let ages = self.index.by_age();
        let mut oldest = ages.iter().take(ages.len().div_ceil(4));
        let is_next = |sequence: &&SequenceId| {
            self.entries.get(*sequence).is_some_and(|entry| !entry.is_saved) && self.is_worth_saving(**sequence)
        };
        if let Some(&next) = oldest.find(is_next) {
            self.save(engine, next);
        }
    }

    /// Whether less than a quarter of the pages, or of the allowed entries, is free.
    fn is_scarce(&self, engine: &dyn Engine) -> bool {
        let Capacity { pages_total, pages_free, .. } = engine.capacity();
        pages_free < pages_total / 4 || self.most - self.index.len().min(self.most) < self.most.div_ceil(4)
    }

    /// Writes all useful sequences, within the time limit, and waits for completion.
    pub fn save_all(&mut self, engine: &mut dyn Engine, until: Instant) {
        for sequence in self.index.by_age() {
            let waited = self.disk.as_mut().is_some_and(|disk| disk.wait_for_room(until));
            if !waited || Instant::now() >= until {
                break;
            }
            if self.is_worth_saving(sequence) {
                self.save(engine, sequence);
            }
        }
        if let Some(disk) = &mut self.disk {
            disk.flush(until);
        }
    }
}
