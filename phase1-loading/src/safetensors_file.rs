//! A safetensors file: a header of names, types, shapes and places, texts about the whole, and the data that the places point to.

use std::collections::BTreeMap;

use bytes::Bytes;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::Defect;

/// A tensor as its file stores it, not yet understood.
pub(crate) struct Part {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// As long as type and shape say.
    pub data: Bytes,
}

/// Tensors by name.
pub(crate) type Parts = BTreeMap<String, Part>;

/// The most bytes of a header that are believed, as in the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;

/// The header of a file, and its tensors, cut out of it. No data is read.
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
    // Not `SafeTensors::deserialize`, which in safetensors 0.8 adds to the end of the last tensor without checking: a
    // build with overflow checks panics there.
    let metadata: Metadata = serde_json::from_slice(json)
        .map_err(|error| header("the names, types, shapes and places of tensors", error.to_string()))?;

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
        let found = format!("{} bytes of data after a header for {end_of_all}", data.len());
        return Err(header("as much data as the header describes", found));
    }
    Ok((metadata, parts))
}

/// What errors call a tensor.
pub(crate) fn title(name: &str) -> String {
    format!("tensor `{}`", beginning(name))
}

/// What errors quote of a text, which may be as long as a header.
pub(crate) fn beginning(text: &str) -> String {
    text.chars().take(100).collect()
}
