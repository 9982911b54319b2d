//! The storage formats of tensor rows, and conversion between packed bytes and f32.
//!
//! A format packs a row in blocks of [`Format::block_len`] values and [`Format::block_bytes`] bytes. Decoding performs the f32 operations
//! of the format's definition, so that the results are rounded in the same way.

mod blocks;
mod grid_quants;
mod grids;
mod low_bits;
mod quants;

use blocks::SUPER_BLOCK;
use formats::{BLOCK, Storage};
use serde::{Deserialize, Serialize};

/// How the values of a tensor are stored.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    F32,
    F16,
    BF16,
    /// 32 values: an f16 scale and 32 signed bytes.
    Q8_0,
    /// 32 values of the OCP microscaling format: an E8M0 scale byte and 32 E2M1 codes of 4 bits.
    Mxfp4,
    /// 32 values: an f16 scale and 4-bit codes, of which code 8 means 0.
    Q4_0,
    /// 32 values: an f16 scale, an f16 minimum and codes of 4 bits.
    Q4_1,
    /// 32 values: an f16 scale and 5-bit codes, of which code 16 means 0.
    Q5_0,
    /// 32 values: an f16 scale, an f16 minimum and codes of 5 bits.
    Q5_1,
    /// 32 values: an f16 scale and 4-bit indices into a fixed table.
    Iq4Nl,
    /// 256 values in 8 runs: 4-bit codes, a 6-bit scale and a 6-bit minimum per run, an f16 factor for all scales and one for all minima.
    Q4_K,
    /// As [`Format::Q4_K`], with codes of 5 bits.
    Q5_K,
    /// 256 values in 16 runs: 6-bit codes, an 8-bit scale per run, and an f16 factor for all scales.
    Q6_K,
    /// 256 values in 16 runs: 2-bit codes, a 4-bit scale and a 4-bit minimum per run, an f16 factor for all scales and one for all minima.
    Q2_K,
    /// 256 values in 16 runs: 3-bit codes, a 6-bit scale per run, and an f16 factor for all scales.
    Q3_K,
    /// 256 values in 8 runs: 4-bit indices into [`Format::Iq4Nl`]'s table, a 6-bit scale per run, and an f16 factor for all scales.
    Iq4Xs,
    /// 256 values: an f16 factor, 4-bit scales, sign bits, and indices into a table of points (ggml's grid) with four values each.
    Iq3Xxs,
    Iq3S,
    /// As [`Format::Iq3Xxs`], but each point of the table has eight values.
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    /// 256 values: an f16 factor and ternary codes (−1, 0 or 1), at most five per byte.
    Tq1_0,
    /// As [`Format::Tq1_0`], with four codes per byte.
    Tq2_0,
    /// A group of MLX's affine quantization: an f32 scale, an f32 bias and unsigned codes. Files store these as three tensors; they are
    /// joined into blocks only in memory.
    Affine {
        bits: Bits,
        group: Group,
    },
}

/// The storage format that a written model file has for the matrices outside the experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DenseFormat {
    #[default]
    Q8_0,
    F16,
    BF16,
    F32,
}

impl DenseFormat {
    pub const ALL: [DenseFormat; 4] = [DenseFormat::Q8_0, DenseFormat::F16, DenseFormat::BF16, DenseFormat::F32];

    pub const fn format(self) -> Format {
        match self {
            DenseFormat::Q8_0 => Format::Q8_0,
            DenseFormat::F16 => Format::F16,
            DenseFormat::BF16 => Format::BF16,
            DenseFormat::F32 => Format::F32,
        }
    }
}

/// Bits of an affine code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bits {
    Four = 4,
    Eight = 8,
}

/// Number of values that share an affine scale and bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    Of32 = 32,
    Of64 = 64,
}

/// The largest block size in bytes.
pub(crate) const MAX_BLOCK_BYTES: usize = Format::Q6_K.block_bytes();

