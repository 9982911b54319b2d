//! Unpacking of the IQ2 and IQ3 formats. A block has 256 values. Each group of eight (IQ2) or four (IQ3) magnitudes is stored as the index
//! of a point in a table; the signs are stored separately. Every block begins with an f16 factor of all its scales; the functions below
//! describe what follows it.
//!
//! The arithmetic operations are in the same order as in the Python package `gguf`, so that the results are rounded in the same way.

use super::blocks::{SUPER_BLOCK, half};
use super::grids;

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The 4-bit scale number `i`; a byte holds two scales.
fn nibble(bytes: &[u8], i: usize) -> f32 {
    f32::from(bytes[i / 2] >> (i % 2 * 4) & 15)
}

/// Adds the eighth sign bit to the seven stored ones. It is chosen so that the number of set bits is even.
fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// `scale · value`, negated if bit `bit` of `signs` is set.
fn signed(scale: f32, value: u8, signs: u8, bit: usize) -> f32 {
    scale * f32::from(value) * if signs >> bit & 1 == 0 { 1.0 } else { -1.0 }
}

/// The eight values of a point of an IQ2 table.
fn eight(point: u16, scale: f32, signs: u8, values: &mut [f32]) {
    const LEVELS: [u8; 4] = [0x08, 0x19, 0x2b, 0];
    for (i, value) in values.iter_mut().enumerate() {
        *value = signed(scale, LEVELS[usize::from(point >> (2 * i) & 3)], signs, i);
    }
}

/// The eight values of two points of an IQ3 table.
fn two_fours(points: [u16; 2], levels: &[u8; 8], scale: f32, signs: u8, values: &mut [f32]) {
    for (i, value) in values.iter_mut().enumerate() {
        let level = levels[usize::from(points[i / 4] >> (i % 4 * 4) & 7)];
        *value = signed(scale, level, signs, i);
    }
}

/// Eight runs of 32 values, each with four one-byte indices of points, and a 32-bit word of four groups of seven sign bits and a 4-bit
/// scale.
pub(super) fn iq2_xxs(block: &[u8; 66], values: &mut [f32; SUPER_BLOCK]) {
    let d = half(block);
    for (run, values) in values.chunks_exact_mut(32).enumerate() {
        let run = &block[2 + run * 8..][..8];
        let rest = word(&run[4..]);
        let scale = d * (0.5 + (rest >> 28) as f32) * 0.25;
        for (i, values) in values.chunks_exact_mut(8).enumerate() {
            eight(grids::IQ2_XXS[usize::from(run[i])], scale, even_signs(rest >> (7 * i)), values);
        }
    }
}

/// 32 words of 16 bits, each with the 9-bit index of a point and seven sign bits; then 16 scales of four bits.
pub(super) fn iq2_xs(block: &[u8; 74], values: &mut [f32; SUPER_BLOCK]) {
    let d = half(block);
    for (i, values) in values.chunks_exact_mut(8).enumerate() {
        let code = u16::from_le_bytes([block[2 + 2 * i], block[3 + 2 * i]]);
        let scale = d * (0.5 + nibble(&block[66..], i / 2)) * 0.25;
        eight(grids::IQ2_XS[usize::from(code & 511)], scale, even_signs(u32::from(code >> 9)), values);
    }
}

/// 32 indices of points, of ten bits each: their low bytes, then 32 bytes of signs, then the two high bits of each index, then 16 scales of
/// four bits.
pub(super) fn iq2_s(block: &[u8; 82], values: &mut [f32; SUPER_BLOCK]) {
    let d = half(block);
    for (i, values) in values.chunks_exact_mut(8).enumerate() {
        let high = usize::from(block[66 + i / 4] >> (i % 4 * 2) & 3);
        let scale = d * (0.5 + nibble(&block[74..], i / 2)) * 0.25;
        eight(grids::IQ2_S[usize::from(block[2 + i]) | high << 8], scale, block[34 + i], values);
    }
}

/// 64 one-byte indices of points; then for each run of 32 values a 32-bit word of four groups of seven sign bits and a 4-bit scale.
pub(super) fn iq3_xxs(block: &[u8; 98], values: &mut [f32; SUPER_BLOCK]) {
    const LEVELS: [u8; 8] = [0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3e];
    let d = half(block);
    for (i, values) in values.chunks_exact_mut(8).enumerate() {
        let rest = word(&block[66 + i / 4 * 4..]);
        let scale = d * (0.5 + (rest >> 28) as f32) * 0.5;
        let points = [0, 1].map(|second| grids::IQ3_XXS[usize::from(block[2 + 2 * i + second])]);
        two_fours(points, &LEVELS, scale, even_signs(rest >> (i % 4 * 7)), values);
    }
}

/// 64 indices of points, of nine bits each: their low bytes, then their high bits, then 32 bytes of signs, then eight scales of four bits.
pub(super) fn iq3_s(block: &[u8; 110], values: &mut [f32; SUPER_BLOCK]) {
    const LEVELS: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];
    let d = half(block);
    for (i, values) in values.chunks_exact_mut(8).enumerate() {
        let scale = d * (1.0 + 2.0 * nibble(&block[106..], i / 4));
        let points = [0, 1].map(|second| {
            let point = 2 * i + second;
            let high = usize::from(block[66 + point / 8] >> (point % 8) & 1);
            grids::IQ3_S[usize::from(block[2 + point]) | high << 8]
        });
        two_fours(points, &LEVELS, scale, block[74 + i], values);
    }
}
