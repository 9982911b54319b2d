//! A model in several GGUF files, `NAME-00001-of-0000N.gguf`: the first has the metadata, all have tensors.

use std::path::{Path, PathBuf};

use super::file::Gguf;
use crate::error::{Defect, LoadError};

/// More files than anyone splits a model into.
const MAX_FILES: u64 = 1000;

/// Opens a GGUF file; and the others, if it is the first of several.
///
/// # Errors
/// As [`Gguf::open`]; a file that is not the first, or others that are missing, cannot be read or repeat a tensor.
pub fn open(path: &Path) -> Result<Gguf, LoadError> {
    let mut gguf = Gguf::open(path)?;
    join_others(&mut gguf)?;
    Ok(gguf)
}

/// Adds the tensors of the files that `first` says belong to it.
fn join_others(first: &mut Gguf) -> Result<(), LoadError> {
    let in_first = |defect: Defect| defect.in_file(&first.path);
    let count = split_number(first, "split.count").map_err(in_first)?.unwrap_or(1);
    if count <= 1 {
        return Ok(());
    }
    let part = "metadata `split.no`";
    if count > MAX_FILES {
        let expected = format!("at most {MAX_FILES} files");
        return Err(in_first(Defect::new("metadata `split.count`", expected, count.to_string())));
    }
    let number = split_number(first, "split.no").map_err(in_first)?.unwrap_or(0);
    if number != 0 {
        let found = format!("file {} of {count}", number + 1);
        return Err(in_first(Defect::new(part, format!("the first of the {count} files to be named"), found)));
    }
    let Some(stem) = stem(&first.path, count) else {
        let expected = format!("a name that ends in `-00001-of-{count:05}.gguf`, as the other files' names do");
        return Err(in_first(Defect::new("file name", expected, "another")));
    };
    for number in 1..count {
        let path = PathBuf::from(format!("{stem}-{:05}-of-{count:05}.gguf", number + 1));
        let other = Gguf::open(&path)?;
        let in_other = |defect: Defect| defect.in_file(&path);
        let found = split_number(&other, "split.no").map_err(in_other)?;
        if found != Some(number) {
            let found = found.map_or("none".into(), |n| n.to_string());
            return Err(in_other(Defect::new(part, number.to_string(), found)));
        }
        for (name, tensor) in other.tensors {
            if first.tensors.contains_key(&name) {
                let found = "it in an earlier file too";
                return Err(in_other(Defect::new(format!("tensor `{name}`"), "each tensor in one file", found)));
            }
            first.tensors.insert(name, tensor);
        }
    }
    Ok(())
}

fn split_number(gguf: &Gguf, key: &str) -> Result<Option<u64>, Defect> {
    let Some(value) = gguf.metadata.get(key) else { return Ok(None) };
    let number = value.as_u64();
    number.map(Some).ok_or_else(|| Defect::new(format!("metadata `{key}`"), "a non-negative integer", value.kind()))
}

/// What the files' names have in common, with the directory.
fn stem(first: &Path, count: u64) -> Option<String> {
    first.to_str()?.strip_suffix(&format!("-00001-of-{count:05}.gguf")).map(str::to_owned)
}
