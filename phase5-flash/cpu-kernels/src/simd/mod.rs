//! Vectors of 16 floats, and the operations that kernels use.
//!
//! A kernel is generic over [`Simd`] and inlined into a function that has the instruction set's features ([`crate::isa::Kernel`]). The
//! operations must not be called from code without these features, so they are `unsafe`.
#![allow(
    clippy::missing_safety_doc,
    reason = "one contract for all: the machine has the instructions, pointers are valid for all that is read or written"
)]

use std::mem::MaybeUninit;

use formats::mxfp4::HALF_E8M0;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;
#[cfg(test)]
mod tests;

/// Floats in a vector.
pub(crate) const LANES: usize = 16;

/// [`std::array::from_fn`], always inlined. The standard library's version may be compiled to a function call, and then `f` is compiled
/// without the kernel's instruction set: a product with MXFP4 weights took three times as long.
#[inline(always)]
pub(crate) fn array<T, const N: usize>(mut f: impl FnMut(usize) -> T) -> [T; N] {
    let mut items = MaybeUninit::<[T; N]>::uninit();
    let first = items.as_mut_ptr().cast::<T>();
    for i in 0..N {
        // SAFETY: there is room for N items.
        unsafe { first.add(i).write(f(i)) };
    }
    // SAFETY: all N items were written.
    unsafe { items.assume_init() }
}

/// [`Simd::prepare`] in f32.
#[inline(always)]
unsafe fn prepare_floats<S: Simd + ?Sized>(low: S::V, high: S::V, to: *mut u32) {
    // SAFETY: there is room for 32 words.
    unsafe {
        S::store(to.cast(), low);
        S::store(to.add(LANES).cast(), high);
    }
}

/// [`Simd::add_mxfp4`] in f32.
#[inline(always)]
unsafe fn add_mxfp4_floats<S: Simd + ?Sized, const N: usize, const P: usize>(
    block: *const u8,
    inputs: [*const u32; N],
    sums: &mut [[S::V; P]; N],
) {
    // SAFETY: a block has 17 bytes, and each input has 32 words.
    unsafe {
        let (low, high) = S::e2m1(block.add(1));
        let scale = S::splat(HALF_E8M0[usize::from(*block)]);
        for i in 0..N {
            let (a, b) = (S::load(inputs[i].cast()), S::load(inputs[i].add(LANES).cast()));
            sums[i][0] = S::fma(S::fma(high, b, S::mul(low, a)), scale, sums[i][0]);
        }
    }
}

/// Rounds 32 floats to 16-bit integers in pairs, and also returns their unit: the value of the integer 1.
#[inline(always)]
pub(crate) unsafe fn round_block<S: Simd + ?Sized>(low: S::V, high: S::V) -> (S::I, f32) {
    // SAFETY: the caller guarantees the contract.
    unsafe {
        let largest = S::max(S::max(low, high), S::sub(S::zero(), S::min(low, high)));
        let largest = S::maximum(largest);
        let limit = f32::from(i16::MAX);
        // A block whose largest magnitude is too small for a reciprocal becomes zeros.
        let inverse = S::splat(if largest > 1e-30 { limit / largest } else { 0.0 });
        // Integers cannot represent NaN or infinity: if a block has such a value, its unit is NaN.
        let nothing = S::sum(S::add(S::mul(low, S::zero()), S::mul(high, S::zero())));
        (S::round_pairs(S::mul(low, inverse), S::mul(high, inverse)), largest / limit + nothing)
    }
}

pub(crate) trait Simd {
    /// 16 floats.
    type V: Copy;
    /// 16 words of 32 bits.
    type I: Copy;
    /// Number of inputs whose sums the product of a tile keeps in registers at the same time.
    const PANEL: usize;
    /// Number of weight rows that a matrix–vector product reads in parallel.
    const PARALLEL_ROWS: usize;

    unsafe fn zero() -> Self::V;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each pair of lanes, or `b` if one of them is NaN. `min` is the smaller, likewise.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sum(v: Self::V) -> f32;
    unsafe fn maximum(v: Self::V) -> f32;
    unsafe fn round(v: Self::V) -> Self::V;
    /// `v · 2^n` for whole `n` from −126 to 127.
    unsafe fn scale(v: Self::V, n: Self::V) -> Self::V;

