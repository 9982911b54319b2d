//! A model in several GGUF files, `NAME-00001-of-0000N.gguf`: the first has the metadata, and any may have tensors.

use std::path::{Path, PathBuf};

use super::file::Gguf;
use crate::error::{Defect, LoadError};

/// The largest accepted number of files.
const MAX_FILES: u64 = 1000;

/// The key with the number of tensors in all files together.
const TENSORS: &str = "split.tensors.count";

/// Opens a GGUF file and, if it is one of several, the others.
///
/// # Errors
/// As [`Gguf::open`], for each of the files; or more than 1,000 files, a file name or number that does not fit the others, a tensor that
/// occurs in two files, a total number of tensors other than the first file states, or a `split.` key that is not a non-negative integer.
pub fn open(path: &Path) -> Result<Gguf, LoadError> {
    let named = Gguf::open(path)?;
    let in_named = |defect: Defect| defect.in_file(&named.path);
    let count = split_number(&named, "split.count").map_err(in_named)?.unwrap_or(1);
    if count <= 1 {
        return Ok(named);
    }
    if count > MAX_FILES {
        let expected = format!("at most {MAX_FILES} files");
        return Err(in_named(Defect::new("metadata `split.count`", expected, count.to_string())));
    }
    let number = split_number(&named, "split.no").map_err(in_named)?.unwrap_or(0);
    let Some(stem) = stem(&named.path, number, count) else {
        let expected = format!(
            "a name that ends in `-{:05}-of-{count:05}.gguf`, as the other files' names do",
            number.saturating_add(1)
        );
        return Err(in_named(Defect::new("file name", expected, "another")));
    };
    let file = |number: u64| PathBuf::from(format!("{stem}-{:05}-of-{count:05}.gguf", number + 1));
    // The first file has the metadata, so it is read first even if the caller named another one.
    let mut first = if number == 0 { named } else { numbered(&file(0), 0)? };
    for number in 1..count {
        let path = file(number);
        for (name, tensor) in numbered(&path, number)?.tensors {
            if first.tensors.contains_key(&name) {
                let found = "it in an earlier file too";
                let defect = Defect::new(format!("tensor `{name}`"), "each tensor in one file", found);
                return Err(defect.in_file(&path));
            }
            first.tensors.insert(name, tensor);
        }
    }
    let in_first = |defect: Defect| defect.in_file(&first.path);
    match split_number(&first, TENSORS).map_err(in_first)? {
        Some(tensors) if tensors != first.tensors.len() as u64 => {
            let expected = format!("the {} tensors that the {count} files have", first.tensors.len());
            Err(in_first(Defect::new(format!("metadata `{TENSORS}`"), expected, tensors.to_string())))
        }
        _ => Ok(first),
    }
}

/// Opens the file with that number.
fn numbered(path: &Path, number: u64) -> Result<Gguf, LoadError> {
    let gguf = Gguf::open(path)?;
    let in_file = |defect: Defect| defect.in_file(path);
    let found = split_number(&gguf, "split.no").map_err(in_file)?;
    if found != Some(number) {
        let found = found.map_or("none".into(), |found| found.to_string());
        return Err(in_file(Defect::new("metadata `split.no`", number.to_string(), found)));
    }
    Ok(gguf)
}

fn split_number(gguf: &Gguf, key: &str) -> Result<Option<u64>, Defect> {
    let Some(value) = gguf.metadata.get(key) else { return Ok(None) };
    let number = value.as_u64();
    number.map(Some).ok_or_else(|| Defect::new(format!("metadata `{key}`"), "a non-negative integer", value.kind()))
}

/// The common beginning of the files' paths, derived from one of them.
fn stem(path: &Path, number: u64, count: u64) -> Option<String> {
    let number = number.checked_add(1)?;
    path.to_str()?.strip_suffix(&format!("-{number:05}-of-{count:05}.gguf")).map(str::to_owned)
}
