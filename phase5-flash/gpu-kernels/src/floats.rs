//! Converts numbers of 8 and 16 bits to f32, without types that a GPU may lack.

use cubecl::prelude::*;
use formats::cube::f16_value;
use half::f16;

/// A bf16 from its bits.
#[cube]
fn bf16_value(bits: u32) -> f32 {
    f32::reinterpret(bits << 16u32)
}

/// Four 16-bit floats (bf16 or f16) in the order of two words, the low half of each first.
#[cube]
pub(crate) fn four_halves(a: u32, b: u32, #[comptime] bf16: bool) -> Vector<f32, Const<4>> {
    let mut values = Vector::<f32, Const<4>>::empty();
    if comptime![bf16] {
        values.insert(0usize, bf16_value(a & 0xffffu32));
        values.insert(1usize, bf16_value(a >> 16u32));
        values.insert(2usize, bf16_value(b & 0xffffu32));
        values.insert(3usize, bf16_value(b >> 16u32));
    } else {
        values.insert(0usize, f16_value(a & 0xffffu32));
        values.insert(1usize, f16_value(a >> 16u32));
        values.insert(2usize, f16_value(b & 0xffffu32));
        values.insert(3usize, f16_value(b >> 16u32));
    }
    values
}

/// Converts four signed bytes to floats. Flipping the sign bit adds 128 to a byte. Placed in the lowest mantissa bits of the float 2²³, the
/// result gives 2²³ + 128 + byte, from which 2²³ + 128 is subtracted.
#[cube]
pub(crate) fn signed_bytes(word: u32) -> Vector<f32, Const<4>> {
    let flipped = word ^ 0x8080_8080u32;
    let mut values = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..4u32 {
        let byte = (flipped >> comptime![8 * i]) & 255u32;
        values.insert(comptime![i as usize], f32::reinterpret(byte | 0x4b00_0000u32) - 8_388_736.0f32);
    }
    values
}

/// Signed bytes `i` and `i + 2` of a word as 16-bit floats, for `i` 0 or 1. As in [`signed_bytes`], with the float 2¹⁰.
#[cube]
pub(crate) fn signed_pair(word: u32, #[comptime] i: u32) -> Vector<f16, Const<2>> {
    let bytes = (if comptime![i == 0] { word } else { word >> 8u32 }) & 0x00ff_00ffu32;
    let shifted = Vector::<f16, Const<2>>::reinterpret(bytes ^ 0x6480_6480u32);
    shifted - Vector::<f16, Const<2>>::new(f16::new(1152.0f32))
}
