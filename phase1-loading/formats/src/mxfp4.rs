//! MXFP4: 32 E2M1 codes of 4 bits with one E8M0 scale byte (OCP microscaling formats 1.0), in GGUF's order.

use crate::BLOCK;

/// Bytes of a block: the scale, then 16 bytes whose low nibbles are the first 16 codes and whose high nibbles are the rest.
pub const BLOCK_BYTES: usize = 1 + BLOCK / 2;

/// The sixteen E2M1 values by code: sign, two exponent bits, one mantissa bit.
///
/// Code 8 is +0 here, as in GGUF readers; OCP defines it as −0. Sums of products are the same.
pub const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Twice the value of each code, which is an integer.
pub const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The largest magnitude of a code.
pub const E2M1_MAX: f32 = 6.0;

/// `2^(byte − 128)`: half of each scale, for use with [`E2M1_DOUBLED`]. Bytes 0 and 1 give subnormals. A table is used because a look-up is
/// one load from the L1 cache, while computing the scale would compete with the multiplications for the arithmetic units.
pub static HALF_E8M0: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = f32::from_bits(if byte < 2 { 0x0020_0000 << byte } else { (byte as u32 - 1) << 23 });
        byte += 1;
    }
    table
};

/// `2^(byte − 127)`. Byte 0 is the subnormal 2⁻¹²⁷. Byte 255, which is NaN in OCP's specification and which engines refuse, gives infinity.
pub fn e8m0(byte: u8) -> f32 {
    f32::from_bits(match byte {
        0 => 0x0040_0000,
        _ => u32::from(byte) << 23,
    })
}

/// Encodes a block with the scale `2^(⌊log2 amax⌋ − 2)`, as GGUF's quantizers do: `amax`, the largest magnitude, is then between 4 and 8
/// times the scale, and finite magnitudes above 6 times the scale are clamped. A scale outside E8M0's range saturates. A block of zeros has the
/// scale 1.
pub fn encode(values: &[f32; BLOCK]) -> [u8; BLOCK_BYTES] {
    let amax = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    // For an infinite magnitude the exponent is `i32::MAX`, and an ordinary addition would overflow.
    let exponent = (amax.log2().floor() as i32).saturating_add(127 - 2);
    let scale_byte = if amax == 0.0 { 127 } else { exponent.clamp(0, 254) as u8 };
    let scale = e8m0(scale_byte);
    let code = |value: f32| -> u8 {
        let distance = |code: &u8| (E2M1[usize::from(*code)] - value / scale).abs();
        let codes = (0..16u8).filter(|&c| c != 8);
        codes.min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("fifteen codes")
    };
    let mut block = [0; BLOCK_BYTES];
    block[0] = scale_byte;
    for (j, byte) in block[1..].iter_mut().enumerate() {
        *byte = code(values[j]) | code(values[j + BLOCK / 2]) << 4;
    }
    block
}

/// Decodes a block: `E2M1[code] · 2^(scale − 127)`.
pub fn decode(block: &[u8; BLOCK_BYTES], values: &mut [f32; BLOCK]) {
    let scale = e8m0(block[0]);
    let table = E2M1.map(|value| value * scale);
    let (first, second) = values.split_at_mut(BLOCK / 2);
    for ((first, second), &byte) in first.iter_mut().zip(second).zip(&block[1..]) {
        *first = table[usize::from(byte & 15)];
        *second = table[usize::from(byte >> 4)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_saturate_at_both_ends() {
        let scale = |value: f32| encode(&[value; BLOCK])[0];
        assert_eq!([0.0, 1.0, 4.0, -8.0].map(scale), [127, 125, 127, 128]);
        assert_eq!([f32::from_bits(1), 2f32.powi(127), f32::INFINITY].map(scale), [0, 252, 254]);
    }
}
