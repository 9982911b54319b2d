//! Stores on disk the sequences that do not fit into the prefix cache. They can also be used after a restart of the server.
//!
//! [`Spill`] keeps the list of files. Two threads read and write them, so that the engine's thread does not wait for the disk. At most
//! `QUEUE_BYTES` and one sequence wait in memory to be written; one sequence waits to be restored, while the next one
//! may be read.

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
use background::{Background, ThreadEnded};
use folder::{Folder, Listed, with_cause};
use index::FileIndex;

pub use folder::{Identity, SpillError, Warn};

/// Identifies a file. While the server runs, no number is used for a second file.
pub(crate) type FileId = index::FileId;

/// No more sequences are queued for writing while this many bytes wait.
const QUEUE_BYTES: u64 = 256 << 20;
/// The most results of writes that wait to be recorded.
const WRITTEN_WAITING: usize = 16;
/// The most sequences that were read and wait to be restored.
const READ_WAITING: usize = 1;

/// A folder of sequences with a limited size. The least recently used files are deleted first.
#[derive(Debug)]
pub struct Spill {
    folder: Arc<Folder>,
    index: FileIndex,
    writer: Background<Job, Written>,
    reader: Background<FileId, Read>,
    writing: HashMap<FileId, Writing>,
    reading: HashSet<FileId>,
    next: FileId,
    /// Whether the last write failed. The warning is printed once, until a write succeeds again.
    is_failing: bool,
    totals: Spilled,
}

/// A job of the writer.
#[derive(Debug)]
enum Job {
    Write(FileId, SavedSession),
    /// Records the use of a file, for the next start.
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
    /// Opens a folder, which may be new, and reads the headers of its files. If they take more than `limit` bytes, files are deleted; from
    /// then on the folder holds at most `limit` bytes.
    ///
    /// # Errors
    /// The folder cannot be used, another server uses it, or the system cannot start a thread.
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
                // Another file has the same tokens.
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

    /// The state of the folder, and totals of what was written and read.
    pub(crate) fn statistics(&self) -> Spilled {
        Spilled { files: self.index.len(), bytes: self.index.bytes(), ..self.totals }
    }

    /// The file that holds the most tokens of a prompt, given that a restored sequence can be truncated by `rewind` tokens.
    pub(crate) fn longest(&self, prompt: &[u32], rewind: usize) -> Option<Hit> {
        self.index.longest(prompt, rewind)
    }

    /// Whether exactly these tokens are on disk or queued.
    pub(crate) fn holds(&self, tokens: &[u32]) -> bool {
        self.index.holds(tokens) || self.writing.values().any(|writing| writing.tokens == tokens)
    }

    /// Whether another sequence can be queued.
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

    /// Queues a sequence with these tokens for writing. It is skipped if it alone is larger than the folder's limit.
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

    /// Starts reading a file. Its content, or a failure, is returned by [`Spill::take_read`].
    pub(crate) fn read(&mut self, id: FileId) {
        if self.reading.insert(id) {
            self.reader.send(id);
        }
    }

    /// A requested file that was read; its content is `None` if it cannot be used.
    pub(crate) fn take_read(&mut self) -> Option<(FileId, Option<SavedSession>)> {
        let Read { id, result } = match self.reader.take() {
            Ok(read) => read?,
            Err(ThreadEnded) => {
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
                // A file that was deleted meanwhile to free space is not an error.
                if self.index.remove(id) {
                    self.folder.refuse_for(id, &error);
                }
                Some((id, None))
            }
        }
    }

    /// Counts a sequence that was restored to the engine.
    pub(crate) fn restored(&mut self, tokens: usize, bytes: u64) {
        self.totals.restored_tokens += tokens as u64;
        self.totals.restored_bytes += bytes;
    }

    /// Deletes a file that was read but cannot be used.
    pub(crate) fn refuse(&mut self, id: FileId, reason: &str) {
        if self.index.remove(id) {
            self.folder.refuse(id, reason);
        }
    }

    /// Deletes all files that hold a prefix of these tokens with at least `least` tokens.
    pub(crate) fn forget(&mut self, tokens: &[u32], least: usize) {
        let mut gone = self.index.prefixes_of(tokens, least);
        let is_beginning = |writing: &Writing| writing.tokens.len() >= least && tokens.starts_with(&writing.tokens);
        gone.extend(self.writing.iter().filter(|(_, writing)| is_beginning(writing)).map(|(&id, _)| id));
        for id in gone {
            if self.index.remove(id) {
                self.writer.send(Job::Remove(id));
            }
        }
    }

    /// Records completed writes.
    pub(crate) fn take_written(&mut self) {
        loop {
            match self.writer.take() {
                Ok(Some(written)) => self.written(written),
                Ok(None) => return,
                Err(ThreadEnded) => return self.give_up_writing(),
            }
        }
    }

    /// Waits until another sequence can be queued; false after the time limit.
    pub(crate) fn wait_for_room(&mut self, until: Instant) -> bool {
        self.wait(until, Spill::has_room)
    }

    /// Waits until all writes are complete, or discarded because the writer's thread has ended; false after the time limit.
    pub(crate) fn flush(&mut self, until: Instant) -> bool {
        self.wait(until, |spill| spill.writing.is_empty())
    }

    fn wait(&mut self, until: Instant, is_done: impl Fn(&Spill) -> bool) -> bool {
        while !is_done(self) {
            match self.writer.wait(until) {
                Ok(Some(written)) => self.written(written),
                Ok(None) => return false,
                Err(ThreadEnded) => self.give_up_writing(),
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
                // If the file was removed meanwhile, its deletion is queued after the write.
                self.index.complete(id, &tokens);
            }
            Err(error) => {
                self.index.remove(id);
                if !std::mem::replace(&mut self.is_failing, true) {
                    self.folder.warn(&format!("{}; conversations are not stored until this works", with_cause(&error)));
                }
            }
        }
    }

    /// Discards the queued writes of a thread that has ended.
    fn give_up_writing(&mut self) {
        for (id, _) in self.writing.drain() {
            self.index.remove(id);
        }
    }
}
