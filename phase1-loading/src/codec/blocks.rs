//! Helpers shared by the GGUF block formats.

use half::f16;

/// Values per block of the K, IQ and TQ formats, except IQ4_NL.
pub(super) const SUPER_BLOCK: usize = 256;

/// The value of each 4-bit code of the IQ4 formats. The values are denser around 0.
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The f16 at the start of a slice, as f32.
pub(super) fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}
