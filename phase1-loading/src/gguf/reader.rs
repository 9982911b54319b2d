//! Reads a GGUF header and checks all its counts, lengths, types and offsets.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::value::{Array, Element, Value};
use crate::codec::Format;
use crate::cursor::Cursor;
use crate::error::Defect;
use crate::mistaken::instead_of_gguf;
use crate::tensor::HostTensor;

/// The alignment of tensor data unless `general.alignment` gives another.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// The longest accepted key or tensor name, in bytes.
const MAX_NAME: usize = 65_535;
const MAX_DIMS: u32 = 4;
/// Bytes of the shortest possible metadata entry: a key's length, a type and a value.
const MIN_ENTRY: u64 = 8 + 4 + 1;

type Contents = (BTreeMap<String, Value>, BTreeMap<String, HostTensor>);

pub(super) fn read(file: Bytes) -> Result<Contents, Defect> {
    let mut cursor = Cursor::new(&file, "header");
    let magic = cursor.take(4)?;
    if *magic != MAGIC[..] {
        let found = instead_of_gguf(&file).unwrap_or_else(|| format!("{magic:?}"));
        return Err(cursor.defect("the magic bytes `GGUF`", found));
    }
    let version = cursor.u32()?;
    if version == VERSION.swap_bytes() {
        return Err(cursor.defect("a little-endian GGUF file", "a big-endian one"));
    }
    if version != VERSION {
        return Err(cursor.defect("GGUF version 3", format!("version {version}")));
    }
    let tensor_count = cursor.u64()?;
    let metadata_count = cursor.u64()?;
    for (count, what) in [(tensor_count, "tensors"), (metadata_count, "metadata entries")] {
        if count > file.len() as u64 / MIN_ENTRY {
            let expected = format!("no more {what} than fit into {} bytes", file.len());
            return Err(cursor.defect(expected, format!("{count}")));
        }
    }
    let metadata = read_metadata(&mut cursor, metadata_count)?;
    let descriptions = read_descriptions(&mut cursor, tensor_count)?;

    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(value) => value
            .as_u64()
            .filter(|a| a.is_power_of_two())
            .ok_or_else(|| Defect::new("metadata `general.alignment`", "a power of two", format!("{value:?}")))?,
    };
    let data_start = (cursor.position() as u64)
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| cursor.defect("an alignment that fits the file", format!("{alignment}")))?;
    let tensors = place_tensors(&file, data_start, alignment, descriptions)?;
    Ok((metadata, tensors))
}

fn read_metadata(cursor: &mut Cursor, count: u64) -> Result<BTreeMap<String, Value>, Defect> {
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        cursor.part = format!("metadata entry {index} of {count}");
        let key = read_name(cursor)?;
        cursor.part = format!("metadata `{key}`");
        let value = read_value(cursor)?;
        if metadata.insert(key, value).is_some() {
            return Err(cursor.defect("each key once", "the key a second time"));
        }
    }
    Ok(metadata)
}

/// The type number of MXFP4 in Ollama's first files, whose codes are in OpenAI's order: two neighbouring codes per byte. In files of other
/// programs the number is invalid: ggml used it for a format that was removed.
const MXFP4_IN_PAIRS: u32 = 4;

