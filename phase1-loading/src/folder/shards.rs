//! Safetensors files: headers with the name, type, shape and offsets of each tensor, and the data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use bytes::Bytes;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::files::{Files, needed, parse_json};
use crate::error::{Defect, LoadError};

/// A tensor as its file stores it, before it is mapped to a canonical one.
pub(super) struct Part {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Its length agrees with type and shape.
    pub data: Bytes,
}

pub(super) type Parts = BTreeMap<String, Part>;

/// The largest accepted header, in bytes; the safetensors crate has the same limit.
const MAX_HEADER: u64 = 100_000_000;

/// Maps the folder's safetensors files: those named by the index, or the only one.
pub(super) fn open(folder: &Path, files: Files) -> Result<Parts, LoadError> {
    const INDEX: &str = "model.safetensors.index.json";
    const ONLY: &str = "model.safetensors";
    let names = match files(INDEX)? {
        Some(index) => {
            let names = parse_json(&index).and_then(|index| indexed_files(&index));
            names.map_err(|defect| defect.in_file(&folder.join(INDEX)))?
        }
        None if files(ONLY)?.is_none() => {
            // Names other than the index do not tell how many files there are.
            let expected = format!("one, or the index `{INDEX}` of several files");
            return Err(Defect::new(format!("file `{ONLY}`"), expected, "neither").in_file(folder));
        }
        None => BTreeSet::from([ONLY.to_owned()]),
    };
    let mut parts = Parts::new();
    for name in names {
        let path = folder.join(&name);
        let found = read(&needed(folder, files, &name)?).map_err(|defect| defect.in_file(&path))?;
        for (name, part) in found {
            if parts.contains_key(&name) {
                let found = "it in an earlier file too";
                return Err(Defect::new(format!("tensor `{name}`"), "each tensor in one file", found).in_file(&path));
            }
            parts.insert(name, part);
        }
    }
    Ok(parts)
}

/// The files in `weight_map`, each of which must be in the folder itself.
fn indexed_files(index: &serde_json::Value) -> Result<BTreeSet<String>, Defect> {
    let part = "`weight_map`";
    let map = index.get("weight_map").and_then(serde_json::Value::as_object);
    let map = map.ok_or_else(|| Defect::new(part, "an object from tensors to files", "none"))?;
    map.values()
        .map(|file| match file.as_str() {
            Some(file) if Path::new(file).components().eq([Component::Normal(file.as_ref())]) => Ok(file.to_owned()),
            _ => Err(Defect::new(part, "names of files in the folder", format!("{file}"))),
        })
        .collect()
}

/// Slices the tensors out of a file, using its header.
fn read(file: &Bytes) -> Result<Parts, Defect> {
    let header = |expected: &str, found: String| Defect::new("header", expected, found);
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(header("a safetensors file", format!("{} bytes (truncated?)", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > (rest.len() as u64).min(MAX_HEADER) {
        let found = format!("a header of {length} bytes in a file of {} (truncated?)", file.len());
        return Err(header("a header inside the file", found));
    }
    let (json, data) = rest.split_at(length as usize);
    let data = file.slice_ref(data);
    // `SafeTensors::deserialize` is not used: in safetensors 0.8 it adds to the end of the last tensor without a check, which panics in a
    // build with overflow checks.
    let metadata: Metadata = serde_json::from_slice(json)
        .map_err(|error| header("the names, types, shapes and places of tensors", error.to_string()))?;

    let mut parts = Parts::new();
    let mut end_of_all = 0;
    let tensors: BTreeMap<_, _> = metadata.tensors().into_iter().collect();
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        let part = || format!("tensor `{}`", name.chars().take(100).collect::<String>());
        if start > end || end > data.len() {
            let found = format!("bytes {start} to {end} of {} (truncated?)", data.len());
            return Err(Defect::new(part(), "data inside the file", found));
        }
        end_of_all = end_of_all.max(end);
        if info.shape.contains(&0) || info.shape.is_empty() {
            return Err(Defect::new(part(), "dimensions that are not zero", format!("shape {:?}", info.shape)));
        }
        let tensor = Part { dtype: info.dtype, shape: info.shape.clone(), data: data.slice(start..end) };
        parts.insert(name, tensor);
    }
    if end_of_all != data.len() {
        let found = format!("{} bytes of data after a header for {end_of_all}", data.len());
        return Err(header("as much data as the header describes", found));
    }
    Ok(parts)
}
