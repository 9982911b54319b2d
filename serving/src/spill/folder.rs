//! The folder of spilled sequences, which do not fit into the prefix cache: one session file each, named by a number. Incomplete files are
//! recognized by their names, damaged files by their checksums.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use phase1_loading::{LoadError, SavedSession, SessionHeader};

use super::index::FileId;

/// The properties that must be equal to reuse a sequence: it was computed with the same weights and cached in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// [`phase1_loading::Checkpoint::fingerprint`]
    pub model: String,
    /// Name of the variant of YaRN's ramp (`--rope`).
    pub rope: String,
    /// Name of the number format of the KV cache (`--kv`).
    pub cache: String,
    /// [`phase2_forward::Snapshots::kind`]
    pub engine: String,
}

impl Identity {
    fn is_of(&self, header: &SessionHeader) -> bool {
        let SessionHeader { model, rope, cache, engine, .. } = header;
        (model, rope, cache, engine) == (&self.model, &self.rope, &self.cache, &self.engine)
    }
}

/// Prints a warning for the operator.
pub type Warn = fn(&str);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    #[error("{} cannot be used for spilled conversations", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is in use by a running server; each server needs its own folder", path.display())]
    Taken { path: PathBuf },
}

/// A folder that is locked for this server.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    identity: Identity,
    warn: Warn,
    /// The lock is held while this file is open; the system releases it however the process ends.
    _lock: File,
}

/// A file found in the folder.
#[derive(Debug)]
pub(super) struct Listed {
    pub id: FileId,
    pub bytes: u64,
    /// `None` for a file of another model or other settings.
    pub tokens: Option<Vec<u32>>,
}

const LOCK: &str = "lock";
const EXTENSION: &str = ".kv";

impl Folder {
    /// Locks the folder, and creates it if it does not exist.
    ///
    /// # Errors
    /// The folder cannot be created or written, or another server uses it.
    pub fn open(path: &Path, identity: Identity, warn: Warn) -> Result<Folder, SpillError> {
        let io = |source| SpillError::Io { path: path.to_owned(), source };
        create(path).map_err(io)?;
        let lock = File::options().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SpillError::Taken { path: path.to_owned() }),
            // Some file systems do not support locks.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        Ok(Folder { path: path.to_owned(), identity, warn, _lock: lock })
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The files and their tokens, the most recently used last. Incomplete files, files whose header is damaged, and files without tokens or
    /// with tokens that are not cached are deleted with a warning. Files of another model or other settings are kept, and so are files that
    /// cannot be opened, with a warning.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, SpillError> {
        let io = |source| SpillError::Io { path: self.path.clone(), source };
        let mut found: Vec<(SystemTime, Listed)> = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if is_part(name) {
                self.warn(&format!("{}: incomplete; it is deleted", entry.path().display()));
                let _ = fs::remove_file(entry.path());
            }
            let Some(id) = id_of(name) else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            let Some(tokens) = self.look_at(id) else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.push((used, Listed { id, bytes: metadata.len(), tokens }));
        }
        found.sort_by_key(|(used, file)| (*used, file.id));
        let found: Vec<Listed> = found.into_iter().map(|(_, file)| file).collect();
        match found.iter().filter(|file| file.tokens.is_none()).count() {
            0 => {}
            others => self.warn(&format!(
                "{}: {others} of its files were written with another model, engine, --kv or --rope; they are not \
                 used, and are deleted when space is needed",
                self.path.display()
            )),
        }
        Ok(found)
    }

    /// The tokens of a file; `Some(None)` if it is of another model or other settings. `None` if it cannot be
    /// used; it has been deleted if it is invalid.
    fn look_at(&self, id: FileId) -> Option<Option<Vec<u32>>> {
        match SessionHeader::open(&self.file(id)) {
            Ok(header) if !self.identity.is_of(&header) => Some(None),
            Ok(header) if header.tokens.is_empty() || header.length != header.tokens.len() => {
                self.refuse(id, "some of its tokens are not cached");
                None
            }
            Ok(header) => Some(Some(header.tokens)),
            Err(error) => {
                self.refuse_for(id, &error);
                None
            }
        }
    }

    /// Writes a file under a temporary name, and renames it when it is complete.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, id: FileId, saved: &SavedSession) -> Result<(), LoadError> {
        saved.write(&self.file(id))
    }

    /// Reads a whole file into memory, so that its users do not wait for the disk, and checks it.
    ///
    /// # Errors
    /// The file is missing, damaged, or was replaced.
    pub fn read(&self, id: FileId) -> Result<SavedSession, LoadError> {
        let path = self.file(id);
        let bytes = fs::read(&path).map_err(|source| LoadError::Io { path: path.clone(), source })?;
        let saved = SavedSession::from_bytes(&path, bytes.into())?;
        match self.identity.is_of(&saved.header) && saved.header.length == saved.header.tokens.len() {
            true => Ok(saved),
            false => {
                let [part, expected, found] = ["header", "a file of this model and these settings", "another"];
                Err(LoadError::Invalid { path, part: part.into(), expected: expected.into(), found: found.into() })
            }
        }
    }

    /// Records the use of a file in its modification time.
    pub fn touch(&self, id: FileId) {
        // If that fails, the file may be deleted too early.
        let file = File::options().write(true).open(self.file(id));
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
    }

    pub fn remove(&self, id: FileId) {
        // A file that cannot be deleted is found at the next start.
        let _ = fs::remove_file(self.file(id));
    }

    /// Deletes an unusable file, with a warning.
    pub fn refuse(&self, id: FileId, reason: &str) {
        self.warn(&format!("{}: {reason}; it is deleted", self.file(id).display()));
        self.remove(id);
    }

    /// As [`Folder::refuse`], for a file that could not be opened or read. It is kept if it may still be valid, for example if there were too
    /// many open files; the next start of the server looks at it again.
    pub fn refuse_for(&self, id: FileId, error: &LoadError) {
        match error {
            LoadError::Invalid { .. } => {
                self.warn(&format!("{}; it is deleted", with_cause(error)));
                self.remove(id);
            }
            _ => self.warn(&format!("{}; it is not used", with_cause(error))),
        }
    }

    pub fn warn(&self, sentence: &str) {
        (self.warn)(sentence);
    }

    fn file(&self, id: FileId) -> PathBuf {
        self.path.join(format!("{id:016x}{EXTENSION}"))
    }
}

