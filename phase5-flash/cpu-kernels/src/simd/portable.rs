//! Plain Rust in loops of 16, which compilers vectorize for the target.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Simd`: pointers are valid")]

use formats::cache_block::SCALES;
use formats::mxfp4::E2M1_DOUBLED;
use half::{bf16, f16};

use super::{LANES, Simd, array};

pub(crate) struct Portable;

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Floats([f32; LANES]);
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Words([u32; LANES]);

#[inline(always)]
fn map(a: Floats, f: impl Fn(f32) -> f32) -> Floats {
    Floats(a.0.map(f))
}

#[inline(always)]
fn map2(a: Floats, b: Floats, f: impl Fn(f32, f32) -> f32) -> Floats {
    Floats(array(|i| f(a.0[i], b.0[i])))
}

/// Two 16-bit integers in a word, the first in its low half.
#[inline(always)]
fn pair(first: i16, second: i16) -> u32 {
    u32::from(first as u16) | u32::from(second as u16) << 16
}

#[inline(always)]
fn halves(word: u32) -> (i32, i32) {
    (i32::from(word as i16), i32::from((word >> 16) as i16))
}

impl Simd for Portable {
    type V = Floats;
    type I = Words;
    const PANEL: usize = 3;
    const PARALLEL_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Floats {
        Floats([0.0; LANES])
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Floats {
        Floats([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Floats {
        Floats(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Floats) {
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v.0) }
    }
    #[inline(always)]
    unsafe fn add(a: Floats, b: Floats) -> Floats {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Floats, b: Floats) -> Floats {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Floats, b: Floats) -> Floats {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Floats, b: Floats) -> Floats {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Floats, b: Floats, c: Floats) -> Floats {
        // Where a target lacks the fused instruction, `mul_add` is a call into the C library.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            Floats(array(|i| a.0[i].mul_add(b.0[i], c.0[i])))
        } else {
            Floats(array(|i| a.0[i] * b.0[i] + c.0[i]))
        }
    }
    #[inline(always)]
    unsafe fn max(a: Floats, b: Floats) -> Floats {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Floats, b: Floats) -> Floats {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sum(v: Floats) -> f32 {
        let mut v = v.0;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] += v[i + width];
            }
        }
        v[0]
    }
    #[inline(always)]
    unsafe fn maximum(v: Floats) -> f32 {
        v.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn round(v: Floats) -> Floats {
        map(v, f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn scale(v: Floats, n: Floats) -> Floats {
        map2(v, n, |v, n| v * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Floats {
        let bytes = unsafe { p.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        Floats(bytes.map(|b| f16::from_le_bytes(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Floats {
        let bytes = unsafe { p.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        Floats(bytes.map(|b| bf16::from_le_bytes(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Floats {
        Floats(unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u8) -> Floats {
        let bytes = unsafe { p.cast::<[u8; 2]>().read_unaligned() };
        Floats([f16::from_le_bytes(bytes).to_f32(); LANES])
    }
    #[inline(always)]
    unsafe fn scales_in_bytes(p: *const u8, stride: usize) -> Floats {
        let mut bits = [0u8; LANES];
        for row in (0..8).rev() {
            let bytes = unsafe { p.add(row * stride).cast::<[u8; LANES]>().read_unaligned() };
            bits = array(|i| bits[i] << 1 | bytes[i] & 1);
        }
        Floats(bits.map(|bits| SCALES[usize::from(bits)]))
    }
    #[inline(always)]
    unsafe fn e2m1(p: *const u8) -> (Floats, Floats) {
        let bytes = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        let value = |code: u8| f32::from(E2M1_DOUBLED[usize::from(code)]);
        (Floats(bytes.map(|b| value(b & 15))), Floats(bytes.map(|b| value(b >> 4))))
    }

    #[inline(always)]
    unsafe fn zero_words() -> Words {
        Words([0; LANES])
    }
    #[inline(always)]
    unsafe fn load_words(p: *const u32) -> Words {
        Words(unsafe { p.cast::<[u32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_words(p: *mut u32, v: Words) {
        unsafe { p.cast::<[u32; LANES]>().write_unaligned(v.0) }
    }
    #[inline(always)]
    unsafe fn splat_word(x: u32) -> Words {
        Words([x; LANES])
    }
    #[inline(always)]
    unsafe fn bits(v: Floats) -> Words {
        Words(v.0.map(f32::to_bits))
    }
    #[inline(always)]
    unsafe fn e2m1_pairs(p: *const u8) -> Words {
        let bytes = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        let value = |e: usize| {
            let code = if e < LANES { bytes[e] & 15 } else { bytes[e - LANES] >> 4 };
            i16::from(E2M1_DOUBLED[usize::from(code)])
        };
        Words(array(|i| pair(value(2 * i), value(2 * i + 1))))
    }
    #[inline(always)]
    unsafe fn i8_pairs(p: *const u8) -> Words {
        let bytes = unsafe { p.cast::<[i8; 2 * LANES]>().read_unaligned() };
        Words(array(|i| pair(bytes[2 * i].into(), bytes[2 * i + 1].into())))
    }
    #[inline(always)]
    unsafe fn round_pairs(low: Floats, high: Floats) -> Words {
        let value = |e: usize| {
            let value = if e < LANES { low.0[e] } else { high.0[e - LANES] };
            value.round_ties_even() as i16
        };
        Words(array(|i| pair(value(2 * i), value(2 * i + 1))))
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: Words, a: Words, b: Words) -> Words {
        Words(array(|i| {
            let ((a0, a1), (b0, b1)) = (halves(a.0[i]), halves(b.0[i]));
            sum.0[i].wrapping_add((a0 * b0 + a1 * b1) as u32)
        }))
    }
    #[inline(always)]
    unsafe fn to_f32(v: Words) -> Floats {
        Floats(v.0.map(|v| v as i32 as f32))
    }
    #[inline(always)]
    unsafe fn nibbles(v: Words) -> (Words, Words) {
        (Words(v.0.map(|v| v & 0x0f0f_0f0f)), Words(v.0.map(|v| v >> 4 & 0x0f0f_0f0f)))
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: Words, a: Words, b: Words) -> Words {
        // Even bytes and odd ones, as pairs of 16-bit integers.
        let (a, b) = (a.0, b.0);
        let signed = |word: u32, shift: u32| {
            let (low, high) = ((word << shift) as i16 >> 8, (word >> 16 << shift) as i16 >> 8);
            pair(low, high)
        };
        unsafe {
            let even = Self::dot_pairs(sum, Words(a.map(|a| a & 0x00ff_00ff)), Words(b.map(|b| signed(b, 8))));
            Self::dot_pairs(even, Words(a.map(|a| a >> 8 & 0x00ff_00ff)), Words(b.map(|b| signed(b, 0))))
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Words; LANES]) {
        let before = *rows;
        for (i, row) in rows.iter_mut().enumerate() {
            for (j, word) in row.0.iter_mut().enumerate() {
                *word = before[j].0[i];
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
