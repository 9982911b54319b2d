//! AVX2 with FMA and F16C: a vector of 16 is two registers of 8.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Simd`: features are there, pointers are valid")]

use std::arch::x86_64::*;

use formats::mxfp4::{E2M1_DOUBLED, HALF_E8M0};

use super::{LANES, Simd, array, round_block};

pub(crate) struct Avx2;

#[derive(Clone, Copy)]
pub(crate) struct Floats(__m256, __m256);
#[derive(Clone, Copy)]
pub(crate) struct Words(__m256i, __m256i);

/// Signed bytes to floats, 8 at a time.
#[inline(always)]
unsafe fn i8_to_f32(bytes: __m128i) -> Floats {
    unsafe {
        let low = _mm256_cvtepi8_epi32(bytes);
        let high = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes));
        Floats(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
    }
}

/// [`Simd::scales_in_bytes`] as 16 f16.
#[inline(always)]
pub(super) unsafe fn halves_in_bytes(p: *const u8, stride: usize) -> __m256i {
    unsafe {
        let mut bits = _mm_setzero_si128();
        for row in (0..8).rev() {
            let lowest = _mm_and_si128(_mm_loadu_si128(p.add(row * stride).cast()), _mm_set1_epi8(1));
            bits = _mm_or_si128(_mm_add_epi8(bits, bits), lowest);
        }
        _mm256_slli_epi16::<7>(_mm256_cvtepu8_epi16(bits))
    }
}

/// Doubled E2M1 values of 16 bytes' low and high nibbles.
#[inline(always)]
unsafe fn e2m1_doubled(p: *const u8) -> (__m128i, __m128i) {
    unsafe {
        let table = _mm_loadu_si128(E2M1_DOUBLED.as_ptr().cast());
        let bytes = _mm_loadu_si128(p.cast());
        let nibble = _mm_set1_epi8(15);
        let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
        (_mm_shuffle_epi8(table, _mm_and_si128(bytes, nibble)), _mm_shuffle_epi8(table, high))
    }
}

/// 256 times the doubled E2M1 values of 16 bytes, as 16-bit integers. Values 0 to 15 are those of the low nibbles, 16 to 31 those of the
/// high ones. The first register has values 0 to 7 and 16 to 23, the second one the others.
///
/// Interleaving bytes with zeros puts each byte in the upper half of 16 bits, which multiplies it by 256. This takes fewer instructions
/// than sign extension.
#[inline(always)]
unsafe fn interleaved_e2m1(p: *const u8) -> (__m256i, __m256i) {
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(E2M1_DOUBLED.as_ptr().cast()));
        let bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()));
        let codes = _mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 0, 4, 4));
        let values = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, _mm256_set1_epi8(15)));
        let zero = _mm256_setzero_si256();
        (_mm256_unpacklo_epi8(zero, values), _mm256_unpackhi_epi8(zero, values))
    }
}