/// Creates the folder if it does not exist, on Unix readable only by this user: its files contain conversations.
fn create(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// The message of an error with its cause.
pub(super) fn with_cause(error: &LoadError) -> String {
    match error {
        LoadError::Io { source, .. } | LoadError::Unwritten { source, .. } => format!("{error}: {source}"),
        LoadError::Invalid { .. } | LoadError::NotDownloaded { .. } => error.to_string(),
    }
}

/// The number in the name of a complete file.
fn id_of(name: &str) -> Option<FileId> {
    let digits = name.strip_suffix(EXTENSION)?;
    let is_number = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_number.then(|| FileId::from_str_radix(digits, 16).ok()).flatten()
}

/// Whether a file is incomplete: its name is that of a complete file, followed by a suffix that ends with `.part`.
fn is_part(name: &str) -> bool {
    let stem = name.find(EXTENSION).map(|at| name.split_at(at + EXTENSION.len()));
    stem.is_some_and(|(stem, rest)| id_of(stem).is_some() && rest.ends_with(".part"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn new_folder_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("new");
        for _ in 0..2 {
            create(&path).expect("created");
        }
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }

    #[test]
    fn foreign_files_in_the_folder_are_kept() {
        assert_eq!(id_of("00000000000000ff.kv"), Some(255));
        for name in ["lock", "ff.kv", "+0000000000000ff.kv", "00000000000000ff.kv2", "00000000000000ff", "notes.kv"] {
            assert_eq!(id_of(name), None, "{name}");
            assert!(!is_part(name), "{name}");
        }
        assert!(is_part("00000000000000ff.kv.x7Qa.part"));
        for name in ["notes.kv.x7Qa.part", "x.part", "00000000000000ff.kv", "00000000000000ff.kv.part.txt"] {
            assert!(!is_part(name), "{name}");
        }
    }
}
