//! What the block formats of GGUF share.

use half::f16;

/// Values of a block of the formats that have scales under a common factor.
pub(super) const SUPER_BLOCK: usize = 256;

/// What the codes of the IQ4 formats stand for: a table that is denser around 0.
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The f16 at the start of a slice.
pub(super) fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}
