//! NEON, with or without the dot product of bytes (`sdot`): a vector of 16 is four registers of 4.
//!
//! Tested in emulation only; the speed was not measured. The matrix products of bytes (i8mm) and the BF16 instructions are not used. Rust
//! 1.95 has no stable intrinsics for `sdot` and prefetching, so these two are inline assembly.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Simd`: features are there, pointers are valid")]

use std::arch::aarch64::*;
use std::arch::asm;

use formats::mxfp4::E2M1_DOUBLED;

use super::{LANES, Simd};

pub(crate) struct Neon<const DOTPROD: bool>;

#[derive(Clone, Copy)]
pub(crate) struct Floats([float32x4_t; 4]);
#[derive(Clone, Copy)]
pub(crate) struct Words([uint32x4_t; 4]);

/// Doubled E2M1 values as bf16, which holds them exactly: the high bytes, and the low bytes. Converting bf16 to f32 is one shift,
/// which takes fewer instructions than widening integers and converting them.
static E2M1_HIGH: [u8; 16] = e2m1_bytes(3);
static E2M1_LOW: [u8; 16] = e2m1_bytes(2);

/// Byte `number` of each code's doubled value as f32.
const fn e2m1_bytes(number: usize) -> [u8; 16] {
    let mut table = [0; 16];
    let mut code = 0;
    while code < 16 {
        let bytes = (E2M1_DOUBLED[code] as f32).to_le_bytes();
        assert!(bytes[0] == 0 && bytes[1] == 0, "a bf16 holds the value");
        table[code] = bytes[number];
        code += 1;
    }
    table
}

/// A vector whose registers are the values of an expression for 0 to 3.
macro_rules! each {
    ($wrap:ident, $i:ident => $value:expr) => {
        $wrap([
            {
                let $i = 0;
                $value
            },
            {
                let $i = 1;
                $value
            },
            {
                let $i = 2;
                $value
            },
            {
                let $i = 3;
                $value
            },
        ])
    };
}

#[inline(always)]
unsafe fn f16_to_f32(halves: uint16x4_t) -> float32x4_t {
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(halves)) }
}

#[inline(always)]
unsafe fn bf16_to_f32(halves: uint16x4_t) -> float32x4_t {
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(halves))) }
}

/// The four 16-bit values at `p`, which need not be aligned.
#[inline(always)]
unsafe fn load_halves(p: *const u8) -> uint16x4_t {
    unsafe { vreinterpret_u16_u8(vld1_u8(p)) }
}

/// The codes in 16 bytes' low and high nibbles.
#[inline(always)]
unsafe fn split_nibbles(bytes: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
    unsafe { (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)) }
}

/// Doubled E2M1 values of 16 codes.
#[inline(always)]
unsafe fn e2m1_floats(codes: uint8x16_t) -> Floats {
    unsafe {
        let low = vqtbl1q_u8(vld1q_u8(E2M1_LOW.as_ptr()), codes);
        let high = vqtbl1q_u8(vld1q_u8(E2M1_HIGH.as_ptr()), codes);
        let first = vreinterpretq_u16_u8(vzip1q_u8(low, high));
        let second = vreinterpretq_u16_u8(vzip2q_u8(low, high));
        Floats([
            bf16_to_f32(vget_low_u16(first)),
            bf16_to_f32(vget_high_u16(first)),
            bf16_to_f32(vget_low_u16(second)),
            bf16_to_f32(vget_high_u16(second)),
        ])
    }
}

/// 32 signed bytes as 16-bit integers.
#[inline(always)]
unsafe fn widen(low: int8x16_t, high: int8x16_t) -> Words {
    unsafe {
        Words([
            vreinterpretq_u32_s16(vmovl_s8(vget_low_s8(low))),
            vreinterpretq_u32_s16(vmovl_high_s8(low)),
            vreinterpretq_u32_s16(vmovl_s8(vget_low_s8(high))),
            vreinterpretq_u32_s16(vmovl_high_s8(high)),
        ])
    }
}

