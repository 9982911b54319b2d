//! Unpacking of more GGUF formats with 256 values per block: two and three bits, IQ4_XS, and ternary.
//!
//! The arithmetic operations are in the same order as in the Python package `gguf`.

use super::blocks::{IQ4, SUPER_BLOCK, half};

/// The 2-bit code of value `e`. Each half of a block, 128 values, has 32 bytes; byte `i` holds the codes of values `i`, `32 + i`, `64 + i`
/// and `96 + i` of that half.
fn two_bits(codes: &[u8], e: usize) -> u8 {
    codes[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3
}

/// Sixteen runs of 16 values `(d · scale) · code − (m · minimum)`. A byte holds the 4-bit scale and the 4-bit minimum of a run.
pub(super) fn q2_k(block: &[u8; 84], values: &mut [f32; SUPER_BLOCK]) {
    let (d, m) = (half(&block[80..]), half(&block[82..]));
    for (e, value) in values.iter_mut().enumerate() {
        let packed = block[e / 16];
        let (scale, least) = (d * f32::from(packed & 15), m * f32::from(packed >> 4));
        *value = scale * f32::from(two_bits(&block[16..80], e)) - least;
    }
}

/// Sixteen runs of 16 values `(d · (scale − 32)) · code`. A code is a 2-bit number; for value `e`, 4 is subtracted from it if bit `e / 32`
/// of byte `e % 32` is 0.
pub(super) fn q3_k(block: &[u8; 110], values: &mut [f32; SUPER_BLOCK]) {
    let d = half(&block[108..]);
    for (e, value) in values.iter_mut().enumerate() {
        let is_high = block[e % 32] >> (e / 32) & 1 == 1;
        let code = two_bits(&block[32..96], e) as i8 - if is_high { 0 } else { 4 };
        *value = d * f32::from(six_bits(&block[96..108], e / 16)) * f32::from(code);
    }
}

/// Scale number `i` of 16, minus 32. Each has six bits, packed in 12 bytes: the four low bits in a nibble of bytes 0–7, the two high ones
/// in bytes 8–11.
fn six_bits(packed: &[u8], i: usize) -> i8 {
    let low = packed[i % 8] >> (i / 8 * 4) & 15;
    let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// Eight runs of 32 values `(d · (scale − 32)) · table[code]`. The four low bits and the two high bits of a 6-bit scale are stored
/// separately.
pub(super) fn iq4_xs(block: &[u8; 136], values: &mut [f32; SUPER_BLOCK]) {
    let d = half(block);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (run, values) in values.chunks_exact_mut(32).enumerate() {
        let low = block[4 + run / 2] >> (run % 2 * 4) & 15;
        let scale = (low | ((high >> (2 * run) & 3) as u8) << 4) as i8 - 32;
        let scale = d * f32::from(scale);
        let codes = &block[8 + run * 16..][..16];
        for (e, value) in values.iter_mut().enumerate() {
            *value = scale * f32::from(IQ4[usize::from(codes[e % 16] >> (e / 16 * 4) & 15)]);
        }
    }
}

/// `d · t`, where t is −1, 0 or 1. A byte is a base-3 fraction of up to five digits, one per value: 160 values in 32 bytes, then 80 values
/// in 16 bytes, then four values in each of 4 bytes.
pub(super) fn tq1_0(block: &[u8; 54], values: &mut [f32; SUPER_BLOCK]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let d = half(&block[52..]);
    for (e, value) in values.iter_mut().enumerate() {
        let (byte, digit) = match e {
            0..160 => (e % 32, e / 32),
            160..240 => (32 + (e - 160) % 16, (e - 160) / 16),
            _ => (48 + (e - 240) % 4, (e - 240) / 4),
        };
        let fraction = block[byte].wrapping_mul(POWERS[digit]);
        *value = d * f32::from(((u16::from(fraction) * 3) >> 8) as i8 - 1);
    }
}

/// `d · (code − 1)`
pub(super) fn tq2_0(block: &[u8; 66], values: &mut [f32; SUPER_BLOCK]) {
    let d = half(&block[64..]);
    for (e, value) in values.iter_mut().enumerate() {
        *value = d * f32::from(two_bits(&block[..64], e) as i8 - 1);
    }
}
