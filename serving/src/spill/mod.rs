//! Sequences on disk: what the prefix cache has no room for, and what outlives the server.
//!
//! [`Spill`] knows which files there are. Two threads read and write them, so that the engine's thread waits for no disk. What is to be
//! written waits in memory, `QUEUE_BYTES` at most and one sequence; what was read waits for the engine, one sequence at a time.

mod background;
mod folder;
mod index;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use phase1_loading::{LoadError, SavedSession, SessionHeader};
use phase2_forward::Snapshot;

use crate::prefix::Hit;
use crate::statistics::Spilled;
use background::{Background, Gone};
use folder::{Folder, Listed, told};
use index::FileIndex;

pub use folder::{Identity, SpillError, Warn};

/// A file, by a number that no other one has had.
pub(crate) type FileId = index::FileId;

/// Nothing more is queued for the disk when so much waits.
const QUEUE_BYTES: u64 = 256 << 20;
/// Results of writing that wait to be noted.
const WRITTEN_WAITING: usize = 16;
const READ_WAITING: usize = 1;

/// A folder of sequences, bounded in size. The files used least recently are deleted first.
#[derive(Debug)]
pub struct Spill {
    folder: Arc<Folder>,
    index: FileIndex,
    writer: Background<Job, Written>,
    reader: Background<FileId, Read>,
    writing: HashMap<FileId, Writing>,
    reading: HashSet<FileId>,
    next: FileId,
    /// Whether the last file could not be written, which is said once.
    is_failing: bool,
    totals: Spilled,
}

/// What the writer does.
#[derive(Debug)]
enum Job {
    Write(FileId, SavedSession),
    /// Notes that a file was used, for the next start.
    Touch(FileId),
    Remove(FileId),
}

#[derive(Debug)]
struct Written {
    id: FileId,
    result: Result<(), LoadError>,
}

#[derive(Debug)]
struct Read {
    id: FileId,
    result: Result<SavedSession, LoadError>,
}

/// A file that is queued or being written.
#[derive(Debug)]
struct Writing {
    tokens: Vec<u32>,
    bytes: u64,
}

impl Spill {
    /// Opens a folder, which may be new, and finds out what is in it. No more than `limit` bytes are kept there.
    ///
    /// # Errors
    /// A folder that cannot be used, that another server uses, or a system without threads.
    pub fn open(path: &Path, limit: u64, identity: Identity, warn: Warn) -> Result<Spill, SpillError> {
        let folder = Arc::new(Folder::open(path, identity, warn)?);
        let mut index = FileIndex::new(limit);
        let mut next = 0;
        for Listed { id, bytes, tokens } in folder.list()? {
            next = next.max(id.saturating_add(1));
            match index.add(id, bytes) {
                Some(gone) => gone.into_iter().for_each(|id| folder.remove(id)),
                None => folder.remove(id),
            }
            if tokens.is_some_and(|tokens| !index.complete(id, &tokens)) && index.remove(id) {
                // Two of the same tokens.
                folder.remove(id);
            }
        }
        let no_thread = |source| SpillError::Io { path: path.to_owned(), source };
        let (for_writer, for_reader) = (Arc::clone(&folder), Arc::clone(&folder));
        let write = move |job| match job {
            Job::Write(id, saved) => Some(Written { id, result: for_writer.write(id, &saved) }),
            Job::Touch(id) => {
                for_writer.touch(id);
                None
            }
            Job::Remove(id) => {
                for_writer.remove(id);
                None
            }
        };
        let read = move |id| Some(Read { id, result: for_reader.read(id) });
        let writer = Background::start("spill-writer", WRITTEN_WAITING, write).map_err(no_thread)?;
        let reader = Background::start("spill-reader", READ_WAITING, read).map_err(no_thread)?;
        Ok(Spill {
            folder,
            index,
            writer,
            reader,
            writing: HashMap::new(),
            reading: HashSet::new(),
            next,
            is_failing: false,
            totals: Spilled::default(),
        })
    }

    /// What was written and read so far, and what is there.
    pub(crate) fn statistics(&self) -> Spilled {
        Spilled { files: self.index.len(), bytes: self.index.bytes(), ..self.totals }
    }

    /// The file that holds most tokens of a prompt, if a sequence that was read from it can go back by `rewind` tokens.
    pub(crate) fn longest(&self, prompt: &[u32], rewind: usize) -> Option<Hit> {
        self.index.longest(prompt, rewind)
    }

    /// Whether exactly these tokens are on disk, or on their way.
    pub(crate) fn holds(&self, tokens: &[u32]) -> bool {
        self.index.holds(tokens) || self.writing.values().any(|writing| writing.tokens == tokens)
    }