/// A tensor as the header describes it; its offset is not checked yet.
struct Description {
    name: String,
    format: Format,
    in_pairs: bool,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

fn read_descriptions(cursor: &mut Cursor, count: u64) -> Result<Vec<Description>, Defect> {
    let mut descriptions = Vec::new();
    for index in 0..count {
        cursor.part = format!("description of tensor {index} of {count}");
        let name = read_name(cursor)?;
        cursor.part = format!("tensor `{name}`");
        descriptions.push(read_description(cursor, name)?);
    }
    Ok(descriptions)
}

fn read_description(cursor: &mut Cursor, name: String) -> Result<Description, Defect> {
    let dims = cursor.u32()?;
    if dims == 0 || dims > MAX_DIMS {
        return Err(cursor.defect("1 to 4 dimensions", format!("{dims}")));
    }
    // The file lists the innermost dimension first.
    let mut ne = Vec::new();
    for _ in 0..dims {
        ne.push(cursor.u64()?);
    }
    let number = cursor.u32()?;
    let offset = cursor.u64()?;
    let in_pairs = number == MXFP4_IN_PAIRS;
    let format = if in_pairs { Some(Format::Mxfp4) } else { Format::from_ggml_type(number) };
    let Some(format) = format else {
        return Err(unknown_type(cursor.part.clone(), number));
    };
    let block = format.block_len() as u64;
    if ne.contains(&0) || ne[0] % block != 0 {
        let expected = format!("non-zero dimensions, the first a multiple of {block}");
        return Err(cursor.defect(expected, format!("{ne:?} stored as {}", format.name())));
    }
    let bytes = ne
        .iter()
        .try_fold(1u64, |product, &d| product.checked_mul(d))
        .and_then(|values| (values / block).checked_mul(format.block_bytes() as u64))
        .filter(|&bytes| bytes <= cursor.file().len() as u64)
        .ok_or_else(|| {
            let found = format!("dimensions {ne:?}");
            cursor.defect(format!("at most the file's {} bytes", cursor.file().len()), found)
        })?;
    let shape = ne.iter().rev().map(|&d| d as usize).collect();
    Ok(Description { name, format, in_pairs, shape, bytes, offset })
}

/// The error for a tensor with an unknown type number.
fn unknown_type(part: String, number: u32) -> Defect {
    let known: Vec<_> = Format::GGUF.iter().map(|f| f.name()).collect();
    let found = format!("type number {number} of the ggml tensor types");
    Defect::new(part, format!("one of {}", known.join(", ")), found)
}

/// The error for a tensor whose type number is valid only in Ollama's files, in a file of another program.
pub(crate) fn ollama_only_type(name: &str) -> Defect {
    unknown_type(format!("tensor `{name}`"), MXFP4_IN_PAIRS)
}

/// Returns a slice of the file for every tensor, and checks that it is inside the file, is aligned and overlaps no other.
fn place_tensors(
    file: &Bytes,
    data_start: u64,
    alignment: u64,
    mut descriptions: Vec<Description>,
) -> Result<BTreeMap<String, HostTensor>, Defect> {
    descriptions.sort_by_key(|d| d.offset);
    let mut tensors = BTreeMap::new();
    let mut previous_end = 0;
    for Description { name, format, in_pairs, shape, bytes, offset } in descriptions {
        let part = format!("tensor `{name}`");
        if offset % alignment != 0 {
            let expected = format!("an offset that is a multiple of {alignment}");
            return Err(Defect::new(part, expected, format!("offset {offset}")));
        }
        if offset < previous_end {
            let expected = format!("data after the previous tensor's end at {previous_end}");
            return Err(Defect::new(part, expected, format!("offset {offset}, an overlap")));
        }
        let span = offset
            .checked_add(data_start)
            .and_then(|start| Some((start, start.checked_add(bytes)?)))
            .filter(|&(_, end)| end <= file.len() as u64);
        let Some((start, end)) = span else {
            let expected = format!("{bytes} bytes of data at offset {offset}");
            let found = format!("a file that ends at byte {} (truncated?)", file.len());
            return Err(Defect::new(part, expected, found));
        };
        previous_end = offset + bytes;
        let data = file.slice(start as usize..end as usize);
        let tensor = match in_pairs {
            true => HostTensor::mxfp4_in_pairs(shape, data),
            false => HostTensor::packed_rows(format, shape, data),
        };
        if tensors.insert(name, tensor).is_some() {
            return Err(Defect::new(part, "each name once", "the name a second time"));
        }
    }
    Ok(tensors)
}

/// Reads a length and that many bytes.
fn read_text(cursor: &mut Cursor) -> Result<Bytes, Defect> {
    let len = cursor.u64()?;
    cursor.take(len)
}

fn read_name(cursor: &mut Cursor) -> Result<String, Defect> {
    let bytes = read_text(cursor)?;
    if bytes.len() > MAX_NAME {
        let found = format!("{} bytes", bytes.len());
        return Err(cursor.defect(format!("a name of at most {MAX_NAME} bytes"), found));
    }
    std::str::from_utf8(&bytes)
        .map(str::to_owned)
        .map_err(|_| cursor.defect("a name in UTF-8", format!("{:?}", &bytes[..bytes.len().min(32)])))
}

fn read_element(cursor: &Cursor, number: u32) -> Result<Element, Defect> {
    Element::from_number(number).ok_or_else(|| cursor.defect("a GGUF value type (0 to 12)", format!("{number}")))
}

fn read_value(cursor: &mut Cursor) -> Result<Value, Defect> {
    let number = cursor.u32()?;
    if number == Element::ARRAY {
        return read_array(cursor).map(Value::Array);
    }
    let element = read_element(cursor, number)?;
    match element.size() {
        Some(size) => Ok(element.read(&cursor.take(size as u64)?)),
        None => read_text(cursor).map(Value::Text),
    }
}

fn read_array(cursor: &mut Cursor) -> Result<Array, Defect> {
    let number = cursor.u32()?;
    if number == Element::ARRAY {
        return Err(cursor.defect("an array of scalars or text", "an array of arrays"));
    }
    let element = read_element(cursor, number)?;
    let count = cursor.u64()?;
    let start = cursor.position();
    match element.size() {
        Some(size) => {
            let bytes = count.checked_mul(size as u64);
            cursor.skip(bytes.unwrap_or(u64::MAX))?;
        }
        None => {
            for _ in 0..count {
                let len = cursor.u64()?;
                cursor.skip(len)?;
            }
        }
    }
    Ok(Array { element, count: count as usize, data: cursor.file().slice(start..cursor.position()) })
}
