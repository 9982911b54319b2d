//! Decodes the 4-bit codes of MXFP4 to floats.
//!
//! History of the decoder (operations per weight, besides the multiplication):
//! 1. exponent and mantissa assembled, subnormals by `select`: 9.
//! 2. [`E2m1Decode::Rebias`]: all eight magnitudes of a word are recoded together, so that one shift and one mask make each of them a float
//!    between 2 and 8; subtracting 2 leaves E2M1's value exactly: 5.5.
//! 3. [`E2m1Decode::F16Pairs`]: where a word can be reinterpreted as two 16-bit floats, two codes are shifted and masked together: 2, and a
//!    conversion.
//!
//! Reading codes as f32 subnormals takes 4 operations, but only if a device supports subnormals; on no tested GPU was it the fastest.

use cubecl::prelude::*;
use half::f16;

/// How codes become floats, depending on the device's shader language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum E2m1Decode {
    /// Codes are recoded as floats that are 2 larger than the value, and 2 is subtracted. Works on every device.
    Rebias,
    /// Two codes are decoded together as 16-bit floats, if the shader language can reinterpret a word as two of them.
    F16Pairs,
}

impl E2m1Decode {
    /// Factor that undoes the scaling of the decoded codes.
    pub const fn factor(self) -> f32 {
        match self {
            E2m1Decode::Rebias => 1.0,
            E2m1Decode::F16Pairs => (1 << 14) as f32,
        }
    }
}

/// Values `4 quarter` to `4 quarter + 3` of a word's eight codes, for `quarter` 0 or 1, which still have to be multiplied by
/// [`E2m1Decode::factor`].
#[cube]
pub(crate) fn four_values(
    word: u32,
    #[comptime] quarter: u32,
    #[comptime] decode: E2m1Decode,
) -> Vector<f32, Const<4>> {
    match comptime![decode] {
        E2m1Decode::Rebias => rebiased(word, steps(word), comptime![quarter * 16]),
        E2m1Decode::F16Pairs => from_pairs(word, quarter),
    }
}

/// Recodes eight magnitudes as numbers of steps: 0 to 6, and 8 for the largest. As the top mantissa bits of floats from 2.0 on, they give
/// 2, 2.5, 3, 3.5, 4, 5, 6 and 8, which is 2 plus each magnitude.
#[cube]
fn steps(codes: u32) -> u32 {
    let magnitudes = codes & 0x7777_7777u32;
    magnitudes + (((magnitudes + 0x1111_1111u32) & 0x8888_8888u32) >> 3u32)
}

/// Decodes four values, of which the first is at bit `first`.
#[cube]
fn rebiased(codes: u32, steps: u32, #[comptime] first: u32) -> Vector<f32, Const<4>> {
    let mut values = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..4u32 {
        let at = comptime![first + 4 * i];
        let mantissa =
            if comptime![at < 21] { steps << comptime![21 - at.min(21)] } else { steps >> comptime![at.max(21) - 21] };
        let magnitude = f32::reinterpret((mantissa & 0x01e0_0000u32) | 0x4000_0000u32) - 2.0f32;
        let sign = (codes << comptime![28 - at]) & 0x8000_0000u32;
        values.insert(comptime![i as usize], f32::reinterpret(u32::reinterpret(magnitude) | sign));
    }
    values
}

/// Four values of the word's low or high half, times 2⁻¹⁴.
#[cube]
fn from_pairs(codes: u32, #[comptime] high: u32) -> Vector<f32, Const<4>> {
    let mut values = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..4u32 {
        let pair = Vector::<f32, Const<2>>::cast_from(f16_pair(codes, i));
        values.insert(comptime![i as usize], pair.extract(comptime![high as usize]));
    }
    values
}

/// Values `i` and `i + 4` of a word, times 2⁻¹⁴. Both are shifted and masked together.
#[cube]
pub(crate) fn f16_pair(codes: u32, #[comptime] i: u32) -> Vector<f16, Const<2>> {
    let magnitude = if comptime![i < 3] { codes << comptime![9 - 4 * i.min(2)] } else { codes >> 3u32 };
    let sign = codes << comptime![12 - 4 * i];
    let pair = (magnitude & 0x0e00_0e00u32) | (sign & 0x8000_8000u32);
    Vector::<f16, Const<2>>::reinterpret(pair)
}
