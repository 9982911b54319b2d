//! The layout of matrices in device memory: blocks of 32 values, with codes separate from scales, so that neighbouring lanes read
//! neighbouring vectors of four words.
//!
//! A row of `blocks` blocks has `vectors` vectors of codes per block. Vector `v` of block `b` of row `r` is vector number `(r · vectors +
//! v) · blocks + b`. The scales of a block in four neighbouring rows share a word (MXFP4, one byte each) or two (Q8_0, 16 bits each),
//! because kernels process rows in groups of four.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use formats::{BLOCK, Storage};

use crate::device::{Buffer, Device};
use crate::error::Error;

/// Rows whose scales are stored together; matrices are padded to a multiple of this number of rows.
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
    /// Shared by all clones, because [`Unfilled`](crate::Unfilled) fills the matrix through a clone.
    fits_f16: Arc<AtomicBool>,
}

/// Rows of a matrix whose codes are in one buffer, and whose scales are in another.
#[derive(Clone)]
pub(crate) struct Part {
    pub first_row: usize,
    pub rows: usize,
    pub codes: Buffer,
    pub scales: Buffer,
}

impl Matrix {
    /// Memory for `stack` matrices of `rows` rows of `columns` values each. Values are undefined until
    /// [`Unfilled::fill`](crate::Unfilled::fill) has written them. `name` is used in messages.
    ///
    /// # Errors
    /// `columns` is not a multiple of 32, or a stack, or the smallest part of a matrix, is larger than one binding.
    pub fn empty(
        device: &Device,
        name: &str,
        storage: Storage,
        [stack, rows, columns]: [usize; 3],
    ) -> Result<Matrix, Error> {
        if !columns.is_multiple_of(BLOCK) {
            return Err(Error::Shape(format!(
                "{name}: rows have {columns} values, but the kernels need a multiple of 32"
            )));
        }
        let blocks = columns / BLOCK;
        let row_words = blocks * 4 * vectors(storage);
        let all_rows = stack * rows.next_multiple_of(ROW_GROUP);
        // A plain matrix may be divided into several parts.
        let least_rows = if stack > 1 { all_rows } else { ROW_GROUP };
        let binding_rows = rows_per_binding(name, device.binding_bytes(), row_words * 4, least_rows)?;
        let part = |first_row: usize| {
            let padded_rows = binding_rows.min(all_rows - first_row);
            let codes = device.empty_weights(padded_rows * row_words);
            let scales = device.empty_weights(padded_rows / ROW_GROUP * blocks * scale_words(storage));
            let rows = if stack > 1 { padded_rows } else { padded_rows.min(rows.saturating_sub(first_row)) };
            Part { first_row, rows, codes, scales }
        };
        let parts = (0..all_rows).step_by(binding_rows).map(part).collect();
        Ok(Matrix { storage, stack, rows, columns, parts, fits_f16: Arc::new(AtomicBool::new(true)) })
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

    /// Whether the values can be converted to 16-bit floats: nothing overflows, and values that underflow are below 2⁻¹² of the largest,
    /// which is less than the error of rounding to 11 bits. True until the matrix is filled.
    pub(crate) fn fits_f16(&self) -> bool {
        self.fits_f16.load(Ordering::Relaxed)
    }

    /// Records that no magnitude is above `largest`.
    pub(crate) fn bound_values(&self, largest: f32) {
        self.fits_f16.store(fits_f16(self.storage, largest), Ordering::Relaxed);
    }
}

/// Whether values up to `largest` can be converted to 16-bit floats, whose smallest step is 2⁻²⁴ and whose largest value is 65,504. Kernels
/// unpack MXFP4 with its scale times 2¹⁴, so its scale must be at most 2, and its values at most 12.
fn fits_f16(storage: Storage, largest: f32) -> bool {
    let most = if storage == Storage::Mxfp4 { 12.0 } else { 65504.0 };
    largest == 0.0 || (1.0 / 4096.0..=most).contains(&largest)
}

/// The number of rows of `row_bytes` each that fit a binding of `limit` bytes, in whole groups.
///
/// # Errors
/// Fewer than `least` rows fit.
fn rows_per_binding(name: &str, limit: u64, row_bytes: usize, least: usize) -> Result<usize, Error> {
    let rows = usize::try_from(limit / row_bytes as u64).unwrap_or(usize::MAX) / ROW_GROUP * ROW_GROUP;
    match rows >= least {
        true => Ok(rows),
        false => Err(Error::Limit { what: name.into(), need: (least * row_bytes) as u64, limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{device, filled};
    #[test]
    fn rows_fit_a_binding() {
        let rows = |limit, least| rows_per_binding("blk.0.ffn_up_exps.weight", limit, 1000, least);
        for (limit, least, expected) in [(12_000, 12, 12), (15_999, 12, 12), (16_000, 12, 16), (4000, 4, 4)] {
            assert_eq!(rows(limit, least).expect("rows"), expected, "{limit}");
        }
        for (limit, least) in [(11_999, 12), (3999, 4), (0, 4)] {
            let refused = rows(limit, least).expect_err("refused").to_string();
            let need = least * 1000;
            let expected = format!("needs a buffer of {need} bytes, but this adapter binds at most {limit}");
            assert_eq!(refused, format!("blk.0.ffn_up_exps.weight {expected}"));
        }
    }

    #[test]
    fn a_matrix_beyond_f16_is_marked() {
        let device = device();
        let fits = |storage: Storage, values: [f32; BLOCK]| {
            filled(&device, storage, [1, 1, BLOCK], &storage.encode(&values)).fits_f16()
        };
        for storage in Storage::ALL {
            assert!(fits(storage, [1.0; BLOCK]), "{storage:?}");
            assert!(fits(storage, [0.0; BLOCK]), "{storage:?}");
        }
        assert!(fits(Storage::Mxfp4, [12.0; BLOCK]) && !fits(Storage::Mxfp4, [24.0; BLOCK]));
        for storage in [Storage::F32, Storage::BF16, Storage::Mxfp4] {
            assert!(!fits(storage, [1e6; BLOCK]), "{storage:?}");
            assert!(!fits(storage, [1e-9; BLOCK]), "{storage:?}");
        }
        // One value that is too large excludes a matrix. One tiny value does not, if others are larger.
        let mut values = [1.0; BLOCK];
        values[17] = -70_000.0;
        assert!(!fits(Storage::F32, values));
        values[17] = 1e-30;
        assert!(fits(Storage::F32, values));
        values[17] = f32::NAN;
        assert!(!fits(Storage::F32, values));
    }
}
