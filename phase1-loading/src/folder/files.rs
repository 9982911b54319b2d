//! Access to a folder's files by name, and to JSON in them.

use std::path::Path;

use bytes::Bytes;
use serde_json::Value;

use crate::error::{Defect, LoadError};
use crate::mistaken::stand_in;

/// The largest accepted size in bytes of a chat template, and of a JSON file that [`parse_json`] reads, such as `config.json` or the index.
pub(super) const MAX_TEXT: usize = 64 << 20;

/// Returns the file of a folder with a given name; `None` if it is missing.
pub(crate) type Files<'a> = &'a dyn Fn(&str) -> Result<Option<Bytes>, LoadError>;

/// Returns a file that a model requires, and refuses a placeholder that was left in place of a file that was not downloaded.
pub(super) fn needed(folder: &Path, files: Files, name: &str) -> Result<Bytes, LoadError> {
    let path = folder.join(name);
    match files(name)? {
        None => Err(LoadError::Io { path, source: std::io::ErrorKind::NotFound.into() }),
        Some(file) => match stand_in(&file) {
            None => Ok(file),
            Some(found) => Err(Defect::new("file", "the file itself", found).in_file(&path)),
        },
    }
}

pub(super) fn parse_json(bytes: &[u8]) -> Result<Value, Defect> {
    if bytes.len() > MAX_TEXT {
        return Err(Defect::new("file", format!("at most {MAX_TEXT} bytes of JSON"), format!("{}", bytes.len())));
    }
    // Editors on Windows begin a file with a byte order mark.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|error| Defect::new("file", "JSON", error.to_string()))
}
