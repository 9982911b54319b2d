//! Products of MXFP4 rows with up to 4 inputs, which were converted to a layout for this product: the fast mode's matrix–vector product.
//!
//! A prepared input is 32-bit words, 32 for each block of 32 values, in the layout of the instruction set:
//! - AVX2: 16-bit integers and their scale. The block's largest magnitude becomes 32,767, so that rounding changes a value by at most
//!   1.6e-5 of that magnitude. Decoding a block of weights takes 6 instructions instead of 16 in f32, and multiplying it by an input takes
//!   6 in either case. The integers' products and their sums in a lane are exact.
//! - AVX-512 with BF16: each value is split into its bf16 rounding and the bf16 of the rounding error. Decoding a block of weights takes
//!   one shift and one look-up in a table that includes the scale, and multiplying it by an input takes two instructions. On Intel's
//!   processors these products are slower than those in f32, and [`Isa::best`] is AVX-512 without BF16.
//! - Others: the f32 values. With AVX-512, 16-bit integers are not faster than f32, and would exceed the limit of `gptoss gates` for the fast
//!   mode in one case (largest error 0.105 of the logits' standard deviation, 0.1 allowed).
//!
//! Variants tried with AVX-512, in GB/s of weights from memory, for 1, 2, 3 and 4 inputs, one thread of a busy Zen 5 machine, best of 200 (a
//! plain read loop: 43):
//! - f32: 28.7, 20.9, 13.6, 10.3.
//! - 16-bit integers, whose sums are converted and scaled block by block: 19.8, 11.7, 8.3, 6.8. This version sign-extended the weights; the
//!   AVX2 version decodes a block in half as many instructions.
//! - bf16, four rows side by side, two sums each: 34.2, 25.6. Two rows for 3 and 4 inputs: 12.5, 10.0, because prepared inputs do not stay in L1.
//! - four rows with one sum each for 3 and 4 inputs: 18.3, 15.2.

use formats::{BLOCK, Storage};

use crate::isa::{Isa, Kernel};
use crate::product::{PREFETCH_BYTES, SMALL_BATCH, TILE};
use crate::simd::{LANES, Simd, array};
use crate::weights::PackedRows;

/// Converts an input of whole blocks of 32 values to the same number of words, for [`multiply_prepared`] with the same [`Isa`].
///
/// # Panics
/// If the lengths differ or are not multiples of 32.
pub fn prepare_input(isa: Isa, values: &[f32], out: &mut [u32]) {
    assert!(
        values.len() == out.len() && values.len().is_multiple_of(BLOCK),
        "there must be whole blocks, and one word per value"
    );
    // SAFETY: the lengths that the kernel asks for were just checked.
    unsafe { isa.run(Layout { values, out }) }
}

/// `out[i · 32 + r] = rows[r] · inputs[i]`, for at most 4 prepared inputs and 32 rows of MXFP4. Results past the last row are left
/// unchanged.
///
/// # Panics
/// If there are no inputs, more than 4 inputs or more than 32 rows, lengths do not match, or the rows are not MXFP4.
pub fn multiply_prepared(isa: Isa, rows: PackedRows<'_>, prepared: &[&[u32]], out: &mut [f32]) {
    assert!(rows.storage == Storage::Mxfp4, "the rows must be MXFP4");
    assert!(
        rows.count <= TILE && !prepared.is_empty() && prepared.len() <= SMALL_BATCH,
        "at most 32 rows and 1 to 4 inputs"
    );
    assert!(prepared.iter().all(|input| input.len() == rows.columns), "inputs must be as wide as the matrix");
    assert!(out.len() >= prepared.len() * TILE, "the output is too short");
    // SAFETY: the lengths that the kernel requires were just checked.
    unsafe { isa.run(Prepared { rows, prepared, out }) }
}

struct Layout<'a> {
    values: &'a [f32],
    out: &'a mut [u32],
}

impl Kernel for Layout<'_> {
    type Output = ();

    /// # Safety
    /// The values are whole blocks, and there are as many words.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (values, out) in self.values.as_chunks::<BLOCK>().0.iter().zip(self.out.as_chunks_mut::<BLOCK>().0) {
            // SAFETY: a block is two vectors of values, and 32 words.
            unsafe { S::prepare(S::load(values.as_ptr()), S::load(values.as_ptr().add(LANES)), out.as_mut_ptr()) };
        }
    }
}

struct Prepared<'a> {
    rows: PackedRows<'a>,
    prepared: &'a [&'a [u32]],
    out: &'a mut [f32],
}

impl Kernel for Prepared<'_> {
    type Output = ();

    /// # Safety
    /// There must be 1 to 4 inputs as wide as the rows, at most 32 rows of MXFP4, and 32 results per input.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller guarantees the contract; each arm has its number of inputs.
        unsafe {
            match self.prepared.len() {
                1 => self.with::<S, 1, 2>(),
                2 => self.with::<S, 2, 2>(),
                3 => self.with::<S, 3, 1>(),
                _ => self.with::<S, 4, 1>(),
            }
        }
    }
}

impl Prepared<'_> {
    /// Multiplies N inputs, with P vectors of sums for each: two where registers suffice, to shorten the chain of dependent additions. Only
    /// bf16 products use the second one.
    #[inline(always)]
    unsafe fn with<S: Simd, const N: usize, const P: usize>(self) {
        let Prepared { rows, prepared, out } = self;
        let prepared: [*const u32; N] = array(|i| prepared[i].as_ptr());
        let mut row = 0;
        // SAFETY: rows up to `count` exist, and results of N inputs have room.
        unsafe {
            if S::PARALLEL_ROWS == 4 {
                while row + 4 <= rows.count {
                    stream::<S, 4, N, P>(rows, row, prepared, out.as_mut_ptr());
                    row += 4;
                }
            }
            while row + 2 <= rows.count {
                stream::<S, 2, N, P>(rows, row, prepared, out.as_mut_ptr());
                row += 2;
            }
            if row < rows.count {
                stream::<S, 1, N, P>(rows, row, prepared, out.as_mut_ptr());
            }
        }
    }
}

/// Multiplies R rows from `row` on by N prepared inputs.
///
/// # Safety
/// The rows exist, the inputs have the same width, and `out` has room for 32 results per input.
#[inline(always)]
unsafe fn stream<S: Simd, const R: usize, const N: usize, const P: usize>(
    rows: PackedRows<'_>,
    row: usize,
    prepared: [*const u32; N],
    out: *mut f32,
) {
    const BYTES: usize = Storage::Mxfp4.block_bytes();
    let weights: [*const u8; R] = array(|r| rows.row(row + r));
    // As in `product.rs`, prefetched addresses are past all rows that are read side by side.
    let ahead = weights[0].wrapping_add(R * rows.row_bytes() + PREFETCH_BYTES);
    // SAFETY: every block lies inside its row, and so do its words of an input. Prefetching never faults.
    unsafe {
        let mut sums = [[[S::zero(); P]; N]; R];
        for block in 0..rows.blocks() {
            for line in 0..(R * BYTES).div_ceil(64) {
                S::prefetch(ahead.wrapping_add(block * R * BYTES + line * 64));
            }
            let prepared = array::<_, N>(|i| prepared[i].add(block * BLOCK));
            for r in 0..R {
                S::add_mxfp4(weights[r].add(block * BYTES), prepared, &mut sums[r]);
            }
        }
        for r in 0..R {
            for i in 0..N {
                *out.add(i * TILE + row + r) =
                    S::sum(if P == 2 { S::add(sums[r][i][0], sums[r][i][P - 1]) } else { sums[r][i][0] });
            }
        }
    }
}
