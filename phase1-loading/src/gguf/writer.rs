//! Writes the header of a GGUF file; the caller then streams the tensor data.

use std::io::{self, Write};

use super::reader::DEFAULT_ALIGNMENT;
use crate::codec::Format;

/// A metadata value to write.
pub enum MetadataValue {
    U32(u32),
    F32(f32),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    Bools(Vec<bool>),
}

/// A tensor whose data will follow the header.
pub struct TensorPlan {
    pub name: String,
    pub format: Format,
    /// Row-major, as [`crate::HostTensor::shape`].
    pub shape: Vec<usize>,
}

impl TensorPlan {
    /// Bytes of the tensor's data, without padding.
    pub fn bytes(&self) -> u64 {
        let row = *self.shape.last().expect("a tensor has a dimension");
        let rows: usize = self.shape[..self.shape.len() - 1].iter().product();
        (rows * self.format.row_bytes(row)) as u64
    }

    /// Number of zero bytes between this tensor's data and the next tensor's.
    pub fn padding(&self) -> u64 {
        self.padded_bytes() - self.bytes()
    }

    /// Bytes from this tensor's data to the next one's.
    pub fn padded_bytes(&self) -> u64 {
        self.bytes().next_multiple_of(DEFAULT_ALIGNMENT)
    }
}

/// Writes everything before the first tensor's data. The data of the plans must follow in order, each padded with zeros to
/// [`TensorPlan::padded_bytes`].
pub fn write_header(
    out: &mut impl Write,
    metadata: &[(String, MetadataValue)],
    tensors: &[TensorPlan],
) -> io::Result<()> {
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut header, key);
        put_value(&mut header, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for &dim in tensor.shape.iter().rev() {
            header.extend((dim as u64).to_le_bytes());
        }
        header.extend(tensor.format.ggml_type().expect("a format of GGUF files").to_le_bytes());
        header.extend(u64::to_le_bytes(offset));
        offset += tensor.padded_bytes();
    }
    header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
    out.write_all(&header)
}

fn put_text(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}

fn put_value(header: &mut Vec<u8>, value: &MetadataValue) {
    const ARRAY: u32 = 9;
    let types: &[u32] = match value {
        MetadataValue::U32(_) => &[4],
        MetadataValue::F32(_) => &[6],
        MetadataValue::Text(_) => &[8],
        MetadataValue::Texts(_) => &[ARRAY, 8],
        MetadataValue::I32s(_) => &[ARRAY, 5],
        MetadataValue::Bools(_) => &[ARRAY, 7],
    };
    header.extend(types.iter().flat_map(|number| number.to_le_bytes()));
    match value {
        MetadataValue::U32(v) => header.extend(v.to_le_bytes()),
        MetadataValue::F32(v) => header.extend(v.to_le_bytes()),
        MetadataValue::Text(text) => put_text(header, text),
        MetadataValue::Texts(texts) => {
            header.extend((texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|text| put_text(header, text));
        }
        MetadataValue::I32s(values) => {
            header.extend((values.len() as u64).to_le_bytes());
            values.iter().for_each(|v| header.extend(v.to_le_bytes()));
        }
        MetadataValue::Bools(values) => {
            header.extend((values.len() as u64).to_le_bytes());
            header.extend(values.iter().map(|&v| u8::from(v)));
        }
    }
}
