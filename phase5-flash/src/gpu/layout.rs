//! How matrices lie in device memory: blocks of 32 values, codes apart from scales, so that neighbouring lanes read
//! neighbouring vectors of four words.
//!
//! A row of `blocks` blocks has `vectors` vectors of codes a block. Vector `v` of block `b` of row `r` is vector number
//! `(r · vectors + v) · blocks + b`. The scales of four neighbouring rows' blocks share a word (MXFP4, one byte each) or two
//! (Q8_0, 16 bits each), since kernels work on rows in fours.

use phase1_loading::{Format, HostTensor};
use rayon::prelude::*;

use super::GpuError;
use super::device::{Buffer, Gpu};

/// Values of a block, in every format.
pub(crate) const BLOCK: usize = 32;
/// Rows whose scales lie together; a matrix is padded to a multiple.
pub(crate) const ROW_GROUP: usize = 4;

/// Vectors of four words that hold a block's codes.
pub(crate) const fn vectors(format: Format) -> usize {
    match format {
        Format::F32 => 8,
        Format::F16 | Format::BF16 => 4,
        Format::Q8_0 => 2,
        Format::Mxfp4 => 1,
        _ => panic!("other formats are uploaded as F32"),
    }
}

/// Words that hold the scales of one block in [`ROW_GROUP`] rows.
pub(crate) const fn scale_words(format: Format) -> usize {
    match format {
        Format::F32 | Format::F16 | Format::BF16 => 0,
        Format::Q8_0 => 2,
        Format::Mxfp4 => 1,
        _ => panic!("other formats are uploaded as F32"),
    }
}

/// A stack of `[rows, columns]` matrices on the device; a plain matrix is a stack of one.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub format: Format,
    /// Rows of one matrix.
    pub rows: usize,
    pub columns: usize,
    /// The stack in pieces that each fit a binding; more than one only for a stack of one.
    pub parts: Vec<Part>,
}

/// Rows of a matrix that share buffers.
#[derive(Clone)]
pub(crate) struct Part {
    pub first_row: usize,
    pub rows: usize,
    pub codes: Buffer,
    pub scales: Buffer,
}

impl Matrix {
    pub fn blocks(&self) -> usize {
        self.columns / BLOCK
    }

    /// Rows between the starts of two matrices of the stack.
    pub fn stride(&self) -> usize {
        self.rows.next_multiple_of(ROW_GROUP)
    }

    /// Uploads `tensors`, one below the other as one matrix; or a stack, if it is one tensor of three dimensions. Tensors of
    /// different formats become F32.
    ///
    /// # Errors
    /// A width that is no multiple of 32, or a stack that no binding can span.
    pub fn upload(gpu: &Gpu, name: &str, tensors: &[&HostTensor]) -> Result<Matrix, GpuError> {
        let columns = tensors[0].row_len();
        if !columns.is_multiple_of(BLOCK) {
            return Err(GpuError::Shape(format!(
                "{name}: rows of {columns} values, and the kernels need a multiple of 32"
            )));
        }
        let common = tensors.iter().all(|tensor| tensor.format == tensors[0].format);
        let format = match common && Format::WRITTEN.contains(&tensors[0].format) {
            true => tensors[0].format,
            false => Format::F32,
        };
        let stacked = tensors[0].shape.len() == 3;
        let (stack, rows) = match stacked {
            true => (tensors[0].shape[0], tensors[0].shape[1]),
            false => (1, tensors.iter().map(|tensor| tensor.rows()).sum()),
        };
        let row_bytes = columns / BLOCK * 16 * vectors(format);
        let stride = rows.next_multiple_of(ROW_GROUP);
        let binding_rows = (gpu.binding_bytes as usize / row_bytes / ROW_GROUP) * ROW_GROUP;
        let all_rows = stack * stride;
        if stack > 1 && all_rows > binding_rows {
            return Err(GpuError::Limit {
                what: name.into(),
                need: (all_rows * row_bytes) as u64,
                limit: gpu.binding_bytes,
            });
        }
        let source = Rows { tensors, format, rows, stride };
        let mut parts = Vec::new();
        for first_row in (0..all_rows).step_by(binding_rows) {
            let part_rows = binding_rows.min(all_rows - first_row);
            let (codes, scales) = source.pack(first_row, part_rows);
            let rows = part_rows.min(rows.saturating_sub(first_row));
            let rows = if stack > 1 { part_rows } else { rows };
            parts.push(Part { first_row, rows, codes: gpu.upload_weights(codes), scales: gpu.upload_weights(scales) });
        }
        Ok(Matrix { format, rows, columns, parts })
    }
}