/// [`Simd::dot_pairs`] of two registers.
///
/// The first and the second integers of all pairs are separated, so that `smlal` adds their products to the right words. Kernels use the
/// same `a` for several inputs, so that the compiler separates it once.
#[inline(always)]
unsafe fn dot_pairs_of_two(sums: [uint32x4_t; 2], a: [uint32x4_t; 2], b: [uint32x4_t; 2]) -> [uint32x4_t; 2] {
    unsafe {
        let [a0, a1] = [vreinterpretq_s16_u32(a[0]), vreinterpretq_s16_u32(a[1])];
        let [b0, b1] = [vreinterpretq_s16_u32(b[0]), vreinterpretq_s16_u32(b[1])];
        let (a_first, a_second) = (vuzp1q_s16(a0, a1), vuzp2q_s16(a0, a1));
        let (b_first, b_second) = (vuzp1q_s16(b0, b1), vuzp2q_s16(b0, b1));
        let low = vmlal_s16(vreinterpretq_s32_u32(sums[0]), vget_low_s16(a_first), vget_low_s16(b_first));
        let low = vmlal_s16(low, vget_low_s16(a_second), vget_low_s16(b_second));
        let high = vmlal_high_s16(vreinterpretq_s32_u32(sums[1]), a_first, b_first);
        let high = vmlal_high_s16(high, a_second, b_second);
        [vreinterpretq_u32_s32(low), vreinterpretq_u32_s32(high)]
    }
}

/// Adds to each word the products of four signed bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// [`Simd::dot_bytes`] of one register without `sdot`. Bytes of `a` are at most 15, so the sum of two products is at
/// most 2 · 15 · 128, which fits in 16 bits.
#[inline(always)]
unsafe fn dot_bytes_in_halves(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    unsafe {
        let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
        vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(a, b)))
    }
}

/// Transposes 4 × 4 words.
#[inline(always)]
unsafe fn transpose4(r: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
    unsafe {
        let even_01 = vreinterpretq_u64_u32(vtrn1q_u32(r[0], r[1]));
        let odd_01 = vreinterpretq_u64_u32(vtrn2q_u32(r[0], r[1]));
        let even_23 = vreinterpretq_u64_u32(vtrn1q_u32(r[2], r[3]));
        let odd_23 = vreinterpretq_u64_u32(vtrn2q_u32(r[2], r[3]));
        [
            vreinterpretq_u32_u64(vtrn1q_u64(even_01, even_23)),
            vreinterpretq_u32_u64(vtrn1q_u64(odd_01, odd_23)),
            vreinterpretq_u32_u64(vtrn2q_u64(even_01, even_23)),
            vreinterpretq_u32_u64(vtrn2q_u64(odd_01, odd_23)),
        ]
    }
}