    /// Whether another sequence may be queued.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting_bytes() < QUEUE_BYTES
    }

    fn waiting_bytes(&self) -> u64 {
        self.writing.values().map(|writing| writing.bytes).sum()
    }

    /// Whether files are being read or written.
    pub(crate) fn is_busy(&self) -> bool {
        !self.writing.is_empty() || !self.reading.is_empty()
    }

    /// Queues a sequence of these tokens to be written. It is left out if it alone is larger than the folder may be.
    pub(crate) fn write(&mut self, tokens: Vec<u32>, snapshot: Snapshot) {
        let Snapshot { engine, length, items } = snapshot;
        let Identity { model, rope, cache, .. } = self.folder.identity().clone();
        let saved = SavedSession { header: SessionHeader { model, rope, cache, engine, tokens, length }, items };
        let (id, bytes) = (self.next, saved.file_bytes());
        let Some(gone) = self.index.add(id, bytes) else { return };
        self.next += 1;
        gone.into_iter().for_each(|id| self.writer.send(Job::Remove(id)));
        self.writing.insert(id, Writing { tokens: saved.header.tokens.clone(), bytes });
        self.writer.send(Job::Write(id, saved));
    }

    /// Asks for a file. It comes, or fails, with [`Spill::take_read`].
    pub(crate) fn read(&mut self, id: FileId) {
        if self.reading.insert(id) {
            self.reader.send(id);
        }
    }

    /// A file that was asked for, or `None` in its place if it cannot be used.
    pub(crate) fn take_read(&mut self) -> Option<(FileId, Option<SavedSession>)> {
        let Read { id, result } = match self.reader.take() {
            Ok(read) => read?,
            Err(Gone) => {
                let id = self.reading.iter().next().copied()?;
                self.reading.remove(&id);
                return Some((id, None));
            }
        };
        self.reading.remove(&id);
        match result {
            Ok(saved) => {
                self.index.touch(id);
                self.writer.send(Job::Touch(id));
                Some((id, Some(saved)))
            }
            Err(error) => {
                // One that was deleted meanwhile for want of room is no surprise.
                if self.index.remove(id) {
                    self.folder.refuse_for(id, &error);
                }
                Some((id, None))
            }
        }
    }

    /// Counts a sequence that was read and is in the engine now.
    pub(crate) fn restored(&mut self, tokens: usize, bytes: u64) {
        self.totals.restored_tokens += tokens as u64;
        self.totals.restored_bytes += bytes;
    }

    /// Deletes a file that was read and cannot be used.
    pub(crate) fn refuse(&mut self, id: FileId, reason: &str) {
        if self.index.remove(id) {
            self.folder.refuse(id, reason);
        }
    }

    /// Deletes what was computed on the way to these tokens: files that hold a beginning of them with at least `least` tokens.
    pub(crate) fn forget(&mut self, tokens: &[u32], least: usize) {
        let mut gone = self.index.beginnings(tokens, least);
        let is_beginning = |writing: &Writing| writing.tokens.len() >= least && tokens.starts_with(&writing.tokens);
        gone.extend(self.writing.iter().filter(|(_, writing)| is_beginning(writing)).map(|(&id, _)| id));
        for id in gone {
            if self.index.remove(id) {
                self.writer.send(Job::Remove(id));
            }
        }
    }

    /// Notes what was written since this was last called.
    pub(crate) fn take_written(&mut self) {
        loop {
            match self.writer.take() {
                Ok(Some(written)) => self.written(written),
                Ok(None) => return,
                Err(Gone) => return self.give_up_writing(),
            }
        }
    }

    /// Waits until another sequence may be queued; false if that takes too long.
    pub(crate) fn wait_for_room(&mut self, until: Instant) -> bool {
        self.wait(until, Spill::has_room)
    }

    /// Waits until everything is written; false if that takes too long.
    pub(crate) fn flush(&mut self, until: Instant) -> bool {
        self.wait(until, |spill| spill.writing.is_empty())
    }

    fn wait(&mut self, until: Instant, is_done: impl Fn(&Spill) -> bool) -> bool {
        while !is_done(self) {
            match self.writer.wait(until) {
                Ok(Some(written)) => self.written(written),
                Ok(None) => return false,
                Err(Gone) => self.give_up_writing(),
            }
        }
        true
    }

    fn written(&mut self, Written { id, result }: Written) {
        let Some(Writing { tokens, bytes }) = self.writing.remove(&id) else { return };
        match result {
            Ok(()) => {
                self.is_failing = false;
                self.totals.spilled_tokens += tokens.len() as u64;
                self.totals.spilled_bytes += bytes;
                // It may be gone again: its deletion is queued behind it then.
                self.index.complete(id, &tokens);
            }
            Err(error) => {
                self.index.remove(id);
                if !std::mem::replace(&mut self.is_failing, true) {
                    self.folder.warn(&format!("{}; conversations are not kept until that works again", told(&error)));
                }
            }
        }
    }

    /// What a thread that is gone was to write.
    fn give_up_writing(&mut self) {
        for (id, _) in self.writing.drain() {
            self.index.remove(id);
        }
    }
}
