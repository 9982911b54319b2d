//! GGUF version 3: a header of typed metadata and tensor descriptions, then aligned tensor data.
//!
//! Opening maps the file and reads the header only. Strings, arrays and tensors stay where they lie in the file;
//! nothing is allocated because a header says so, and every length is checked against the bytes that are there.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod reader;
mod value;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::{Defect, LoadError};
use crate::tensor::HostTensor;
pub use value::{Array, Value};
pub use writer::{MetadataValue, TensorPlan, write_header};

/// Where tensor data is aligned unless `general.alignment` says otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// An opened GGUF file: metadata by key, tensors by name.
pub struct Gguf {
    pub path: PathBuf,
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, HostTensor>,
}

impl Gguf {
    /// Maps `path` and reads its header.
    ///
    /// # Errors
    /// An unreadable file, or one whose header does not describe the bytes that follow it.
    pub fn open(path: &Path) -> Result<Gguf, LoadError> {
        let io = |source| LoadError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Err(Defect::new("header", "a GGUF file", "an empty file").in_file(path));
        }
        // SAFETY: the mapping is read-only and private to us. Another process that truncates the file while it is
        // mapped can raise SIGBUS; that is documented behaviour of every engine that maps its weights.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Self::from_bytes(path, Bytes::from_owner(map))
    }

    /// Reads a GGUF file that is already in memory; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(path: &Path, file: Bytes) -> Result<Gguf, LoadError> {
        let (metadata, tensors) = reader::read(file).map_err(|defect| defect.in_file(path))?;
        Ok(Gguf { path: path.to_owned(), metadata, tensors })
    }
}