/// The rows of several tensors as one sequence, with the padding between matrices of a stack.
struct Rows<'a> {
    tensors: &'a [&'a HostTensor],
    format: Format,
    rows: usize,
    stride: usize,
}

impl Rows<'_> {
    /// The packed bytes of padded row `row` in the common format; `None` for padding.
    fn row(&self, row: usize) -> Option<bytes::Bytes> {
        let (matrix, row) = (row / self.stride, row % self.stride);
        if row >= self.rows {
            return None;
        }
        let mut row = matrix * self.rows + row;
        for tensor in self.tensors {
            if row < tensor.rows() {
                return Some(tensor.packed_as(self.format, row..row + 1));
            }
            row -= tensor.rows();
        }
        None
    }

    /// Codes and scales of `rows` padded rows from `first` on, in the device's order.
    fn pack(&self, first: usize, rows: usize) -> (Vec<u32>, Vec<u32>) {
        let blocks = self.tensors[0].row_len() / BLOCK;
        let row_words = blocks * 4 * vectors(self.format);
        let scale_words = blocks * scale_words(self.format);
        let mut codes = vec![0; rows * row_words];
        let mut scales = vec![0; rows / ROW_GROUP * scale_words];
        let pack = |group: usize, codes: &mut [u32], scales: &mut [u32]| {
            for (row, codes) in codes.chunks_exact_mut(row_words).enumerate() {
                if let Some(packed) = self.row(first + group * ROW_GROUP + row) {
                    pack_row(self.format, &packed, codes, row, scales);
                }
            }
        };
        let groups = codes.par_chunks_mut(ROW_GROUP * row_words).enumerate();
        match scale_words {
            0 => groups.for_each(|(group, codes)| pack(group, codes, &mut [])),
            _ => groups
                .zip(scales.par_chunks_mut(scale_words))
                .for_each(|((group, codes), scales)| pack(group, codes, scales)),
        }
        (codes, scales)
    }
}

/// One row's codes, and its part `row` of its group's scales.
fn pack_row(format: Format, packed: &[u8], codes: &mut [u32], row: usize, scales: &mut [u32]) {
    let block_bytes = BLOCK / format.block_len() * format.block_bytes();
    let blocks = packed.len() / block_bytes;
    for (b, block) in packed.chunks_exact(block_bytes).enumerate() {
        let mut put = |word: usize, value: u32| codes[((word / 4) * blocks + b) * 4 + word % 4] = value;
        match format {
            Format::F32 | Format::F16 | Format::BF16 => {
                for (word, bytes) in block.as_chunks::<4>().0.iter().enumerate() {
                    put(word, u32::from_le_bytes(*bytes));
                }
            }
            Format::Q8_0 => {
                for (word, bytes) in block[2..].as_chunks::<4>().0.iter().enumerate() {
                    put(word, u32::from_le_bytes(*bytes));
                }
                let scale = u32::from(u16::from_le_bytes([block[0], block[1]]));
                scales[b * 2 + row / 2] |= scale << (row % 2 * 16);
            }
            Format::Mxfp4 => {
                for (half, bytes) in block[1..].as_chunks::<8>().0.iter().enumerate() {
                    let bytes = u64::from_le_bytes(*bytes);
                    put(half, nibbles(bytes));
                    put(half + 2, nibbles(bytes >> 4));
                }
                scales[b] |= u32::from(block[0]) << (row * 8);
            }
            _ => unreachable!("other formats are uploaded as F32"),
        }
    }
}

/// The low halves of eight bytes, side by side in their order.
fn nibbles(bytes: u64) -> u32 {
    let x = bytes & 0x0f0f_0f0f_0f0f_0f0f;
    let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    (x | x >> 16) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_keep_their_order() {
        assert_eq!(nibbles(0xf8f7_f6f5_f4f3_f2f1), 0x8765_4321);
        assert_eq!(nibbles(0xf8e7_d6c5_b4a3_9281 >> 4), 0xfedc_ba98);
    }
}
