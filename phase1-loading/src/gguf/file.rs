//! One GGUF file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::reader;
use super::value::Value;
use crate::error::LoadError;
use crate::mapping;
use crate::tensor::HostTensor;

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
    /// The file is unreadable, or its header does not describe the bytes that follow it.
    pub fn open(path: &Path) -> Result<Gguf, LoadError> {
        Self::from_bytes(path, mapping::map(path, "a GGUF file")?)
    }

    /// Reads a GGUF file that is already in memory. Errors name it `path`.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(path: &Path, file: Bytes) -> Result<Gguf, LoadError> {
        let (metadata, tensors) = reader::read(file).map_err(|defect| defect.in_file(path))?;
        Ok(Gguf { path: path.to_owned(), metadata, tensors })
    }
}
