//! GGUF version 3: a header of typed metadata and tensor descriptions, then aligned tensor data.
//!
//! Opening maps the file and reads the header only. Strings, arrays and tensors stay where they lie in the file;
//! nothing is allocated because a header says so, and every length is checked against the bytes that are there.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod reader;
mod split;
mod value;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::LoadError;
use crate::mapping;
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
    /// Maps `path` and reads its header; and those of the other files, if it is the first of several.
    ///
    /// # Errors
    /// An unreadable file, or one whose header does not describe the bytes that follow it.
    pub fn open(path: &Path) -> Result<Gguf, LoadError> {
        let mut gguf = Self::open_one(path)?;
        split::join_others(&mut gguf)?;
        Ok(gguf)
    }

    fn open_one(path: &Path) -> Result<Gguf, LoadError> {
        Self::from_bytes(path, mapping::map(path, "a GGUF file")?)
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
