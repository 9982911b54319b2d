//! AVX-512 with BW, VL, DQ and VNNI, with and without BF16. The two differ only in products of MXFP4 weights with prepared inputs.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Simd`: features are there, pointers are valid")]

use std::arch::x86_64::*;
use std::mem::transmute;

use formats::mxfp4::{E2M1_DOUBLED, HALF_E8M0};

use super::avx2::halves_in_bytes;
use super::{LANES, Simd, add_mxfp4_floats, prepare_floats};

pub(crate) struct Avx512<const BF16: bool>;

/// Doubled E2M1 values by code.
static E2M1: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];
/// The same values as 16-bit integers, twice: `vpermw` uses five bits of an index, and the fifth bit belongs to the other nibble. Because
/// the table is repeated, the fifth bit has no effect.
static E2M1_WORDS: [i16; 32] = {
    let mut table = [0; 32];
    let mut i = 0;
    while i < 32 {
        table[i] = E2M1_DOUBLED[i % 16] as i16;
        i += 1;
    }
    table
};
/// Shifts that bring a nibble to the lowest bits: 0 for words of low nibbles, 4 for words of high nibbles.
static NIBBLE_SHIFTS: [u16; 32] = {
    let mut shifts = [0; 32];
    let mut i = 16;
    while i < 32 {
        shifts[i] = 4;
        i += 1;
    }
    shifts
};

/// E2M1 values times their scale as bf16, by scale byte and code, repeated as above. Applying a scale then takes no extra instruction. All
/// are exact except those below 2^−126, which bf16 products treat as zero.
static SCALED_E2M1: ScaledE2m1 = ScaledE2m1({
    let mut tables = [[0; 32]; 256];
    let mut i = 0;
    while i < 256 * 32 {
        tables[i / 32][i % 32] = ((E2M1[i % 16] * HALF_E8M0[i / 32]).to_bits() >> 16) as u16;
        i += 1;
    }
    tables
});
/// `vpsrlvw` shifts four copies of a block's 8 words so that each lane's lowest nibble is one of its 32 codes. [`SHIFTED_ORDER`] is the
/// resulting order.
static SHIFTS: [u16; 32] = {
    let mut shifts = [0; 32];
    let mut i = 0;
    while i < 32 {
        shifts[i] = 4 * (i as u16 / 8);
        i += 1;
    }
    shifts
};
static SHIFTED_ORDER: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = [0, 16, 1, 17][i / 8] + 2 * (i as u16 % 8);
        i += 1;
    }
    order
};

#[repr(align(64))]
struct ScaledE2m1([[u16; 32]; 256]);

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    type I = __m512i;
    const PANEL: usize = 6;
    const PARALLEL_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    unsafe fn maximum(v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    unsafe fn scale(v: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(v, n) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m512 {
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(p.cast::<i16>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn scales_in_bytes(p: *const u8, stride: usize) -> __m512 {
        unsafe { _mm512_cvtph_ps(halves_in_bytes(p, stride)) }
    }
    #[inline(always)]
    unsafe fn e2m1(p: *const u8) -> (__m512, __m512) {
        unsafe {
            // `vpermps` looks at four bits, so that the other nibble need not be masked away.
            let table = _mm512_loadu_ps(E2M1.as_ptr());
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            (_mm512_permutexvar_ps(bytes, table), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table))
        }
    }

    #[inline(always)]
    unsafe fn zero_words() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn load_words(p: *const u32) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_words(p: *mut u32, v: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn splat_word(x: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(x as i32) }
    }
    #[inline(always)]
    unsafe fn bits(v: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(v) }
    }
    #[inline(always)]
    unsafe fn e2m1_pairs(p: *const u8) -> __m512i {
        unsafe {
            let table = _mm512_loadu_si512(E2M1_WORDS.as_ptr().cast());
            let shifts = _mm512_loadu_si512(NIBBLE_SHIFTS.as_ptr().cast());
            let words = _mm512_cvtepu8_epi16(_mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast())));
            _mm512_permutexvar_epi16(_mm512_srlv_epi16(words, shifts), table)
        }
    }
    #[inline(always)]
    unsafe fn i8_pairs(p: *const u8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn round_pairs(low: __m512, high: __m512) -> __m512i {
        unsafe {
            let narrow = |v| _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(narrow(low)), narrow(high))
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(sum, a, b) }
    }
    #[inline(always)]
    unsafe fn to_f32(v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn nibbles(v: __m512i) -> (__m512i, __m512i) {
        unsafe {
            let nibble = _mm512_set1_epi8(15);
            (_mm512_and_si512(v, nibble), _mm512_and_si512(_mm512_srli_epi16::<4>(v), nibble))
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, a, b) }
    }
    #[inline(always)]
    unsafe fn prepare(low: __m512, high: __m512, to: *mut u32) {
        if !BF16 {
            return unsafe { prepare_floats::<Self>(low, high, to) };
        }
        unsafe {
            let order = _mm512_loadu_si512(SHIFTED_ORDER.as_ptr().cast());
            let round = |low, high| transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            let rounded = round(low, high);
            let widen = |words| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)));
            let low = _mm512_sub_ps(low, widen(_mm512_castsi512_si256(rounded)));
            let high = _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64::<1>(rounded)));
            Self::store_words(to, _mm512_permutexvar_epi16(order, rounded));
            Self::store_words(to.add(LANES), _mm512_permutexvar_epi16(order, round(low, high)));
        }
    }
    #[inline(always)]
    unsafe fn add_mxfp4<const N: usize, const P: usize>(
        block: *const u8,
        inputs: [*const u32; N],
        sums: &mut [[__m512; P]; N],
    ) {
        if !BF16 {
            return unsafe { add_mxfp4_floats::<Self, N, P>(block, inputs, sums) };
        }
        unsafe {
            let codes = _mm512_broadcast_i32x4(_mm_loadu_si128(block.add(1).cast()));
            let codes = _mm512_srlv_epi16(codes, _mm512_loadu_si512(SHIFTS.as_ptr().cast()));
            let table = _mm512_loadu_si512(SCALED_E2M1.0[usize::from(*block)].as_ptr().cast());
            let weights: __m512bh = transmute(_mm512_permutexvar_epi16(codes, table));
            for i in 0..N {
                for part in 0..2 {
                    let x: __m512bh = transmute(Self::load_words(inputs[i].add(part * LANES)));
                    sums[i][part % P] = _mm512_dpbf16_ps(sums[i][part % P], weights, x);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn transpose(r: &mut [__m512i; LANES]) {
        unsafe {
            // Pairs of rows, then fours: 4 × 4 words are transposed inside each 128-bit lane.
            let mut t = *r;
            for i in 0..4 {
                let [a, b, c, d] = [r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]];
                let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
                let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
                t[4 * i] = _mm512_unpacklo_epi64(ab_low, cd_low);
                t[4 * i + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
                t[4 * i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
                t[4 * i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
            }
            // t[4 i + j], lane l holds word 4 l + j of rows 4 i to 4 i + 3: the lanes are transposed next.
            for j in 0..4 {
                let [a, b, c, d] = [t[j], t[4 + j], t[8 + j], t[12 + j]];
                let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
                let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
                r[j] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
                r[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
                r[8 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even);
                r[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
