//! The weight formats in which all engines multiply matrices without converting them first.

use half::{bf16, f16};

use crate::{BLOCK, mxfp4};

/// Bytes of a Q8_0 block: an f16 scale and 32 signed bytes.
const Q8_0_BYTES: usize = 2 + BLOCK;

/// How the values of a row are stored, as in GGUF.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    F32,
    F16,
    BF16,
    /// Blocks of 32 values: an f16 scale and 32 signed bytes.
    Q8_0,
    /// Blocks of 32 values: see [`mxfp4`].
    Mxfp4,
}

impl Storage {
    pub const ALL: [Storage; 5] = [Storage::F32, Storage::F16, Storage::BF16, Storage::Q8_0, Storage::Mxfp4];

    /// Size in bytes of 32 values.
    pub const fn block_bytes(self) -> usize {
        match self {
            Storage::F32 => 4 * BLOCK,
            Storage::F16 | Storage::BF16 => 2 * BLOCK,
            Storage::Q8_0 => Q8_0_BYTES,
            Storage::Mxfp4 => mxfp4::BLOCK_BYTES,
        }
    }

    /// Whether values are integers times the scale of their block (MXFP4: half of it), so that products can be computed in 16-bit integers.
    pub const fn is_quantized(self) -> bool {
        matches!(self, Storage::Q8_0 | Storage::Mxfp4)
    }

    /// Decodes values, in the f32 arithmetic of the format's definition; quantized formats need whole blocks. `packed` must have
    /// [`Storage::block_bytes`] bytes for each 32 values.
    #[inline]
    pub fn decode(self, packed: &[u8], values: &mut [f32]) {
        debug_assert_eq!(packed.len() * BLOCK, values.len() * self.block_bytes(), "{self:?}");
        match self {
            Storage::F32 => each(packed, values, |b: &[u8; 4], [v]| *v = f32::from_le_bytes(*b)),
            Storage::F16 => each(packed, values, |b: &[u8; 2], [v]| *v = f16::from_le_bytes(*b).to_f32()),
            Storage::BF16 => each(packed, values, |b: &[u8; 2], [v]| *v = bf16::from_le_bytes(*b).to_f32()),
            Storage::Q8_0 => each(packed, values, decode_q8_0),
            Storage::Mxfp4 => each(packed, values, mxfp4::decode),
        }
    }

    /// Encodes values, rounding to nearest if the format is less precise than f32. Values that [`Storage::decode`] returns are encoded
    /// exactly, except those of a Q8_0 block in which the largest magnitude of a code is not 127.
    ///
    /// # Panics
    /// If a quantized format's last block is not whole.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        assert!(!self.is_quantized() || values.len().is_multiple_of(BLOCK), "whole blocks");
        let mut packed = Vec::with_capacity(values.len() * self.block_bytes() / BLOCK);
        let blocks = values.as_chunks::<BLOCK>().0;
        match self {
            Storage::F32 => values.iter().for_each(|v| packed.extend_from_slice(&v.to_le_bytes())),
            Storage::F16 => values.iter().for_each(|&v| packed.extend_from_slice(&f16::from_f32(v).to_le_bytes())),
            Storage::BF16 => values.iter().for_each(|&v| packed.extend_from_slice(&bf16::from_f32(v).to_le_bytes())),
            Storage::Q8_0 => blocks.iter().for_each(|block| packed.extend_from_slice(&encode_q8_0(block))),
            Storage::Mxfp4 => blocks.iter().for_each(|block| packed.extend_from_slice(&mxfp4::encode(block))),
        }
        packed
    }
}

/// Applies `unpack` to each `BYTES` bytes and `LEN` values.
fn each<const BYTES: usize, const LEN: usize>(
    packed: &[u8],
    values: &mut [f32],
    unpack: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (piece, values) in packed.as_chunks().0.iter().zip(values.as_chunks_mut().0) {
        unpack(piece, values);
    }
}

/// `scale · q`
fn decode_q8_0(block: &[u8; Q8_0_BYTES], values: &mut [f32; BLOCK]) {
    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
    for (value, &q) in values.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(q as i8);
    }
}

fn encode_q8_0(values: &[f32; BLOCK]) -> [u8; Q8_0_BYTES] {
    // The bits of non-negative floats, compared as integers, have the order of the floats, and integers compare faster.
    let amax = f32::from_bits(values.iter().fold(0, |most, v| most.max(v.abs().to_bits())));
    let scale = f16::from_f32(amax / 127.0);
    let inverse = if scale == f16::ZERO { 0.0 } else { scale.to_f32().recip() };
    let mut block = [0; Q8_0_BYTES];
    block[..2].copy_from_slice(&scale.to_le_bytes());
    for (q, value) in block[2..].iter_mut().zip(values) {
        // Rounds away from 0 at a half, as `round` does, in instructions that every processor has.
        let quotient = (value * inverse).clamp(-127.0, 127.0);
        *q = (quotient + 0.5f32.copysign(quotient)) as i32 as u8;
    }
    block
}
