//! Rows of packed weights, and how kernels decode a block of each storage format.

use formats::mxfp4::HALF_E8M0;
use formats::{BLOCK, Storage};

use crate::simd::{LANES, Simd};

/// Consecutive rows of a packed matrix.
#[derive(Clone, Copy)]
pub struct PackedRows<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) storage: Storage,
    pub(crate) columns: usize,
    pub(crate) count: usize,
}

impl<'a> PackedRows<'a> {
    /// # Panics
    /// If `columns` is not a positive multiple of 32, or `data` is not whole rows.
    pub fn new(data: &'a [u8], storage: Storage, columns: usize) -> PackedRows<'a> {
        assert!(columns > 0 && columns.is_multiple_of(BLOCK), "{columns} columns are not whole blocks");
        let row_bytes = columns / BLOCK * storage.block_bytes();
        assert!(data.len().is_multiple_of(row_bytes), "{} bytes are not whole rows of {row_bytes}", data.len());
        PackedRows { data, storage, columns, count: data.len() / row_bytes }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn blocks(&self) -> usize {
        self.columns / BLOCK
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.blocks() * self.storage.block_bytes()
    }

    pub(crate) fn row(&self, row: usize) -> *const u8 {
        self.data[row * self.row_bytes()..].as_ptr()
    }
}

/// Decoding of one block of 32 values.
///
/// # Safety
/// For every function: the machine has the instructions of `S`, and `p` points to [`Block::BYTES`] readable bytes.
pub(crate) trait Block {
    const BYTES: usize;
    /// Whether values must still be multiplied by [`Block::scale`].
    const SCALED: bool;

    /// The first 16 values and the last 16, before scaling.
    unsafe fn values<S: Simd>(p: *const u8) -> (S::V, S::V);
    /// The scale, in every lane.
    unsafe fn scale<S: Simd>(p: *const u8) -> S::V;
}

/// Decoding of a quantized block, whose values are integers times a scale.
///
/// # Safety
/// As for [`Block`].
pub(crate) trait IntegerBlock {
    /// The 32 values as 16-bit integers in pairs: value = integer · [unit](IntegerBlock::units).
    unsafe fn pairs<S: Simd>(p: *const u8) -> S::I;
    /// The unit of the integers in each of 16 blocks.
    unsafe fn units<S: Simd>(blocks: [*const u8; LANES]) -> S::V;
}

pub(crate) struct F32Block;
pub(crate) struct F16Block;
pub(crate) struct BF16Block;
pub(crate) struct Q8Block;
pub(crate) struct Mxfp4Block;

/// Evaluates an expression in which `$block` is the [`Block`] type of a storage.
macro_rules! with_block {
    ($storage:expr, $block:ident => $run:expr) => {
        match $storage {
            formats::Storage::F32 => {
                type $block = $crate::weights::F32Block;
                $run
            }
            formats::Storage::F16 => {
                type $block = $crate::weights::F16Block;
                $run
            }
            formats::Storage::BF16 => {
                type $block = $crate::weights::BF16Block;
                $run
            }
            formats::Storage::Q8_0 => {
                type $block = $crate::weights::Q8Block;
                $run
            }
            formats::Storage::Mxfp4 => {
                type $block = $crate::weights::Mxfp4Block;
                $run
            }
        }
    };
}
pub(crate) use with_block;

impl Block for F32Block {
    const BYTES: usize = 4 * BLOCK;
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn values<S: Simd>(p: *const u8) -> (S::V, S::V) {
        // SAFETY: 128 bytes; vectors are loaded unaligned.
        unsafe { (S::load(p.cast()), S::load(p.add(64).cast())) }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(_: *const u8) -> S::V {
        // SAFETY: the caller guarantees the contract.
        unsafe { S::splat(1.0) }
    }
}

impl Block for F16Block {
    const BYTES: usize = 2 * BLOCK;
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn values<S: Simd>(p: *const u8) -> (S::V, S::V) {
        // SAFETY: 64 bytes.
        unsafe { (S::load_f16(p), S::load_f16(p.add(32))) }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(_: *const u8) -> S::V {
        // SAFETY: the caller guarantees the contract.
        unsafe { S::splat(1.0) }
    }
}

impl Block for BF16Block {
    const BYTES: usize = 2 * BLOCK;
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn values<S: Simd>(p: *const u8) -> (S::V, S::V) {
        // SAFETY: 64 bytes.
        unsafe { (S::load_bf16(p), S::load_bf16(p.add(32))) }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(_: *const u8) -> S::V {
        // SAFETY: the caller guarantees the contract.
        unsafe { S::splat(1.0) }
    }
}

impl Block for Q8Block {
    const BYTES: usize = 2 + BLOCK;
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn values<S: Simd>(p: *const u8) -> (S::V, S::V) {
        // SAFETY: 34 bytes, of which the last 32 are values.
        unsafe { (S::load_i8(p.add(2)), S::load_i8(p.add(18))) }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(p: *const u8) -> S::V {
        // SAFETY: the first 2 bytes are the scale.
        unsafe { S::splat_f16(p) }
    }
}

impl IntegerBlock for Q8Block {
    #[inline(always)]
    unsafe fn pairs<S: Simd>(p: *const u8) -> S::I {
        // SAFETY: 34 bytes, of which the last 32 are values.
        unsafe { S::i8_pairs(p.add(2)) }
    }
    #[inline(always)]
    unsafe fn units<S: Simd>(blocks: [*const u8; LANES]) -> S::V {
        // SAFETY: the first 2 bytes are the scale.
        unsafe {
            let mut scales = [0u16; LANES];
            for lane in 0..LANES {
                scales[lane] = blocks[lane].cast::<u16>().read_unaligned();
            }
            S::load_f16(scales.as_ptr().cast())
        }
    }
}

impl Block for Mxfp4Block {
    const BYTES: usize = 1 + BLOCK / 2;
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn values<S: Simd>(p: *const u8) -> (S::V, S::V) {
        // SAFETY: 17 bytes, of which the last 16 are codes.
        unsafe { S::e2m1(p.add(1)) }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(p: *const u8) -> S::V {
        // SAFETY: the first byte is the scale, and the table has 256 entries.
        unsafe { S::splat(HALF_E8M0[usize::from(*p)]) }
    }
}

impl IntegerBlock for Mxfp4Block {
    #[inline(always)]
    unsafe fn pairs<S: Simd>(p: *const u8) -> S::I {
        // SAFETY: 17 bytes, of which the last 16 are codes.
        unsafe { S::e2m1_pairs(p.add(1)) }
    }
    #[inline(always)]
    unsafe fn units<S: Simd>(blocks: [*const u8; LANES]) -> S::V {
        // SAFETY: the first byte is the scale.
        unsafe {
            let mut units = [0.0; LANES];
            for lane in 0..LANES {
                units[lane] = HALF_E8M0[usize::from(*blocks[lane])];
            }
            S::load(units.as_ptr())
        }
    }
}