#[inline(always)]
unsafe fn horizontal(v: __m256, combine: unsafe fn(__m128, __m128) -> __m128) -> f32 {
    unsafe {
        let v = combine(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = combine(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(combine(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

#[inline(always)]
unsafe fn add4(a: __m128, b: __m128) -> __m128 {
    unsafe { _mm_add_ps(a, b) }
}

#[inline(always)]
unsafe fn max4(a: __m128, b: __m128) -> __m128 {
    unsafe { _mm_max_ps(a, b) }
}

/// Transposes 8 × 8 words.
#[inline(always)]
unsafe fn transpose8(r: [__m256i; 8]) -> [__m256i; 8] {
    unsafe {
        let mut t = r;
        for i in 0..2 {
            let [a, b, c, d] = [r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]];
            let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            t[4 * i] = _mm256_unpacklo_epi64(ab_low, cd_low);
            t[4 * i + 1] = _mm256_unpackhi_epi64(ab_low, cd_low);
            t[4 * i + 2] = _mm256_unpacklo_epi64(ab_high, cd_high);
            t[4 * i + 3] = _mm256_unpackhi_epi64(ab_high, cd_high);
        }
        let mut out = t;
        for j in 0..4 {
            out[j] = _mm256_permute2x128_si256::<0x20>(t[j], t[4 + j]);
            out[4 + j] = _mm256_permute2x128_si256::<0x31>(t[j], t[4 + j]);
        }
        out
    }
}

macro_rules! both {
    ($wrap:ident, $op:ident, $($v:ident),+) => { unsafe { $wrap($op($($v.0),+), $op($($v.1),+)) } };
}

impl Simd for Avx2 {
    type V = Floats;
    type I = Words;
    const PANEL: usize = 3;
    const PARALLEL_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Floats {
        unsafe { Floats(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Floats {
        unsafe { Floats(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Floats {
        unsafe { Floats(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Floats) {
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Floats, b: Floats) -> Floats {
        both!(Floats, _mm256_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Floats, b: Floats) -> Floats {
        both!(Floats, _mm256_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Floats, b: Floats) -> Floats {
        both!(Floats, _mm256_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Floats, b: Floats) -> Floats {
        both!(Floats, _mm256_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Floats, b: Floats, c: Floats) -> Floats {
        both!(Floats, _mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: Floats, b: Floats) -> Floats {
        both!(Floats, _mm256_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Floats, b: Floats) -> Floats {
        both!(Floats, _mm256_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sum(v: Floats) -> f32 {
        unsafe { horizontal(_mm256_add_ps(v.0, v.1), add4) }
    }
    #[inline(always)]
    unsafe fn maximum(v: Floats) -> f32 {
        unsafe { horizontal(_mm256_max_ps(v.0, v.1), max4) }
    }
    #[inline(always)]
    unsafe fn round(v: Floats) -> Floats {
        unsafe {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            Floats(_mm256_round_ps::<NEAREST>(v.0), _mm256_round_ps::<NEAREST>(v.1))
        }
    }
    #[inline(always)]
    unsafe fn scale(v: Floats, n: Floats) -> Floats {
        unsafe {
            // 2^n is the float whose exponent field is n + 127.
            let power = |n| {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
            Floats(_mm256_mul_ps(v.0, power(n.0)), _mm256_mul_ps(v.1, power(n.1)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Floats {
        unsafe {
            let half = |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            Floats(half(p), half(p.add(16)))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Floats {
        unsafe {
            let half = |p: *const u8| {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
            };
            Floats(half(p), half(p.add(16)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Floats {
        unsafe { i8_to_f32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u8) -> Floats {
        unsafe {
            let v = _mm256_cvtph_ps(_mm_set1_epi16(p.cast::<i16>().read_unaligned()));
            Floats(v, v)
        }
    }
    #[inline(always)]
    unsafe fn scales_in_bytes(p: *const u8, stride: usize) -> Floats {
        unsafe {
            let halves = halves_in_bytes(p, stride);
            Floats(
                _mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves)),
            )
        }
    }
    #[inline(always)]
    unsafe fn e2m1(p: *const u8) -> (Floats, Floats) {
        unsafe {
            let (low, high) = e2m1_doubled(p);
            (i8_to_f32(low), i8_to_f32(high))
        }
    }

    #[inline(always)]
    unsafe fn zero_words() -> Words {
        unsafe { Words(_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn load_words(p: *const u32) -> Words {
        unsafe { Words(_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast())) }
    }
    #[inline(always)]
    unsafe fn store_words(p: *mut u32, v: Words) {
        unsafe {
            _mm256_storeu_si256(p.cast(), v.0);
            _mm256_storeu_si256(p.add(8).cast(), v.1);
        }
    }
    #[inline(always)]
    unsafe fn splat_word(x: u32) -> Words {
        unsafe { Words(_mm256_set1_epi32(x as i32), _mm256_set1_epi32(x as i32)) }
    }
    #[inline(always)]
    unsafe fn bits(v: Floats) -> Words {
        unsafe { Words(_mm256_castps_si256(v.0), _mm256_castps_si256(v.1)) }
    }
    #[inline(always)]
    unsafe fn e2m1_pairs(p: *const u8) -> Words {
        unsafe {
            let (low, high) = e2m1_doubled(p);
            Words(_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high))
        }
    }
    #[inline(always)]
    unsafe fn i8_pairs(p: *const u8) -> Words {
        unsafe {
            let half = |p: *const u8| _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()));
            Words(half(p), half(p.add(16)))
        }
    }
    #[inline(always)]
    unsafe fn round_pairs(low: Floats, high: Floats) -> Words {
        unsafe {
            // `vpackssdw` works inside 128-bit lanes: the permutation puts the four quarters in order again.
            let narrow = |v: Floats| {
                let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1));
                _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
            };
            Words(narrow(low), narrow(high))
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: Words, a: Words, b: Words) -> Words {
        let products = both!(Words, _mm256_madd_epi16, a, b);
        both!(Words, _mm256_add_epi32, sum, products)
    }
    #[inline(always)]
    unsafe fn to_f32(v: Words) -> Floats {
        both!(Floats, _mm256_cvtepi32_ps, v)
    }
    #[inline(always)]
    unsafe fn nibbles(v: Words) -> (Words, Words) {
        unsafe {
            let low = |v| _mm256_and_si256(v, _mm256_set1_epi8(15));
            let high = |v| low(_mm256_srli_epi16::<4>(v));
            (Words(low(v.0), low(v.1)), Words(high(v.0), high(v.1)))
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: Words, a: Words, b: Words) -> Words {
        // The sum of two products is at most 2 · 15 · 128, which fits in 16 bits.
        let pairs = both!(Words, _mm256_maddubs_epi16, a, b);
        let ones = unsafe { Self::splat_word(0x0001_0001) };
        let quads = both!(Words, _mm256_madd_epi16, pairs, ones);
        both!(Words, _mm256_add_epi32, sum, quads)
    }
    #[inline(always)]
    unsafe fn prepare(low: Floats, high: Floats, to: *mut u32) {
        unsafe {
            let (pairs, scale) = round_block::<Self>(low, high);
            // The order of `interleaved_e2m1`.
            let first = _mm256_permute2x128_si256::<0x20>(pairs.0, pairs.1);
            let second = _mm256_permute2x128_si256::<0x31>(pairs.0, pairs.1);
            Self::store_words(to, Words(first, second));
            // The scale is divided by 256, because `interleaved_e2m1` multiplies weights by 256. `add_mxfp4` reads 8 of the 16 copies.
            Self::store(to.add(LANES).cast(), Self::splat(scale / 256.0));
        }
    }
    #[inline(always)]
    unsafe fn add_mxfp4<const N: usize, const P: usize>(
        block: *const u8,
        inputs: [*const u32; N],
        sums: &mut [[Floats; P]; N],
    ) {
        unsafe {
            let (first, second) = interleaved_e2m1(block.add(1));
            let scale = _mm256_set1_ps(HALF_E8M0[usize::from(*block)]);
            for i in 0..N {
                let x = Self::load_words(inputs[i]);
                // A lane is the sum of four products of at most 12 · 256 · 32767, which fits in 32 bits.
                let products = _mm256_add_epi32(_mm256_madd_epi16(first, x.0), _mm256_madd_epi16(second, x.1));
                let scale = _mm256_mul_ps(scale, _mm256_loadu_ps(inputs[i].add(LANES).cast()));
                sums[i][0].0 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, sums[i][0].0);
            }
        }
    }
    #[inline(always)]
    unsafe fn transpose(r: &mut [Words; LANES]) {
        unsafe {
            let quarter = |right: bool, from: usize| -> [__m256i; 8] {
                array(|i| if right { r[from + i].1 } else { r[from + i].0 })
            };
            let (top_left, top_right) = (transpose8(quarter(false, 0)), transpose8(quarter(true, 0)));
            let (bottom_left, bottom_right) = (transpose8(quarter(false, 8)), transpose8(quarter(true, 8)));
            for i in 0..8 {
                r[i] = Words(top_left[i], bottom_left[i]);
                r[8 + i] = Words(top_right[i], bottom_right[i]);
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
