//! The files of a folder by name, and JSON in them.

use std::path::Path;

use bytes::Bytes;
use serde_json::Value;

use crate::error::{Defect, LoadError};

/// The most bytes of a `config.json`, chat template or index that are believed.
pub(super) const MAX_TEXT: usize = 64 << 20;

/// The files of a folder by name; `None` for one that is not there.
pub(crate) type Files<'a> = &'a dyn Fn(&str) -> Result<Option<Bytes>, LoadError>;

/// A file that a model cannot do without.
pub(super) fn needed(folder: &Path, files: Files, name: &str) -> Result<Bytes, LoadError> {
    files(name)?.ok_or_else(|| LoadError::Io { path: folder.join(name), source: std::io::ErrorKind::NotFound.into() })
}

pub(super) fn parse_json(bytes: &[u8]) -> Result<Value, Defect> {
    if bytes.len() > MAX_TEXT {
        return Err(Defect::new("file", format!("at most {MAX_TEXT} bytes of JSON"), format!("{}", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|error| Defect::new("file", "JSON", error.to_string()))
}
