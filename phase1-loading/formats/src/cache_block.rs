//! The block of a q8_0 cache: 32 values in 32 bytes, codes of 8 bits that carry their scale.
//!
//! The scale is an f16 with only bits 14 to 7 in use: five exponent bits and three mantissa bits. These eight bits are stored in the lowest
//! bits of the block's first eight codes, bit i in code i. A reader multiplies all codes, unmodified, by the scale. A writer rounds each of
//! the first eight codes to the nearest integer whose lowest bit is the scale's bit, an error of at most one step; the other codes have an
//! error of at most half a step. With a separate scale the block would be larger than 32 bytes, which is half the size of 32 values in f16.

use half::f16;

use crate::BLOCK;

/// Number of codes whose lowest bits hold the scale.
pub const SCALE_BITS: usize = 8;
/// The largest magnitude of a code.
pub const LARGEST_CODE: f32 = 127.0;
/// The factor from the largest magnitude of a block to its scale. It replaces a division by [`LARGEST_CODE`], so that every device computes
/// the same scale: GPUs differ in how they round divisions.
pub(crate) const PER_LARGEST_CODE: f32 = 1.0 / LARGEST_CODE;
/// The largest scale. Values above [`LARGEST_CODE`] times this saturate.
pub const LARGEST_SCALE: f32 = 61440.0;
/// The smallest scale above zero, and the smallest difference between two scales.
pub const SMALLEST_SCALE: f32 = 1.0 / 131_072.0;
/// The smallest scale that is not subnormal.
pub(crate) const SMALLEST_NORMAL_SCALE: f32 = 8.0 * SMALLEST_SCALE;

/// The scale for each value of its eight bits, which are bits 14 to 7 of an f16.
pub static SCALES: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = f16::from_bits((byte as u16) << 7).to_f32_const();
        byte += 1;
    }
    table
};

/// Encodes a block as 32 codes in two's complement. Infinities saturate. The code of a NaN is zero, or one where it must hold a set bit of
/// the scale.
pub fn encode(values: &[f32; BLOCK]) -> [i8; BLOCK] {
    let byte = scale_byte(values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs())));
    let inverse = if byte == 0 { 0.0 } else { SCALES[usize::from(byte)].recip() };
    std::array::from_fn(|i| {
        let quotient = values[i] * inverse;
        if i < SCALE_BITS {
            let bit = byte >> i & 1;
            let (odd, most) = (f32::from(bit), LARGEST_CODE - 1.0 + f32::from(bit));
            ((quotient.clamp(-most, most) - odd) * 0.5).round_ties_even() as i8 * 2 + bit as i8
        } else {
            quotient.clamp(-LARGEST_CODE, LARGEST_CODE).round_ties_even() as i8
        }
    })
}

/// Decodes a block.
pub fn decode(codes: &[i8; BLOCK]) -> [f32; BLOCK] {
    let scale = scale(codes);
    codes.map(|code| scale * f32::from(code))
}

/// The scale of a block.
pub fn scale(codes: &[i8; BLOCK]) -> f32 {
    SCALES[usize::from(codes[..SCALE_BITS].iter().rev().fold(0, |byte, &code| byte << 1 | code as u8 & 1))]
}

/// The bits of the smallest scale that is at least `largest / 127`, or of the largest scale if none is; zero if all values round to zero.
fn scale_byte(largest: f32) -> u8 {
    let exact = (largest * PER_LARGEST_CODE).min(LARGEST_SCALE);
    if largest < SMALLEST_SCALE / 2.0 {
        0
    } else if exact < SMALLEST_NORMAL_SCALE {
        (exact / SMALLEST_SCALE).ceil() as u8
    } else {
        // Rounds the f32's mantissa up to three bits, and changes the bias of its exponent to that of an f16: 127 − 15 = 112.
        (((exact.to_bits() + 0xf_ffff) >> 20) - (112 << 3)) as u8
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Blocks of every magnitude, including magnitudes that need a subnormal scale or exceed the largest scale.
    fn block() -> impl Strategy<Value = [f32; BLOCK]> {
        let share =
            prop_oneof![6 => -1.0f32..1.0, 1 => Just(0.0), 1 => Just(1.0), 1 => Just(-1.0), 1 => -0.01f32..0.01];
        (prop::array::uniform32(share), -45i32..40).prop_map(|(shares, size)| shares.map(|x| x * 2f32.powi(size)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn codes_are_nearest_with_required_low_bit(values in block()) {
            let codes = encode(&values);
            let scale = super::scale(&codes);
            let most = LARGEST_CODE * LARGEST_SCALE;
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs())).min(most);
            if scale == 0.0 {
                prop_assert!(largest < SMALLEST_SCALE / 2.0 && codes == [0; BLOCK]);
                return Ok(());
            }
            // The scale is the smallest that suffices, up to the rounding of the division.
            let exact = largest / LARGEST_CODE;
            prop_assert!(exact <= scale * 1.000_001, "{largest} with scale {scale}");
            prop_assert!(scale <= (exact * 1.125).max(exact + SMALLEST_SCALE) * 1.000_001, "{largest} with scale {scale}");
            for (i, (&value, &code)) in values.iter().zip(&codes).enumerate() {
                let allowed = if i < SCALE_BITS { 1.0 } else { 0.5 };
                let error = f64::from(value.clamp(-most, most)) / f64::from(scale) - f64::from(code);
                prop_assert!(error.abs() <= allowed + 1e-4, "{value} became {code} with scale {scale}");
                prop_assert!(code != i8::MIN);
            }
            prop_assert_eq!(decode(&codes), codes.map(|code| f32::from(code) * scale));
        }
    }

    #[test]
    fn every_scale_round_trips() {
        for byte in 0..=0xf7u8 {
            let scale = SCALES[usize::from(byte)];
            let mut values = [0.0; BLOCK];
            values[31] = -LARGEST_CODE * scale;
            let codes = encode(&values);
            assert_eq!((super::scale(&codes), codes[31]), (scale, if byte == 0 { 0 } else { -127 }));
            assert_eq!(scale_byte(LARGEST_CODE * scale), byte);
        }
        assert_eq!(SCALES[0xf7], LARGEST_SCALE);
        assert_eq!(SCALES[1], SMALLEST_SCALE);
        assert_eq!(SCALES[8], SMALLEST_NORMAL_SCALE);
    }

    #[test]
    fn nan_and_infinity_keep_their_positions() {
        let mut values = [1.0; BLOCK];
        values[3] = f32::NAN;
        values[20] = f32::NAN;
        let back = decode(&encode(&values));
        let step = super::scale(&encode(&values));
        assert!(back[3].abs() <= step && back[20] == 0.0 && (back[0] - 1.0).abs() <= step, "{back:?}");
        assert_eq!(encode(&[f32::NAN; BLOCK]), [0; BLOCK]);
        let mut values = [0.0; BLOCK];
        (values[8], values[9]) = (f32::INFINITY, f32::NEG_INFINITY);
        let back = decode(&encode(&values));
        assert_eq!([back[8], back[9], back[10]], [LARGEST_CODE * LARGEST_SCALE, -LARGEST_CODE * LARGEST_SCALE, 0.0]);
        assert_eq!(decode(&[0; BLOCK]), [0.0; BLOCK]);
    }
}