impl Format {
    /// The formats that are read from GGUF files.
    pub const GGUF: [Format; 23] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Mxfp4,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Iq4Nl,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::Q2_K,
        Format::Q3_K,
        Format::Iq4Xs,
        Format::Iq3Xxs,
        Format::Iq3S,
        Format::Iq2Xxs,
        Format::Iq2Xs,
        Format::Iq2S,
        Format::Tq1_0,
        Format::Tq2_0,
    ];

    /// The formats that [`Format::encode`] supports. Every engine multiplies matrices in these formats without converting them first.
    pub const WRITTEN: [Format; 5] = [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Mxfp4];

    /// The same format as a [`Storage`], the type that kernels use; `None` for formats outside [`Format::WRITTEN`].
    pub const fn storage(self) -> Option<Storage> {
        Some(match self {
            Format::F32 => Storage::F32,
            Format::F16 => Storage::F16,
            Format::BF16 => Storage::BF16,
            Format::Q8_0 => Storage::Q8_0,
            Format::Mxfp4 => Storage::Mxfp4,
            _ => return None,
        })
    }

    /// The format's conventional name, such as `Q8_0`.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::Q8_0 => "Q8_0",
            Format::Mxfp4 => "MXFP4",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Iq4Nl => "IQ4_NL",
            Format::Q4_K => "Q4_K",
            Format::Q5_K => "Q5_K",
            Format::Q6_K => "Q6_K",
            Format::Q2_K => "Q2_K",
            Format::Q3_K => "Q3_K",
            Format::Iq4Xs => "IQ4_XS",
            Format::Iq3Xxs => "IQ3_XXS",
            Format::Iq3S => "IQ3_S",
            Format::Iq2Xxs => "IQ2_XXS",
            Format::Iq2Xs => "IQ2_XS",
            Format::Iq2S => "IQ2_S",
            Format::Tq1_0 => "TQ1_0",
            Format::Tq2_0 => "TQ2_0",
            Format::Affine { bits: Bits::Four, group: Group::Of32 } => "MLX4/32",
            Format::Affine { bits: Bits::Four, group: Group::Of64 } => "MLX4/64",
            Format::Affine { bits: Bits::Eight, group: Group::Of32 } => "MLX8/32",
            Format::Affine { bits: Bits::Eight, group: Group::Of64 } => "MLX8/64",
        }
    }

    /// Type number in a GGUF file (`ggml_type`); `None` for a format that GGUF lacks.
    pub const fn ggml_type(self) -> Option<u32> {
        Some(match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::BF16 => 30,
            Format::Q8_0 => 8,
            Format::Mxfp4 => 39,
            Format::Q4_0 => 2,
            Format::Q4_1 => 3,
            Format::Q5_0 => 6,
            Format::Q5_1 => 7,
            Format::Iq4Nl => 20,
            Format::Q4_K => 12,
            Format::Q5_K => 13,
            Format::Q6_K => 14,
            Format::Q2_K => 10,
            Format::Q3_K => 11,
            Format::Iq4Xs => 23,
            Format::Iq3Xxs => 18,
            Format::Iq3S => 21,
            Format::Iq2Xxs => 16,
            Format::Iq2Xs => 17,
            Format::Iq2S => 22,
            Format::Tq1_0 => 34,
            Format::Tq2_0 => 35,
            Format::Affine { .. } => return None,
        })
    }

    pub fn from_ggml_type(number: u32) -> Option<Format> {
        Format::GGUF.into_iter().find(|f| f.ggml_type() == Some(number))
    }

    /// Values in one block; a row is a whole number of blocks.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Affine { group, .. } => group as usize,
            Format::Q8_0
            | Format::Mxfp4
            | Format::Q4_0
            | Format::Q4_1
            | Format::Q5_0
            | Format::Q5_1
            | Format::Iq4Nl => BLOCK,
            _ => SUPER_BLOCK,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q8_0 => Storage::Q8_0.block_bytes(),
            Format::Mxfp4 => Storage::Mxfp4.block_bytes(),
            Format::Q4_0 | Format::Iq4Nl => 2 + 16,
            Format::Q4_1 => 2 + 2 + 16,
            Format::Q5_0 => 2 + 4 + 16,
            Format::Q5_1 => 2 + 2 + 4 + 16,
            Format::Q4_K => 2 + 2 + 12 + 128,
            Format::Q5_K => 2 + 2 + 12 + 32 + 128,
            Format::Q6_K => 128 + 64 + 16 + 2,
            Format::Q2_K => 16 + 64 + 2 + 2,
            Format::Q3_K => 32 + 64 + 12 + 2,
            Format::Iq4Xs => 2 + 2 + 4 + 128,
            Format::Iq3Xxs => 2 + 64 + 32,
            Format::Iq3S => 2 + 64 + 8 + 32 + 4,
            Format::Iq2Xxs => 2 + 64,
            Format::Iq2Xs => 2 + 64 + 8,
            Format::Iq2S => 2 + 32 + 32 + 8 + 8,
            Format::Tq1_0 => 48 + 4 + 2,
            Format::Tq2_0 => 64 + 2,
            Format::Affine { bits, group } => 4 + 4 + bits as usize * group as usize / 8,
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
            Format::F32 => Storage::F32.decode(packed, values),
            Format::F16 => Storage::F16.decode(packed, values),
            Format::BF16 => Storage::BF16.decode(packed, values),
            Format::Q8_0 => Storage::Q8_0.decode(packed, values),
            Format::Mxfp4 => Storage::Mxfp4.decode(packed, values),
            Format::Q4_0 => blocks(packed, values, quants::q4_0),
            Format::Q4_1 => blocks(packed, values, quants::q4_1),
            Format::Q5_0 => blocks(packed, values, quants::q5_0),
            Format::Q5_1 => blocks(packed, values, quants::q5_1),
            Format::Iq4Nl => blocks(packed, values, quants::iq4_nl),
            Format::Q4_K => blocks(packed, values, quants::q4_k),
            Format::Q5_K => blocks(packed, values, quants::q5_k),
            Format::Q6_K => blocks(packed, values, quants::q6_k),
            Format::Q2_K => blocks(packed, values, low_bits::q2_k),
            Format::Q3_K => blocks(packed, values, low_bits::q3_k),
            Format::Iq4Xs => blocks(packed, values, low_bits::iq4_xs),
            Format::Iq3Xxs => blocks(packed, values, grid_quants::iq3_xxs),
            Format::Iq3S => blocks(packed, values, grid_quants::iq3_s),
            Format::Iq2Xxs => blocks(packed, values, grid_quants::iq2_xxs),
            Format::Iq2Xs => blocks(packed, values, grid_quants::iq2_xs),
            Format::Iq2S => blocks(packed, values, grid_quants::iq2_s),
            Format::Tq1_0 => blocks(packed, values, low_bits::tq1_0),
            Format::Tq2_0 => blocks(packed, values, low_bits::tq2_0),
            Format::Affine { bits, group } => {
                let packed = packed.chunks_exact(self.block_bytes());
                for (block, values) in packed.zip(values.chunks_exact_mut(group as usize)) {
                    quants::affine(block, bits as usize, values);
                }
            }
        }
    }

    /// Packs whole blocks. Rounds to nearest if the format is less precise than f32; in MXFP4, finite values above 6 times the scale are clamped.
    /// Values that [`Format::decode`] returned are encoded exactly, except blocks of Q8_0 whose largest code is not 127 in magnitude: these
    /// get another scale; and blocks of MXFP4 with infinities or NaN.
    ///
    /// # Panics
    /// If the format can only be decoded: all except F32, F16, BF16, Q8_0 and MXFP4.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self.storage() {
            Some(storage) => storage.encode(values),
            None => panic!("{} can be decoded but not encoded", self.name()),
        }
    }
}

/// Unpacks one block after another.
fn blocks<const BYTES: usize, const LEN: usize>(
    packed: &[u8],
    values: &mut [f32],
    unpack: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, values) in packed.as_chunks().0.iter().zip(values.as_chunks_mut().0) {
        unpack(block, values);
    }
}

/// Turns the 16 code bytes of one MXFP4 block from the Hugging Face and MLX order (element `e` in byte `e / 2`, low
/// nibble first) into GGUF's. The scale byte is the same in both.
pub fn repack_mxfp4_from_hf(hf: &[u8; 16]) -> [u8; 16] {
    let mut gguf = [0; 16];
    let (first, second) = hf.split_at(8);
    for ((pair, first), second) in gguf.as_chunks_mut::<2>().0.iter_mut().zip(first).zip(second) {
        *pair = [first & 15 | second << 4, first >> 4 | second & 0xf0];
    }
    gguf
}
