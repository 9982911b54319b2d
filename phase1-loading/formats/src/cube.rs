//! The cache's formats inside CubeCL kernels, without 8- or 16-bit types, which a GPU may lack.
//!
//! A [cache block](crate::cache_block) is eight words, with the first code in the lowest byte of the first word. Scales are bit-identical to
//! the CPU's. A code may differ by one, or by two if its lowest bit holds a bit of the scale, since GPUs differ in how they round
//! divisions.

use cubecl::prelude::*;

use crate::cache_block::{LARGEST_CODE, LARGEST_SCALE, PER_LARGEST_CODE, SMALLEST_NORMAL_SCALE, SMALLEST_SCALE};

/// Converts the bits of a finite f16 to f32; those of infinities and NaN give finite numbers. GPUs may flush f32 subnormals to zero, so f16
/// subnormals are computed without them.
#[cube]
pub fn f16_value(bits: u32) -> f32 {
    let magnitude = bits & 0x7fffu32;
    let normal = f32::reinterpret((magnitude << 13u32) + comptime![112u32 << 23]);
    let subnormal = f32::cast_from(magnitude) * f32::reinterpret(comptime![103u32 << 23]);
    let value = select(magnitude < 0x400u32, subnormal, normal);
    select(bits > 0x7fffu32, -value, value)
}

/// The bits of the nearest f16, ties to even. Values out of range become ±65,504; NaN stays NaN.
#[cube]
pub fn f16_bits(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let sign = (bits >> 16u32) & 0x8000u32;
    let finite = min(bits & 0x7fff_ffffu32, comptime![(142u32 << 23) | 0x007f_e000]);
    // Floats from 0.5 to 1 are 2⁻²⁴ apart, as f16's subnormals are: adding 0.5 rounds to one of them.
    let small = u32::reinterpret(f32::reinterpret(finite) + 0.5f32) - comptime![126u32 << 23];
    let even = (finite >> 13u32) & 1u32;
    let normal = (finite - comptime![112u32 << 23] + 0xfffu32 + even) >> 13u32;
    let magnitude = select(finite < comptime![113u32 << 23], small, normal);
    let is_nan = (bits & 0x7fff_ffffu32) > 0x7f80_0000u32;
    sign | select(is_nan, 0x7e00u32, magnitude)
}

/// Encodes 32 values as the eight words of a cache block.
#[cube]
pub fn encode_block(values: &Array<f32>, words: &mut Array<u32>) {
    let mut largest = 0.0f32;
    #[unroll]
    for i in 0..32usize {
        let value = values[i];
        largest = max(largest, select(value < 0.0, -value, value));
    }
    let byte = scale_byte(largest);
    let scale = scale_value(byte);
    let inverse = select(byte == 0, 0.0, 1.0 / max(scale, f32::new(SMALLEST_SCALE)));
    #[unroll]
    for word in 0..8u32 {
        let mut codes = 0u32;
        #[unroll]
        for i in 0..4u32 {
            let at = comptime![4 * word + i];
            let quotient = values[comptime![at as usize]] * inverse;
            let code = if comptime![at < 8] { code_of_parity(quotient, (byte >> at) & 1) } else { code(quotient) };
            codes |= (code & 0xff) << comptime![8 * i];
        }
        words[comptime![word as usize]] = codes;
    }
}

/// The scale of a cache block, given its first two words.
#[cube]
pub fn block_scale(first: u32, second: u32) -> f32 {
    let bits = (first & 0x0101_0101) | ((second & 0x0101_0101) << 4);
    // The product puts bit 8 i at bit 24 + i, and bit 8 i + 4 at bit 28 + i; its terms do not overlap.
    scale_value((bits * 0x0102_0408) >> 24)
}

#[cube]
fn scale_byte(largest: f32) -> u32 {
    // The bits of non-negative floats, compared as integers, have the order of the floats, and NaN is the largest.
    let exact = min(u32::reinterpret(largest * PER_LARGEST_CODE), u32::reinterpret(f32::new(LARGEST_SCALE)));
    let normal = ((exact + 0xf_ffff) >> 20) - (112u32 << 3);
    let subnormal = u32::cast_from(f32::ceil(f32::reinterpret(exact) * comptime![1.0 / SMALLEST_SCALE]));
    let byte = select(exact < u32::reinterpret(f32::new(SMALLEST_NORMAL_SCALE)), subnormal, normal);
    select(largest < comptime![SMALLEST_SCALE / 2.0], 0, byte)
}

#[cube]
fn scale_value(byte: u32) -> f32 {
    select(byte < 8, f32::cast_from(byte) * SMALLEST_SCALE, f32::reinterpret((byte << 20) + (112u32 << 23)))
}

/// The nearest code, in the lowest byte.
#[cube]
fn code(quotient: f32) -> u32 {
    nearest(clamp(quotient, -LARGEST_CODE, LARGEST_CODE))
}

/// The nearest odd code if `odd` is 1, the nearest even code if it is 0.
#[cube]
fn code_of_parity(quotient: f32, odd: u32) -> u32 {
    let odd_value = f32::cast_from(odd);
    let most = odd_value + comptime![LARGEST_CODE - 1.0];
    (nearest((clamp(quotient, -most, most) - odd_value) * 0.5) << 1) | odd
}

/// The nearest whole number, ties to even, in the low bits: floats near 1.5 · 2²³ are 1 apart.
#[cube]
fn nearest(value: f32) -> u32 {
    u32::reinterpret(value + 12_582_912.0)
}
