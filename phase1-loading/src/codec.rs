//! The storage formats of tensor rows, and exact conversion between packed bytes and f32.
//!
//! A format packs a row in blocks of [`Format::block_len`] values and [`Format::block_bytes`] bytes. Decoding is
//! exact in every format: an f32 holds each product of scale and code without rounding.

use half::{bf16, f16};

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    F32,
    F16,
    BF16,
    /// 32 values: an f16 scale and 32 signed bytes.
    Q8_0,
    /// 32 values of the OCP microscaling format: an E8M0 scale byte and 32 E2M1 codes of 4 bits.
    Mxfp4,
}

/// The sixteen E2M1 values by code: sign, two exponent bits, one mantissa bit.
///
/// Code 8 is written +0: OCP calls it −0, GGUF readers +0, and no product distinguishes them.
pub const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Values to a quantized block, in both block formats.
const BLOCK: usize = 32;

impl Format {
    pub const ALL: [Format; 5] = [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Mxfp4];

    /// The format's name as people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::Q8_0 => "Q8_0",
            Format::Mxfp4 => "MXFP4",
        }
    }

    /// Type number in a GGUF file (`ggml_type`).
    pub const fn ggml_type(self) -> u32 {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::BF16 => 30,
            Format::Q8_0 => 8,
            Format::Mxfp4 => 39,
        }
    }

    pub fn from_ggml_type(number: u32) -> Option<Format> {
        Format::ALL.into_iter().find(|f| f.ggml_type() == number)
    }

    /// Values in one block; a row is a whole number of blocks.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q8_0 | Format::Mxfp4 => BLOCK,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q8_0 => 2 + BLOCK,
            Format::Mxfp4 => 1 + BLOCK / 2,
        }
    }

    /// Bytes of a row of `len` values. `len` must be a multiple of [`Format::block_len`].
    pub const fn row_bytes(self, len: usize) -> usize {
        len / self.block_len() * self.block_bytes()
    }

    /// Unpacks whole blocks: `packed.len()` = `row_bytes(values.len())`.
    pub fn decode(self, packed: &[u8], values: &mut [f32]) {
        debug_assert_eq!(packed.len(), self.row_bytes(values.len()));
        match self {
            Format::F32 => {
                for (value, b) in values.iter_mut().zip(packed.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*b);
                }
            }
            Format::F16 => {
                for (value, b) in values.iter_mut().zip(packed.as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*b).to_f32();
                }
            }
            Format::BF16 => {
                for (value, b) in values.iter_mut().zip(packed.as_chunks::<2>().0) {
                    *value = bf16::from_le_bytes(*b).to_f32();
                }
            }
            Format::Q8_0 => {
                let blocks = packed.as_chunks::<{ Format::Q8_0.block_bytes() }>().0;
                for (values, block) in values.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks) {
                    decode_q8_0(block, values);
                }
            }
            Format::Mxfp4 => {
                let blocks = packed.as_chunks::<{ Format::Mxfp4.block_bytes() }>().0;
                for (values, block) in values.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks) {
                    decode_mxfp4(block, values);
                }
            }
        }
    }

    /// Packs whole blocks, rounding to nearest where the format is coarser than f32: the inverse of
    /// [`Format::decode`] on every value that `decode` can produce.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        assert_eq!(values.len() % self.block_len(), 0, "whole blocks");
        let blocks = values.chunks_exact(BLOCK);
        match self {
            Format::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Format::F16 => (values.iter()).flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Format::BF16 => (values.iter()).flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Format::Q8_0 => blocks.flat_map(encode_q8_0).collect(),
            Format::Mxfp4 => blocks.flat_map(encode_mxfp4).collect(),
        }
    }
}

/// `value[e] = scale · q[e]`.
fn decode_q8_0(block: &[u8; 2 + BLOCK], values: &mut [f32; BLOCK]) {
    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
    for (value, &q) in values.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(q as i8);
    }
}

fn encode_q8_0(values: &[f32]) -> [u8; 2 + BLOCK] {
    let amax = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale = f16::from_f32(amax / 127.0);
    let inverse = if scale == f16::ZERO { 0.0 } else { scale.to_f32().recip() };
    let mut block = [0; 2 + BLOCK];
    block[..2].copy_from_slice(&scale.to_le_bytes());
    for (q, value) in block[2..].iter_mut().zip(values) {
        *q = (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
    }
    block
}

/// GGUF's nibble order: code `e` is the low nibble of byte `e` for the first half of the block, the high nibble of
/// byte `e − 16` for the second. `value[e] = E2M1[code] · 2^(scale − 127)`.
fn decode_mxfp4(block: &[u8; 1 + BLOCK / 2], values: &mut [f32; BLOCK]) {
    let scale = e8m0(block[0]);
    let table = E2M1.map(|value| value * scale);
    let (first, second) = values.split_at_mut(BLOCK / 2);
    for ((first, second), &byte) in first.iter_mut().zip(second).zip(&block[1..]) {
        *first = table[usize::from(byte & 15)];
        *second = table[usize::from(byte >> 4)];
    }
}

/// Rounds to the scale `2^(⌊log2 amax⌋ − 2)`, the largest that leaves amax inside the code range or saturates it least,
/// as the GGUF packers do.
fn encode_mxfp4(values: &[f32]) -> [u8; 1 + BLOCK / 2] {
    let amax = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale_byte = if amax == 0.0 { 127 } else { (amax.log2().floor() as i32 - 2 + 127).clamp(0, 254) as u8 };
    let scale = e8m0(scale_byte);
    let code = |value: f32| -> u8 {
        let distance = |code: &u8| (E2M1[usize::from(*code)] - value / scale).abs();
        let codes = (0..16u8).filter(|&c| c != 8);
        codes.min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("fifteen codes")
    };
    let mut block = [0; 1 + BLOCK / 2];
    block[0] = scale_byte;
    for (j, byte) in block[1..].iter_mut().enumerate() {
        *byte = code(values[j]) | code(values[j + BLOCK / 2]) << 4;
    }
    block
}

/// `2^(byte − 127)`. Byte 0 is the subnormal 2⁻¹²⁷; byte 255, NaN in OCP's table, is refused when a file is opened.
pub fn e8m0(byte: u8) -> f32 {
    f32::from_bits(match byte {
        0 => 0x0040_0000,
        _ => u32::from(byte) << 23,
    })
}

/// Turns the 16 code bytes of one MXFP4 block from the Hugging Face and MLX order (element `e` in byte `e / 2`, low
/// nibble first) into GGUF's. The scale byte is the same in both.
pub fn repack_mxfp4_from_hf(hf: &[u8; 16]) -> [u8; 16] {
    let code = |e: usize| hf[e / 2] >> (4 * (e % 2)) & 15;
    std::array::from_fn(|j| code(j) | code(j + 16) << 4)
}