    unsafe fn load_f16(p: *const u8) -> Self::V;
    unsafe fn load_bf16(p: *const u8) -> Self::V;
    unsafe fn load_i8(p: *const u8) -> Self::V;
    /// Broadcasts an f16 from memory.
    unsafe fn splat_f16(p: *const u8) -> Self::V;
    /// [`SCALES`](formats::cache_block::SCALES) of 16 columns of bytes in eight rows `stride` apart: bit i of a
    /// column's index is the lowest bit of its byte in row i.
    unsafe fn scales_in_bytes(p: *const u8, stride: usize) -> Self::V;
    /// The doubled E2M1 values of 16 bytes: of the low nibbles, and of the high nibbles.
    unsafe fn e2m1(p: *const u8) -> (Self::V, Self::V);

    unsafe fn zero_words() -> Self::I;
    unsafe fn load_words(p: *const u32) -> Self::I;
    unsafe fn store_words(p: *mut u32, v: Self::I);
    unsafe fn splat_word(x: u32) -> Self::I;
    unsafe fn bits(v: Self::V) -> Self::I;
    /// 32 doubled E2M1 values as 16-bit integers in pairs: the low nibbles of 16 bytes, then the high nibbles.
    unsafe fn e2m1_pairs(p: *const u8) -> Self::I;
    /// 32 signed bytes as 16-bit integers in pairs.
    unsafe fn i8_pairs(p: *const u8) -> Self::I;
    /// 32 floats, rounded, as 16-bit integers in pairs.
    unsafe fn round_pairs(low: Self::V, high: Self::V) -> Self::I;
    /// Adds to each word the products of two pairs of 16-bit integers.
    unsafe fn dot_pairs(sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    unsafe fn to_f32(v: Self::I) -> Self::V;
    /// The low and the high nibble of each byte.
    unsafe fn nibbles(v: Self::I) -> (Self::I, Self::I);
    /// Adds to each word the products of four bytes from 0 to 15 in `a` and four signed ones in `b`.
    unsafe fn dot_bytes(sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// Writes a block of 32 inputs as 32 words in the layout that [`Simd::add_mxfp4`] reads. By default they are the f32 values.
    #[inline(always)]
    unsafe fn prepare(low: Self::V, high: Self::V, to: *mut u32) {
        // SAFETY: the caller guarantees the contract.
        unsafe { prepare_floats::<Self>(low, high, to) }
    }
    /// Adds the dot products of an MXFP4 block with the same block of N inputs to `sums`. A dot product is the sum of all lanes of its P
    /// vectors, of which an implementation may use only the first.
    #[inline(always)]
    unsafe fn add_mxfp4<const N: usize, const P: usize>(
        block: *const u8,
        inputs: [*const u32; N],
        sums: &mut [[Self::V; P]; N],
    ) {
        // SAFETY: the caller guarantees the contract.
        unsafe { add_mxfp4_floats::<Self, N, P>(block, inputs, sums) }
    }
    /// Transposes 16 × 16 words.
    unsafe fn transpose(rows: &mut [Self::I; LANES]);

    unsafe fn prefetch(p: *const u8);

    /// `e^v` with an error of at most 2 units in the last place. Results below 1e−37 may be 0 or another number below 1e−37;
    /// above 88, `v` counts as 88.
    ///
    /// Cody and Waite's reduction to ±½ ln 2, then a polynomial of degree 6.
    #[inline(always)]
    unsafe fn exp(v: Self::V) -> Self::V {
        // SAFETY: the caller guarantees the contract.
        unsafe {
            let v = Self::min(Self::splat(88.0), Self::max(Self::splat(-87.0), v));
            let n = Self::round(Self::mul(v, Self::splat(std::f32::consts::LOG2_E)));
            let r = Self::fma(n, Self::splat(-0.693_359_4), v);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.0 / 720.0);
            for factor in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = Self::fma(p, r, Self::splat(factor));
            }
            Self::scale(p, n)
        }
    }
}