impl<const DOTPROD: bool> Simd for Neon<DOTPROD> {
    type V = Floats;
    type I = Words;
    // Sums take 8 registers for each input of a tile, and so does a column of weights; there are 32.
    const PANEL: usize = 2;
    const PARALLEL_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Floats {
        unsafe { Self::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Floats {
        unsafe { Floats([vdupq_n_f32(x); 4]) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Floats {
        // Loads bytes, which need not be aligned.
        unsafe { each!(Floats, i => vreinterpretq_f32_u8(vld1q_u8(p.cast::<u8>().add(16 * i)))) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Floats) {
        unsafe { Self::store_words(p.cast(), Self::bits(v)) }
    }
    #[inline(always)]
    unsafe fn add(a: Floats, b: Floats) -> Floats {
        unsafe { each!(Floats, i => vaddq_f32(a.0[i], b.0[i])) }
    }
    #[inline(always)]
    unsafe fn sub(a: Floats, b: Floats) -> Floats {
        unsafe { each!(Floats, i => vsubq_f32(a.0[i], b.0[i])) }
    }
    #[inline(always)]
    unsafe fn mul(a: Floats, b: Floats) -> Floats {
        unsafe { each!(Floats, i => vmulq_f32(a.0[i], b.0[i])) }
    }
    #[inline(always)]
    unsafe fn div(a: Floats, b: Floats) -> Floats {
        unsafe { each!(Floats, i => vdivq_f32(a.0[i], b.0[i])) }
    }
    #[inline(always)]
    unsafe fn fma(a: Floats, b: Floats, c: Floats) -> Floats {
        unsafe { each!(Floats, i => vfmaq_f32(c.0[i], a.0[i], b.0[i])) }
    }
    #[inline(always)]
    unsafe fn max(a: Floats, b: Floats) -> Floats {
        // `fmax` would return NaN if either operand is NaN, and `fmaxnm` would return the operand that is not NaN.
        unsafe { each!(Floats, i => vbslq_f32(vcgtq_f32(a.0[i], b.0[i]), a.0[i], b.0[i])) }
    }
    #[inline(always)]
    unsafe fn min(a: Floats, b: Floats) -> Floats {
        unsafe { each!(Floats, i => vbslq_f32(vcltq_f32(a.0[i], b.0[i]), a.0[i], b.0[i])) }
    }
    #[inline(always)]
    unsafe fn sum(v: Floats) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(v.0[0], v.0[2]), vaddq_f32(v.0[1], v.0[3]))) }
    }
    #[inline(always)]
    unsafe fn maximum(v: Floats) -> f32 {
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(v.0[0], v.0[1]), vmaxnmq_f32(v.0[2], v.0[3]))) }
    }
    #[inline(always)]
    unsafe fn round(v: Floats) -> Floats {
        unsafe { each!(Floats, i => vrndnq_f32(v.0[i])) }
    }
    #[inline(always)]
    unsafe fn scale(v: Floats, n: Floats) -> Floats {
        // 2^n is the float whose exponent field is n + 127.
        unsafe {
            each!(Floats, i => {
                let biased = vaddq_s32(vcvtq_s32_f32(n.0[i]), vdupq_n_s32(127));
                vmulq_f32(v.0[i], vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased)))
            })
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Floats {
        unsafe { each!(Floats, i => f16_to_f32(load_halves(p.add(8 * i)))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Floats {
        unsafe { each!(Floats, i => bf16_to_f32(load_halves(p.add(8 * i)))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Floats {
        unsafe {
            let bytes = vld1q_s8(p.cast());
            let (first, second) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            Floats([
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(first))),
                vcvtq_f32_s32(vmovl_high_s16(first)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(second))),
                vcvtq_f32_s32(vmovl_high_s16(second)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u8) -> Floats {
        unsafe { Floats([f16_to_f32(vdup_n_u16(p.cast::<u16>().read_unaligned())); 4]) }
    }
    #[inline(always)]
    unsafe fn scales_in_bytes(p: *const u8, stride: usize) -> Floats {
        unsafe {
            let mut bits = vdupq_n_u8(0);
            for row in (0..8).rev() {
                // `sli` keeps the lowest bit of the loaded byte and inserts the bits collected so far above it.
                bits = vsliq_n_u8::<1>(vld1q_u8(p.add(row * stride)), bits);
            }
            let (first, second) = (vshll_n_u8::<7>(vget_low_u8(bits)), vshll_high_n_u8::<7>(bits));
            Floats([
                f16_to_f32(vget_low_u16(first)),
                f16_to_f32(vget_high_u16(first)),
                f16_to_f32(vget_low_u16(second)),
                f16_to_f32(vget_high_u16(second)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn e2m1(p: *const u8) -> (Floats, Floats) {
        unsafe {
            let (low, high) = split_nibbles(vld1q_u8(p));
            (e2m1_floats(low), e2m1_floats(high))
        }
    }

    #[inline(always)]
    unsafe fn zero_words() -> Words {
        unsafe { Self::splat_word(0) }
    }
    #[inline(always)]
    unsafe fn load_words(p: *const u32) -> Words {
        unsafe { Self::bits(Self::load(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_words(p: *mut u32, v: Words) {
        unsafe {
            let p = p.cast::<u8>();
            vst1q_u8(p, vreinterpretq_u8_u32(v.0[0]));
            vst1q_u8(p.add(16), vreinterpretq_u8_u32(v.0[1]));
            vst1q_u8(p.add(32), vreinterpretq_u8_u32(v.0[2]));
            vst1q_u8(p.add(48), vreinterpretq_u8_u32(v.0[3]));
        }
    }
    #[inline(always)]
    unsafe fn splat_word(x: u32) -> Words {
        unsafe { Words([vdupq_n_u32(x); 4]) }
    }
    #[inline(always)]
    unsafe fn bits(v: Floats) -> Words {
        unsafe { each!(Words, i => vreinterpretq_u32_f32(v.0[i])) }
    }
    #[inline(always)]
    unsafe fn e2m1_pairs(p: *const u8) -> Words {
        unsafe {
            let table = vld1q_s8(E2M1_DOUBLED.as_ptr());
            let (low, high) = split_nibbles(vld1q_u8(p));
            widen(vqtbl1q_s8(table, low), vqtbl1q_s8(table, high))
        }
    }
    #[inline(always)]
    unsafe fn i8_pairs(p: *const u8) -> Words {
        unsafe { widen(vld1q_s8(p.cast()), vld1q_s8(p.add(LANES).cast())) }
    }
    #[inline(always)]
    unsafe fn round_pairs(low: Floats, high: Floats) -> Words {
        unsafe {
            let narrow = |a, b| {
                let halves = vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(a)), vcvtnq_s32_f32(b));
                vreinterpretq_u32_s16(halves)
            };
            Words([
                narrow(low.0[0], low.0[1]),
                narrow(low.0[2], low.0[3]),
                narrow(high.0[0], high.0[1]),
                narrow(high.0[2], high.0[3]),
            ])
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: Words, a: Words, b: Words) -> Words {
        let ([s0, s1, s2, s3], [a0, a1, a2, a3], [b0, b1, b2, b3]) = (sum.0, a.0, b.0);
        unsafe {
            let [s0, s1] = dot_pairs_of_two([s0, s1], [a0, a1], [b0, b1]);
            let [s2, s3] = dot_pairs_of_two([s2, s3], [a2, a3], [b2, b3]);
            Words([s0, s1, s2, s3])
        }
    }
    #[inline(always)]
    unsafe fn to_f32(v: Words) -> Floats {
        unsafe { each!(Floats, i => vcvtq_f32_s32(vreinterpretq_s32_u32(v.0[i]))) }
    }
    #[inline(always)]
    unsafe fn nibbles(v: Words) -> (Words, Words) {
        unsafe {
            (
                each!(Words, i => vreinterpretq_u32_u8(split_nibbles(vreinterpretq_u8_u32(v.0[i])).0)),
                each!(Words, i => vreinterpretq_u32_u8(split_nibbles(vreinterpretq_u8_u32(v.0[i])).1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: Words, a: Words, b: Words) -> Words {
        unsafe {
            each!(Words, i => {
                let (a, b) = (vreinterpretq_s8_u32(a.0[i]), vreinterpretq_s8_u32(b.0[i]));
                let sum = vreinterpretq_s32_u32(sum.0[i]);
                vreinterpretq_u32_s32(if DOTPROD { sdot(sum, a, b) } else { dot_bytes_in_halves(sum, a, b) })
            })
        }
    }
    #[inline(always)]
    unsafe fn transpose(r: &mut [Words; LANES]) {
        unsafe {
            let before = *r;
            for i in 0..4 {
                for j in 0..4 {
                    let block = transpose4([
                        before[4 * i].0[j],
                        before[4 * i + 1].0[j],
                        before[4 * i + 2].0[j],
                        before[4 * i + 3].0[j],
                    ]);
                    for k in 0..4 {
                        r[4 * j + k].0[i] = block[k];
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // The address is passed as an integer, because nothing is read from it.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p.addr(), options(nomem, nostack, preserves_flags)) }
    }
}
