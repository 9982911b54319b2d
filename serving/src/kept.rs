//! The prefix cache: sequences that the engine keeps after their requests for prompts that begin alike, and those of them on disk.
//!
//! When there is no room, what was used least recently goes. With a folder it is written there first, as far as it is worth it: a
//! sequence on disk shares no pages, so that every turn of a chat would be written whole. Written are
//! - the ends of a prompt and of its text, unless one later request went on from there, whose own end is then of more use;
//! - lengths at which several prompts parted.
//!
//! Reading a sequence from the engine takes time in which no step is begun. As a rule one is read a turn, before there is need: as soon
//! as room is scarce and it is among the oldest. When room is made, two are read a turn at most, as many as a request leaves; what has
//! to go faster than that is not written.

use std::collections::HashMap;
use std::time::Instant;

use phase1_loading::{SavedSession, SessionHeader};
use phase2_forward::{Capacity, Engine, EngineError, SequenceId, Snapshot};

use crate::prefix::{Found, Hit, PrefixIndex};
use crate::sequence::RequestId;
use crate::spill::{FileId, Spill};
use crate::statistics::Spilled;

/// Tokens that a file has at least, and that reading one must save: fewer are computed faster.
const WORTH_A_FILE: usize = 64;
/// Sequences that are read from the engine in one turn at most.
const MOST_SAVED: usize = 2;

/// The sequences that are kept.
#[derive(Debug)]
pub(crate) struct Kept {
    index: PrefixIndex,
    entries: HashMap<SequenceId, Entry>,
    /// Entries that may be kept; with 0 there is no prefix cache.
    most: usize,
    /// Tokens that the engine can always go back by.
    rewind: usize,
    disk: Option<Spill>,
    /// Sequences that were read from the engine in this turn.
    saved: usize,
}

#[derive(Debug)]
struct Entry {
    /// The request that left it; `None` for one from disk.
    maker: Option<RequestId>,
    place: Place,
    tokens: usize,
    /// Requests that went on from its end and left one of their own.
    followers: usize,
    /// Whether it was given to the disk, or came from there.
    is_saved: bool,
}

/// Where in a text an entry ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the end of a prompt, or of what was generated after it.
    End,
    /// Where prompts were seen to part.
    Parting,
    /// Anywhere else in a long prompt.
    Between,
}

impl Kept {
    pub fn new(most: usize, rewind: usize) -> Kept {
        let (index, entries) = (PrefixIndex::default(), HashMap::new());
        Kept { index, entries, most, rewind, disk: None, saved: 0 }
    }

    /// Writes to a folder what there is no room for.
    pub fn set_disk(&mut self, disk: Spill) {
        self.disk = Some(disk);
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.most > 0
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// What is on disk.
    pub fn spilled(&self) -> Spilled {
        self.disk.as_ref().map_or_else(Spilled::default, Spill::statistics)
    }

    pub fn find(&self, prompt: &[u32]) -> Found {
        self.index.find(prompt)
    }

    /// The entry of exactly these tokens.
    pub fn exact(&self, tokens: &[u32]) -> Option<SequenceId> {
        self.index.exact(tokens)
    }

    pub fn touch(&mut self, sequence: SequenceId) {
        self.index.touch(sequence);
    }

    /// Keeps a sequence of these tokens, which a request leaves; false if there is one already.
    pub fn insert(&mut self, tokens: &[u32], sequence: SequenceId, maker: RequestId, place: Place) -> bool {
        let is_new = self.index.insert(tokens, sequence);
        if is_new {
            let entry = Entry { maker: Some(maker), place, tokens: tokens.len(), followers: 0, is_saved: false };
            self.entries.insert(sequence, entry);
        }
        is_new
    }

    /// Notes that a request that began with a part of an entry has left one of its own. It follows the last end in that part: of the
    /// entry, or of another that the same request left, as the next turn of a chat may begin with a prompt and a token of its text.
    pub fn follow(&mut self, begun: Hit) {
        let Some(maker) = self.entries.get(&begun.sequence).map(|entry| entry.maker) else { return };
        let is_before = |(sequence, entry): &(&SequenceId, &mut Entry)| {
            let is_of_maker = **sequence == begun.sequence || maker.is_some() && entry.maker == maker;
            is_of_maker && entry.place == Place::End && entry.tokens <= begun.length
        };
        let ends = self.entries.iter_mut().filter(is_before);
        if let Some((_, last)) = ends.max_by_key(|(_, entry)| entry.tokens) {
            last.followers += 1;
        }
    }

    /// Makes room by what was used least recently; false if nothing is left.
    pub fn make_room(&mut self, engine: &mut dyn Engine) -> bool {
        let Some(oldest) = self.index.oldest() else { return false };
        if self.is_worth_a_file(oldest) && self.saved < MOST_SAVED {
            self.save(engine, oldest);
        }
        self.remove(engine, oldest);
        true
    }

    /// Lets go of what is kept beyond the number that may be.
    pub fn bound(&mut self, engine: &mut dyn Engine) {
        while self.index.len() > self.most && self.make_room(engine) {}
    }

    /// Lets go of what a request left that failed, in the engine and on disk. What it began with is not read from disk again either.
    pub fn distrust(&mut self, engine: &mut dyn Engine, made: &[SequenceId], tokens: &[u32], cached: usize) {
        made.iter().for_each(|&made| self.remove(engine, made));
        if let Some(disk) = &mut self.disk {
            disk.forget(tokens, cached);
        }
    }

    /// Lets go of everything in the engine.
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

    /// Begins a turn of the scheduler: notes what was written.
    pub fn begin_turn(&mut self) {
        self.saved = 0;
        if let Some(disk) = &mut self.disk {
            disk.take_written();
        }
    }

    /// Whether files are being read or written.
    pub fn is_busy(&self) -> bool {
        self.disk.as_ref().is_some_and(Spill::is_busy)
    }

    /// Begins to read the file that holds most of a prompt, if it holds much more than the `cached` tokens.
    pub fn read_from_disk(&mut self, prompt: &[u32], cached: usize) -> Option<FileId> {
        let disk = self.disk.as_mut().filter(|_| self.most > 0)?;
        let hit = disk.longest(prompt, self.rewind).filter(|hit| hit.length >= cached + WORTH_A_FILE)?;
        disk.read(hit.sequence);
        Some(hit.sequence)
    }

    /// A file that was asked for and has come. If it is of use and there is room, the engine holds it as `number` now.
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
                Err(EngineError::Full { .. }) if self.make_room(engine) => {}
                // Without room its request is computed. A device that failed says so at the next step.
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
        let entry = Entry { maker: None, place: Place::End, tokens: tokens.len(), followers: 0, is_saved: true };
        self.entries.insert(number, entry);
        if let Some(disk) = &mut self.disk {
            disk.restored(tokens.len(), bytes);
        }
        self.bound(engine);
    }

