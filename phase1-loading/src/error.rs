//! Errors about model files.

use std::path::{Path, PathBuf};

/// Why a model file was refused or could not be written. Every message names the file; all but I/O errors also name the part of it (a
/// tensor, a metadata key, the header), the expected value and the found one.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{} cannot be read", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} cannot be written", path.display())]
    Unwritten { path: PathBuf, source: std::io::Error },
    #[error("{}: {part}: expected {expected}, found {found}", path.display())]
    Invalid { path: PathBuf, part: String, expected: String, found: String },
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
