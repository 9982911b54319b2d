//! Vectors of 16 floats, and the few operations that the kernels are made of.
//!
//! A kernel is generic over [`Simd`] and inlined into a function that has the instruction set's features
//! ([`crate::isa::Kernel`]); nothing here may be called from anywhere else, which is why everything is `unsafe`.
#![allow(
    clippy::missing_safety_doc,
    reason = "one contract for all: the machine has the instructions, pointers are valid for 16 values"
)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;

/// Floats in a vector.
pub(crate) const LANES: usize = 16;

/// Twice the E2M1 value of each code, which is whole.
pub(crate) const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(crate) trait Simd {
    /// 16 floats.
    type V: Copy;
    /// 16 words of 32 bits.
    type I: Copy;
    /// Inputs that the product of a tile keeps in registers together.
    const PANEL: usize;
    /// Weight rows that a matrix–vector product reads side by side.
    const SIDE_BY_SIDE: usize;

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
    /// The larger; `b` where one of them is no number. So for the smaller.
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
    /// An f16 in memory, in every lane.
    unsafe fn splat_f16(p: *const u8) -> Self::V;
    /// Doubled E2M1 values of 16 bytes: of their low nibbles, and of their high ones.
    unsafe fn e2m1(p: *const u8) -> (Self::V, Self::V);

    unsafe fn zero_words() -> Self::I;
    unsafe fn load_words(p: *const u32) -> Self::I;
    unsafe fn store_words(p: *mut u32, v: Self::I);
    unsafe fn splat_word(x: u32) -> Self::I;
    unsafe fn bits(v: Self::V) -> Self::I;
    /// 32 E2M1 values, doubled, as 16-bit integers in pairs: the low nibbles of 16 bytes, then the high ones.
    unsafe fn e2m1_pairs(p: *const u8) -> Self::I;
    /// 32 signed bytes as 16-bit integers in pairs.
    unsafe fn i8_pairs(p: *const u8) -> Self::I;
    /// 32 floats, rounded, as 16-bit integers in pairs.
    unsafe fn round_pairs(low: Self::V, high: Self::V) -> Self::I;
    /// Adds to each word the products of two pairs of 16-bit integers.
    unsafe fn dot_pairs(sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    unsafe fn to_f32(v: Self::I) -> Self::V;
    /// Rows become columns.
    unsafe fn transpose(rows: &mut [Self::I; LANES]);

    unsafe fn prefetch(p: *const u8);

    /// `e^v`, to 2 units in the last place; 0 or less than 1e−37 where it would be smaller.
    ///
    /// Cody and Waite's reduction to ±½ ln 2, then a polynomial of degree 6.
    #[inline(always)]
    unsafe fn exp(v: Self::V) -> Self::V {
        // SAFETY: the caller's.
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