    /// Whether a sequence is worth a file of its own.
    fn is_worth_a_file(&self, sequence: SequenceId) -> bool {
        let Some(entry) = self.entries.get(&sequence) else { return false };
        let is_of_use = match (entry.place, entry.followers) {
            (Place::Between, _) => false,
            (Place::Parting, _) => true,
            (Place::End, 0) => {
                let is_of_maker = |other: &&Entry| other.maker.is_some() && other.maker == entry.maker;
                self.entries.values().filter(is_of_maker).all(|other| other.followers == 0)
            }
            // Where several went on, more may.
            (Place::End, followers) => followers > 1,
        };
        self.disk.is_some() && entry.tokens >= WORTH_A_FILE && is_of_use
    }

    /// Gives a sequence to the disk, if it is not there. Without room in the queue it is not read from the engine.
    fn save(&mut self, engine: &mut dyn Engine, sequence: SequenceId) {
        let Some(disk) = self.disk.as_mut().filter(|disk| disk.has_room()) else { return };
        let (Some(tokens), Some(entry)) = (self.index.tokens(sequence), self.entries.get_mut(&sequence)) else {
            return;
        };
        // One that cannot be read is not asked for again.
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

    /// Gives one of the oldest to the disk before it has to go, if it will have to soon.
    pub fn save_ahead(&mut self, engine: &mut dyn Engine) {
        if self.disk.is_none() || self.saved > 0 || !self.is_scarce(engine) {
            return;
        }
        let ages = self.index.by_age();
        let mut oldest = ages.iter().take(ages.len().div_ceil(4));
        let is_next = |sequence: &&SequenceId| {
            self.entries.get(*sequence).is_some_and(|entry| !entry.is_saved) && self.is_worth_a_file(**sequence)
        };
        if let Some(&next) = oldest.find(is_next) {
            self.save(engine, next);
        }
    }

    /// Whether less than a quarter of the pages, or of the places of entries, is free.
    fn is_scarce(&self, engine: &dyn Engine) -> bool {
        let Capacity { pages_total, pages_free, .. } = engine.capacity();
        pages_free < pages_total / 4 || self.most - self.index.len().min(self.most) < self.most.div_ceil(4)
    }

    /// Gives everything that is worth it to the disk, as far as time allows, and waits until it is written.
    pub fn save_all(&mut self, engine: &mut dyn Engine, until: Instant) {
        for sequence in self.index.by_age() {
            let waited = self.disk.as_mut().is_some_and(|disk| disk.wait_for_room(until));
            if !waited || Instant::now() >= until {
                break;
            }
            if self.is_worth_a_file(sequence) {
                self.save(engine, sequence);
            }
        }
        if let Some(disk) = &mut self.disk {
            disk.flush(until);
        }
    }
}
