//! The layout of matrices in device memory: blocks of 32 values, with codes separate from scales, so that neighbouring lanes read
//! neighbouring vectors of four words.
//!
//! A row of `blocks` blocks has `vectors` vectors of codes per block. Vector `v` of block `b` of row `r` is vector number `(r · vectors +
//! v) · blocks + b`. The scales of a block in four neighbouring rows share a word (MXFP4, one byte each) or two (Q8_0, 16 bits each),
//! because kernels process rows in groups of four.

use formats::mxfp4::{E2M1_MAX, e8m0};
use formats::{BLOCK, Storage};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::device::{Buffer, Device};
use crate::error::Error;

/// Rows whose scales are stored together; matrices are padded to a multiple.
pub(crate) const ROW_GROUP: usize = 4;

/// Vectors of four words that hold a block's codes.
pub(crate) const fn vectors(storage: Storage) -> usize {
    match storage {
        Storage::F32 => 8,
        Storage::F16 | Storage::BF16 => 4,
        Storage::Q8_0 => 2,
        Storage::Mxfp4 => 1,
    }
}

/// Words that hold the scales of one block in [`ROW_GROUP`] rows.
pub(crate) const fn scale_words(storage: Storage) -> usize {
    match storage {
        Storage::F32 | Storage::F16 | Storage::BF16 => 0,
        Storage::Q8_0 => 2,
        Storage::Mxfp4 => 1,
    }
}

/// A stack of `[rows, columns]` matrices on the device; a plain matrix is a stack of one.
#[derive(Clone)]
pub struct Matrix {
    storage: Storage,
    stack: usize,
    rows: usize,
    columns: usize,
    parts: Vec<Part>,
    fits_f16: bool,
}

/// Rows of a matrix that are in the same buffers.
#[derive(Clone)]
pub(crate) struct Part {
    pub first_row: usize,
    pub rows: usize,
    pub codes: Buffer,
    pub scales: Buffer,
}

impl Matrix {
    /// Uploads `stack` matrices of `rows` rows of `columns` values each. `row` returns the packed bytes of a row, counted over the whole
    /// stack; several threads call it, once per row. `name` is used in messages.
    ///
    /// # Errors
    /// `columns` is not a multiple of 32, or a stack is larger than one binding.
    ///
    /// # Panics
    /// If the number of bytes of a row is not what `storage` needs for `columns` values.
    pub fn upload<Bytes: AsRef<[u8]>>(
        device: &Device,
        name: &str,
        storage: Storage,
        [stack, rows, columns]: [usize; 3],
        row: impl Fn(usize) -> Bytes + Sync,
    ) -> Result<Matrix, Error> {
        if !columns.is_multiple_of(BLOCK) {
            return Err(Error::Shape(format!(
                "{name}: rows have {columns} values, but the kernels need a multiple of 32"
            )));
        }
        let row_bytes = columns / BLOCK * 16 * vectors(storage);
        let stride = rows.next_multiple_of(ROW_GROUP);
        let binding_rows = (device.binding_bytes() as usize / row_bytes / ROW_GROUP) * ROW_GROUP;
        let all_rows = stack * stride;
        if stack > 1 && all_rows > binding_rows {
            let need = (all_rows * row_bytes) as u64;
            return Err(Error::Limit { what: name.into(), need, limit: device.binding_bytes() });
        }
        let source = Rows { row, storage, rows, columns, stride };
        let mut parts = Vec::new();
        let mut largest = 0.0f32;
        for first_row in (0..all_rows).step_by(binding_rows) {
            let part_rows = binding_rows.min(all_rows - first_row);
            let packed = source.pack(first_row, part_rows);
            largest = largest.max(packed.largest);
            let rows = part_rows.min(rows.saturating_sub(first_row));
            let rows = if stack > 1 { part_rows } else { rows };
            let [codes, scales] = [packed.codes, packed.scales].map(|words| device.upload_weights(words));
            parts.push(Part { first_row, rows, codes, scales });
        }
        Ok(Matrix { storage, stack, rows, columns, parts, fits_f16: fits_f16(largest) })
    }

    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Number of matrices in the stack.
    pub fn stack(&self) -> usize {
        self.stack
    }

    /// Rows per matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Blocks per row.
    pub(crate) fn blocks(&self) -> usize {
        self.columns / BLOCK
    }

    /// Distance in rows between two matrices of the stack.
    pub(crate) fn stride(&self) -> usize {
        self.rows.next_multiple_of(ROW_GROUP)
    }

    /// The parts of the stack, each of which fits a binding. Only a stack of one matrix has several.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The only part of a matrix.
    pub(crate) fn whole(&self) -> &Part {
        assert_eq!(self.parts.len(), 1, "the matrix must have a single part");
        &self.parts[0]
    }

    /// Whether the values can be converted to 16-bit floats: none overflows, and those that underflow are below 2⁻¹² of the largest, which
    /// is less than the error of rounding to 11 bits.
    pub(crate) fn fits_f16(&self) -> bool {
        self.fits_f16
    }
}

/// Whether values up to `largest` can be converted to 16-bit floats, whose smallest step is 2⁻²⁴.
fn fits_f16(largest: f32) -> bool {
    largest == 0.0 || (1.0 / 4096.0..=65504.0).contains(&largest)
}

/// An upper bound of the magnitudes in a packed block; infinite for NaN.
fn largest_of(storage: Storage, block: &[u8]) -> f32 {
    let largest = |values: &mut dyn Iterator<Item = f32>| {
        values.fold(0.0f32, |largest, value| if value.is_nan() { f32::INFINITY } else { largest.max(value.abs()) })
    };
    match storage {
        Storage::F32 => largest(&mut block.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
        // F16 values need no conversion.
        Storage::F16 => 1.0,
        Storage::BF16 => largest(&mut block.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32())),
        Storage::Q8_0 => largest(&mut [128.0 * f16::from_le_bytes([block[0], block[1]]).to_f32()].into_iter()),
        Storage::Mxfp4 => E2M1_MAX * e8m0(block[0]),
    }
}

