//! Errors about model files and session files.

use std::path::{Path, PathBuf};

/// Why a model or session file was refused or could not be written, or a model was not found. Every message names the file or model; for an
/// invalid file it also names the part of it (a tensor, a metadata key, the header), the expected value and the found one.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{} cannot be read", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} cannot be written", path.display())]
    Unwritten { path: PathBuf, source: std::io::Error },
    #[error("{}: {part}: expected {expected}, found {found}", path.display())]
    Invalid { path: PathBuf, part: String, expected: String, found: String },
    #[error("{} is not in {store}; {remedy}", name.display())]
    NotDownloaded { name: PathBuf, store: String, remedy: String },
}

impl LoadError {
    /// The error for a model that is missing in the store of another program. `folders` are the folders of that store, the usual one first.
    pub(crate) fn not_downloaded(name: &Path, store: &str, folders: &[PathBuf], remedy: String) -> LoadError {
        let store = match folders.first() {
            Some(folder) => format!("{store} ({})", folder.display()),
            None => store.to_owned(),
        };
        LoadError::NotDownloaded { name: name.to_owned(), store, remedy }
    }
}

/// A [`LoadError::Invalid`] without its file; the inner parsers return this.
#[derive(Debug)]
pub(crate) struct Defect {
    pub part: String,
    pub expected: String,
    pub found: String,
}

impl Defect {
    pub fn new(part: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { part: part.into(), expected: expected.into(), found: found.into() }
    }

    pub fn in_file(self, path: &Path) -> LoadError {
        LoadError::Invalid { path: path.to_owned(), part: self.part, expected: self.expected, found: self.found }
    }
}
