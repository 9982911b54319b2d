//! Unpacking of some of GGUF's block formats and of MLX's affine groups, one function per format.
//!
//! For GGUF's formats, the arithmetic operations are in the same order as in the Python package `gguf`, so that every value is
//! bit-identical to that package's.

use formats::BLOCK;

use super::blocks::{IQ4, SUPER_BLOCK, half};

/// Code `e` of 32: the low nibble of byte `e` in the first half, the high nibble of byte `e − 16` in the second.
fn nibble(bytes: &[u8], e: usize) -> u8 {
    bytes[e % 16] >> (e / 16 * 4) & 15
}

/// Code `e` of 32: four bits from `low`, and the fifth from bit `e` of `high`.
fn five_bits(high: &[u8], low: &[u8], e: usize) -> u8 {
    nibble(low, e) | (high[e / 8] >> (e % 8) & 1) << 4
}

/// `scale · (code − 8)`
pub(super) fn q4_0(block: &[u8; 18], values: &mut [f32; BLOCK]) {
    let scale = half(block);
    for (e, value) in values.iter_mut().enumerate() {
        *value = scale * f32::from(nibble(&block[2..], e) as i8 - 8);
    }
}

/// `scale · code + minimum`
pub(super) fn q4_1(block: &[u8; 20], values: &mut [f32; BLOCK]) {
    let (scale, least) = (half(block), half(&block[2..]));
    for (e, value) in values.iter_mut().enumerate() {
        *value = scale * f32::from(nibble(&block[4..], e)) + least;
    }
}

/// `scale · (code − 16)`
pub(super) fn q5_0(block: &[u8; 22], values: &mut [f32; BLOCK]) {
    let scale = half(block);
    for (e, value) in values.iter_mut().enumerate() {
        *value = scale * f32::from(five_bits(&block[2..6], &block[6..], e) as i8 - 16);
    }
}

/// `scale · code + minimum`
pub(super) fn q5_1(block: &[u8; 24], values: &mut [f32; BLOCK]) {
    let (scale, least) = (half(block), half(&block[2..]));
    for (e, value) in values.iter_mut().enumerate() {
        *value = scale * f32::from(five_bits(&block[4..8], &block[8..], e)) + least;
    }
}

/// `scale · table[code]`; the table is denser around 0.
pub(super) fn iq4_nl(block: &[u8; 18], values: &mut [f32; BLOCK]) {
    let scale = half(block);
    for (e, value) in values.iter_mut().enumerate() {
        *value = scale * f32::from(IQ4[usize::from(nibble(&block[2..], e))]);
    }
}

/// Scale and minimum number `i` of 8, six bits each in 12 bytes. The first four scales are the low bits of bytes 0–3, the first four minima
/// those of bytes 4–7. The other four have their low nibbles in bytes 8–11 and their high bits in the top bits of bytes 0–7.
fn six_bit_pair(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, least) = match i {
        0..4 => (packed[i] & 63, packed[i + 4] & 63),
        _ => {
            let (low, scale_top, least_top) = (packed[i + 4], packed[i - 4] >> 6, packed[i] >> 6);
            (low & 15 | scale_top << 4, low >> 4 | least_top << 4)
        }
    };
    (f32::from(scale), f32::from(least))
}

/// Eight runs of 32 values `(d · scale) · code − (m · minimum)`. Two runs share 32 bytes, low nibbles first.
pub(super) fn q4_k(block: &[u8; 144], values: &mut [f32; SUPER_BLOCK]) {
    let (d, m) = (half(block), half(&block[2..]));
    for (run, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, least) = six_bit_pair(&block[4..16], run);
        let (scale, least) = (d * scale, m * least);
        let codes = &block[16 + run / 2 * 32..][..32];
        for (value, byte) in values.iter_mut().zip(codes) {
            *value = scale * f32::from(byte >> (run % 2 * 4) & 15) - least;
        }
    }
}

/// As Q4_K, with 5-bit codes. The fifth bit of value `e` of a run is bit `run` of byte `e` of 32 further bytes.
pub(super) fn q5_k(block: &[u8; 176], values: &mut [f32; SUPER_BLOCK]) {
    let (d, m) = (half(block), half(&block[2..]));
    for (run, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, least) = six_bit_pair(&block[4..16], run);
        let (scale, least) = (d * scale, m * least);
        let codes = &block[48 + run / 2 * 32..][..32];
        for ((value, byte), high) in values.iter_mut().zip(codes).zip(&block[16..48]) {
            let code = byte >> (run % 2 * 4) & 15 | (high >> run & 1) << 4;
            *value = scale * f32::from(code) - least;
        }
    }
}

/// Sixteen runs of 16 values `(d · scale) · (code − 32)`. Each half of the block has 64 bytes of low nibbles, two values per byte, and 32
/// bytes of high bit pairs, four values per byte.
pub(super) fn q6_k(block: &[u8; 210], values: &mut [f32; SUPER_BLOCK]) {
    let d = half(&block[208..]);
    for (e, value) in values.iter_mut().enumerate() {
        let (half, within) = (e / 128, e % 128);
        let low = block[half * 64 + within % 64] >> (within / 64 * 4) & 15;
        let high = block[128 + half * 32 + within % 32] >> (within / 32 * 2) & 3;
        let scale = d * f32::from(block[192 + e / 16] as i8);
        *value = scale * f32::from((low | high << 4) as i8 - 32);
    }
}

/// MLX's affine groups, with scale and bias stored in front of the codes as f32: `code · scale + bias`.
pub(super) fn affine(block: &[u8], bits: usize, values: &mut [f32]) {
    let float = |at: usize| f32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"));
    let (scale, bias) = (float(0), float(4));
    let codes = &block[8..];
    for (e, value) in values.iter_mut().enumerate() {
        let code = match bits {
            8 => codes[e],
            _ => codes[e / 2] >> (e % 2 * 4) & 15,
        };
        *value = f32::from(code) * scale + bias;
    }
}