/// The rows of a stack in one sequence, including the padding between its matrices.
struct Rows<F> {
    row: F,
    storage: Storage,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// Rows in the device's layout.
struct Packed {
    codes: Vec<u32>,
    scales: Vec<u32>,
    /// An upper bound of the values' magnitudes.
    largest: f32,
}

impl<Bytes: AsRef<[u8]>, F: Fn(usize) -> Bytes + Sync> Rows<F> {
    /// The packed bytes of row `row`, counted with padding; `None` for padding.
    fn row(&self, row: usize) -> Option<Bytes> {
        let (matrix, row) = (row / self.stride, row % self.stride);
        (row < self.rows).then(|| (self.row)(matrix * self.rows + row))
    }

    /// Packs `rows` rows from `first` on, counted with padding.
    fn pack(&self, first: usize, rows: usize) -> Packed {
        let blocks = self.columns / BLOCK;
        let row_words = blocks * 4 * vectors(self.storage);
        let scale_words = blocks * scale_words(self.storage);
        let mut codes = vec![0; rows * row_words];
        let mut scales = vec![0; rows / ROW_GROUP * scale_words];
        let pack = |group: usize, codes: &mut [u32], scales: &mut [u32]| {
            let mut largest = 0.0f32;
            for (row, codes) in codes.chunks_exact_mut(row_words).enumerate() {
                if let Some(packed) = self.row(first + group * ROW_GROUP + row) {
                    let packed = packed.as_ref();
                    assert_eq!(packed.len(), blocks * self.storage.block_bytes(), "the bytes of a row");
                    largest = largest.max(pack_row(self.storage, packed, codes, row, scales));
                }
            }
            largest
        };
        let groups = codes.par_chunks_mut(ROW_GROUP * row_words).enumerate();
        let largest = match scale_words {
            0 => groups.map(|(group, codes)| pack(group, codes, &mut [])).reduce(|| 0.0, f32::max),
            _ => groups
                .zip(scales.par_chunks_mut(scale_words))
                .map(|((group, codes), scales)| pack(group, codes, scales))
                .reduce(|| 0.0, f32::max),
        };
        Packed { codes, scales, largest }
    }
}

/// Packs the codes of one row, and its scales as row `row` of its group. Returns an upper bound of its magnitudes.
fn pack_row(storage: Storage, packed: &[u8], codes: &mut [u32], row: usize, scales: &mut [u32]) -> f32 {
    let block_bytes = storage.block_bytes();
    let blocks = packed.len() / block_bytes;
    let mut largest = 0.0f32;
    for (b, block) in packed.chunks_exact(block_bytes).enumerate() {
        largest = largest.max(largest_of(storage, block));
        let mut put = |word: usize, value: u32| codes[((word / 4) * blocks + b) * 4 + word % 4] = value;
        match storage {
            Storage::F32 | Storage::F16 | Storage::BF16 => {
                for (word, bytes) in block.as_chunks::<4>().0.iter().enumerate() {
                    put(word, u32::from_le_bytes(*bytes));
                }
            }
            Storage::Q8_0 => {
                for (word, bytes) in block[2..].as_chunks::<4>().0.iter().enumerate() {
                    put(word, u32::from_le_bytes(*bytes));
                }
                let scale = u32::from(u16::from_le_bytes([block[0], block[1]]));
                scales[b * 2 + row / 2] |= scale << (row % 2 * 16);
            }
            Storage::Mxfp4 => {
                for (half, bytes) in block[1..].as_chunks::<8>().0.iter().enumerate() {
                    let bytes = u64::from_le_bytes(*bytes);
                    put(half, nibbles(bytes));
                    put(half + 2, nibbles(bytes >> 4));
                }
                scales[b] |= u32::from(block[0]) << (row * 8);
            }
        }
    }
    largest
}

/// The low nibbles of eight bytes, packed into a word in order.
fn nibbles(bytes: u64) -> u32 {
    let x = bytes & 0x0f0f_0f0f_0f0f_0f0f;
    let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    (x | x >> 16) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::device;

    #[test]
    fn nibbles_keep_their_order() {
        assert_eq!(nibbles(0xf8f7_f6f5_f4f3_f2f1), 0x8765_4321);
        assert_eq!(nibbles(0xf8e7_d6c5_b4a3_9281 >> 4), 0xfedc_ba98);
    }

    #[test]
    fn a_matrix_beyond_f16_is_marked() {
        let device = device();
        let fits = |storage: Storage, values: [f32; BLOCK]| {
            let packed = storage.encode(&values);
            Matrix::upload(&device, "w", storage, [1, 1, BLOCK], |_| &packed).expect("uploads").fits_f16()
        };
        for storage in Storage::ALL {
            assert!(fits(storage, [1.0; BLOCK]), "{storage:?}");
            assert!(fits(storage, [0.0; BLOCK]), "{storage:?}");
        }
        for storage in [Storage::F32, Storage::BF16, Storage::Mxfp4] {
            assert!(!fits(storage, [1e6; BLOCK]), "{storage:?}");
            assert!(!fits(storage, [1e-9; BLOCK]), "{storage:?}");
        }
        // One large value among small ones; values that are too small compared with the others.
        let mut values = [1.0; BLOCK];
        values[17] = -70_000.0;
        assert!(!fits(Storage::F32, values));
        values[17] = 1e-30;
        assert!(fits(Storage::F32, values));
        values[17] = f32::NAN;
        assert!(!fits(Storage::F32, values));
    }
}
