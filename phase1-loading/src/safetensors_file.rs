//! A safetensors file: a header with metadata and the name, type, shape and offsets of each tensor, and the data.

use std::collections::BTreeMap;

use bytes::Bytes;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::Defect;

/// A tensor as its file stores it, before it is converted to GGUF's name and layout.
pub(crate) struct Part {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Its length matches the type and shape.
    pub data: Bytes,
}

/// Tensors by name.
pub(crate) type Parts = BTreeMap<String, Part>;

/// The largest accepted header, in bytes; the safetensors crate has the same limit.
const MAX_HEADER: u64 = 100_000_000;

/// Reads the header of a file. Returns its metadata, and a slice of the file per tensor; no tensor data is read.
pub(crate) fn read(file: &Bytes) -> Result<(Metadata, Parts), Defect> {
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
    // `SafeTensors::deserialize` is not used: in safetensors 0.8 it computes the end of the file with an unchecked addition, which panics
    // in a build with overflow checks.
    let metadata: Metadata = serde_json::from_slice(json)
        .map_err(|error| header("the names, types, shapes and offsets of tensors", error.to_string()))?;

    let mut parts = Parts::new();
    let mut end_of_all = 0;
    let tensors: BTreeMap<_, _> = metadata.tensors().into_iter().collect();
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        if start > end || end > data.len() {
            let found = format!("bytes {start} to {end} of {} (truncated?)", data.len());
            return Err(Defect::new(title(&name), "data inside the file", found));
        }
        end_of_all = end_of_all.max(end);
        let part = Part { dtype: info.dtype, shape: info.shape.clone(), data: data.slice(start..end) };
        parts.insert(name, part);
    }
    if end_of_all != data.len() {
        let found = format!("{} bytes of data instead of {end_of_all}", data.len());
        return Err(header("as much data as the header describes", found));
    }
    Ok((metadata, parts))
}

/// The name of a tensor in errors.
pub(crate) fn title(name: &str) -> String {
    format!("tensor `{}`", excerpt(name))
}

/// The beginning of a text, to be quoted in an error: the whole text may be as long as a header.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(100).collect()
}
