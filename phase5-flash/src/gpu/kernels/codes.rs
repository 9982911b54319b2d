//! Products of one block of packed weights with 32 inputs: the inner loop of every mat-vec kernel.
//!
//! MXFP4, ladder of the decoder (operations a weight, beside the multiplication):
//! 1. exponent and mantissa assembled, subnormals by `select`: 9.
//! 2. all eight magnitudes of a word are recoded at once, so that one shift and one mask make each a float between 2 and
//!    8; subtracting 2 leaves E2M1's value exactly: 5.5.
//! 3. where the device keeps subnormals, a code's bits in an f32's place are its value times 2⁻¹²⁶, for the inputs are
//!    2⁶⁴ times too large: 4.
//! 4. where a word can be taken for two 16-bit floats, a pair of codes is shifted and masked as one: 2, and a conversion.

use cubecl::prelude::*;
use half::f16;
use phase1_loading::Format;

use super::reduce::sum4;

use crate::gpu::device::Gpu;

/// How MXFP4 codes become floats: what a device's arithmetic and its shader language allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Codes {
    /// Recoded, so that subtracting 2 leaves the value: everywhere.
    Less2,
    /// As f32 subnormals: where arithmetic keeps them.
    Subnormals,
    /// As pairs of 16-bit floats: where the shader language can take a word for two of them.
    Halves,
}

/// A format, and how its codes become floats that are multiplied with inputs as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Packing {
    pub format: Format,
    codes: Codes,
}

impl Packing {
    pub fn new(gpu: &Gpu, format: Format) -> Packing {
        let codes = match gpu.codes {
            Codes::Halves => Codes::Halves,
            // Subnormals need larger inputs.
            Codes::Subnormals | Codes::Less2 => Codes::Less2,
        };
        Packing { format, codes }
    }

    /// Whether codes can be read as [pairs of 16-bit floats](e2m1_pair).
    pub const fn has_pairs(self) -> bool {
        matches!((self.format, self.codes), (Format::Mxfp4, Codes::Halves))
    }
}

/// Values `4 i` to `4 i + 3` of a block, to be multiplied with its [`packed_scale`].
#[cube]
pub(crate) fn packed_values(
    words: &Array<Vector<u32, Const<4>>>,
    #[comptime] first_word: u32,
    #[comptime] i: u32,
    #[comptime] packing: Packing,
) -> Vector<f32, Const<4>> {
    block_values(words, first_word, i, packing.format, packing.codes)
}

/// The scale that begins at a word's lowest bit, for [`packed_values`].
#[cube]
pub(crate) fn packed_scale(word: u32, #[comptime] packing: Packing) -> f32 {
    let scale = scale_value(word, packing.format);
    if comptime![packing.format == Format::Mxfp4] { scale * f32::new(comptime![factor(packing.codes)]) } else { scale }
}

/// Reads a block's codes; `stride` is the row's number of blocks.
#[cube]
pub(crate) fn load_codes(
    codes: &[Vector<u32, Const<4>>],
    row: u32,
    block: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    #[comptime] first: u32,
    #[comptime] vectors: u32,
) {
    #[unroll]
    for v in 0..vectors {
        words[comptime![(first + v) as usize]] = codes[((row * vectors + v) * blocks + block) as usize];
    }
}

/// Adds `scale · Σ code · x` over a block to `sums` from `first_sum` on: a sum for each of `inputs` inputs, which lie `apart` vectors
/// apart from vector `first_x` on. The codes become floats once.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn add_dots(
    words: &Array<Vector<u32, Const<4>>>,
    #[comptime] first_word: u32,
    x: &Sequence<Vector<f32, Const<4>>>,
    #[comptime] first_x: u32,
    #[comptime] apart: u32,
    scale: f32,
    sums: &mut Array<f32>,
    #[comptime] first_sum: u32,
    #[comptime] inputs: u32,
    #[comptime] format: Format,
    #[comptime] codes: Codes,
) {
    let mut products = Array::<Vector<f32, Const<4>>>::new(comptime![inputs as usize]);
    #[unroll]
    for q in 0..inputs {
        products[comptime![q as usize]] = Vector::<f32, Const<4>>::new(0.0f32);
    }
    #[unroll]
    for i in 0..8u32 {
        let values = block_values(words, first_word, i, format, codes);
        #[unroll]
        for q in 0..inputs {
            products[comptime![q as usize]] += values * x[comptime![(first_x + q * apart + i) as usize]];
        }
    }
    #[unroll]
    for q in 0..inputs {
        let mut sum = sum4(products[comptime![q as usize]]);
        if comptime![format == Format::Mxfp4] {
            sum *= f32::new(comptime![factor(codes)]);
        }
        sums[comptime![(first_sum + q) as usize]] += scale * sum;
    }
}

/// What products with values as [`block_values`] reads them lack.
const fn factor(codes: Codes) -> f32 {
    match codes {
        Codes::Less2 => 1.0,
        Codes::Subnormals => CODE_FACTOR / INPUT_FACTOR,
        Codes::Halves => (1 << 14) as f32,
    }
}

/// What inputs are multiplied by where codes are read as subnormals: products are then far from the least numbers.
pub(crate) const INPUT_FACTOR: f32 = (1u128 << 64) as f32;
/// 2¹²⁶: what a code read as a subnormal lacks.
const CODE_FACTOR: f32 = (1u128 << 126) as f32;

/// Values `4 i` to `4 i + 3` of a block, without its scale; MXFP4's are 2¹²⁶ times too small as subnormals, and 2¹⁴ times as
/// halves.
#[cube]
pub(crate) fn block_values(
    words: &Array<Vector<u32, Const<4>>>,
    #[comptime] first_word: u32,
    #[comptime] i: u32,
    #[comptime] format: Format,
    #[comptime] codes: Codes,
) -> Vector<f32, Const<4>> {
    match comptime![format] {
        Format::F32 => Vector::<f32, Const<4>>::reinterpret(words[comptime![(first_word + i) as usize]]),
        Format::F16 | Format::BF16 => {
            let word = words[comptime![(first_word + i / 2) as usize]];
            let a = word.extract(comptime![(i % 2 * 2) as usize]);
            let b = word.extract(comptime![(i % 2 * 2 + 1) as usize]);
            let mut values = Vector::<f32, Const<4>>::empty();
            values.insert(0usize, half_value(a & 0xffffu32, format));
            values.insert(1usize, half_value(a >> 16u32, format));
            values.insert(2usize, half_value(b & 0xffffu32, format));
            values.insert(3usize, half_value(b >> 16u32, format));
            values
        }
        Format::Q8_0 => {
            let word = words[comptime![(first_word + i / 4) as usize]];
            signed_bytes(word.extract(comptime![(i % 4) as usize]))
        }
        Format::Mxfp4 => {
            let word = words[comptime![first_word as usize]];
            let word = word.extract(comptime![(i / 2) as usize]);
            match comptime![codes] {
                Codes::Less2 => e2m1_values(word, e2m1_steps(word), comptime![i % 2 * 16]),
                Codes::Subnormals => e2m1_subnormals(word, comptime![i % 2 * 16]),
                Codes::Halves => e2m1_halves(word, comptime![i % 2]),
            }
        }
        _ => comptime!(unreachable!("other formats are uploaded as F32")),
    }
}

/// Reads the scales of block `block` in `rows` rows of one group, for [`scale_value`]: `row` is a multiple of `rows`.
#[cube]
pub(crate) fn load_scales(
    scales: &[u32],
    row: u32,
    block: u32,
    blocks: u32,
    found: &mut Array<u32>,
    #[comptime] first: u32,
    #[comptime] rows: u32,
    #[comptime] format: Format,
) {
    let group = (row >> 2u32) * blocks + block;
    match comptime![format] {
        Format::F32 | Format::F16 | Format::BF16 => {}
        Format::Q8_0 =>
        {
            #[unroll]
            for pair in 0..comptime![rows.div_ceil(2)] {
                let word = scales[(group * 2 + (((row + 2 * pair) >> 1u32) & 1)) as usize];
                #[unroll]
                for r in 0..comptime![rows.min(2)] {
                    found[comptime![(first + 2 * pair + r) as usize]] = word >> (((row + r) & 1) * 16);
                }
            }
        }
        Format::Mxfp4 => {
            let word = scales[group as usize];
            #[unroll]
            for r in 0..rows {
                let place = if comptime![rows == 4] { r.runtime() } else { (row + r) & 3 };
                found[comptime![(first + r) as usize]] = word >> (place * 8);
            }
        }
        _ => comptime!(unreachable!("other formats are uploaded as F32")),
    }
}

/// The scale that begins at a word's lowest bit.
#[cube]
pub(crate) fn scale_value(word: u32, #[comptime] format: Format) -> f32 {
    match comptime![format] {
        Format::F32 | Format::F16 | Format::BF16 => 1.0f32.runtime(),
        Format::Q8_0 => half_value(word & 0xffffu32, Format::F16),
        Format::Mxfp4 => f32::reinterpret((word & 255u32) << 23u32),
        _ => comptime!(unreachable!("other formats are uploaded as F32")),
    }
}

/// Eight E2M1 magnitudes as counts of steps: 0 to 6, and 8 for the largest. Steps of a float's top mantissa bits, counted from
/// 2.0, are then twice the magnitudes' distances: 2, 2.5, 3, 3.5, 4, 5, 6, 8.
#[cube]
fn e2m1_steps(codes: u32) -> u32 {
    let magnitudes = codes & 0x7777_7777u32;
    magnitudes + (((magnitudes + 0x1111_1111u32) & 0x8888_8888u32) >> 3u32)
}

/// Four values from bit `first` on.
#[cube]
fn e2m1_values(codes: u32, steps: u32, #[comptime] first: u32) -> Vector<f32, Const<4>> {
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

/// Four values from bit `first` on, times 2⁻¹²⁶.
#[cube]
fn e2m1_subnormals(codes: u32, #[comptime] first: u32) -> Vector<f32, Const<4>> {
    let mut values = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..4u32 {
        let at = comptime![first + 4 * i];
        let magnitude =
            if comptime![at < 22] { codes << comptime![22 - at.min(22)] } else { codes >> comptime![at.max(22) - 22] };
        let sign = (codes << comptime![28 - at]) & 0x8000_0000u32;
        values.insert(comptime![i as usize], f32::reinterpret((magnitude & 0x01c0_0000u32) | sign));
    }
    values
}

/// Four values of the word's low half, or of its high one, times 2⁻¹⁴.
#[cube]
fn e2m1_halves(codes: u32, #[comptime] high: u32) -> Vector<f32, Const<4>> {
    let mut values = Vector::<f32, Const<4>>::empty();
    #[unroll]
    for i in 0..4u32 {
        let pair = Vector::<f32, Const<2>>::cast_from(e2m1_pair(codes, i));
        values.insert(comptime![i as usize], pair.extract(comptime![high as usize]));
    }
    values
}

/// Values `i` and `i + 4` of a word, times 2⁻¹⁴: both are shifted and masked as one.
#[cube]
fn e2m1_pair(codes: u32, #[comptime] i: u32) -> Vector<f16, Const<2>> {
    let magnitude = if comptime![i < 3] { codes << comptime![9 - 4 * i.min(2)] } else { codes >> 3u32 };
    let sign = codes << comptime![12 - 4 * i];
    let pair = (magnitude & 0x0e00_0e00u32) | (sign & 0x8000_8000u32);
    Vector::<f16, Const<2>>::reinterpret(pair)
}

/// Values `i` and `i + 4` of a word with the scale that begins at `scale`'s lowest bit, rounded once.
#[cube]
pub(crate) fn scaled_pair(codes: u32, scale: u32, #[comptime] i: u32) -> Vector<f16, Const<2>> {
    let scale = f16::cast_from(scale_value(scale, Format::Mxfp4));
    e2m1_pair(codes, i) * Vector::<f16, Const<2>>::new(f16::new(16384.0)) * Vector::<f16, Const<2>>::new(scale)
}

/// Four signed bytes: with the sign bit flipped they are offsets in the last mantissa bits of 2²³.
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

/// A 16-bit float from its bits, subnormals too: GPUs may flush f32 subnormals, so those take another path.
#[cube]
pub(crate) fn half_value(bits: u32, #[comptime] format: Format) -> f32 {
    if comptime![format == Format::BF16] {
        f32::reinterpret(bits << 16u32)
    } else {
        let magnitude = bits & 0x7fffu32;
        let normal = f32::reinterpret((magnitude << 13u32) + comptime![112u32 << 23]);
        let subnormal = f32::cast_from(magnitude) * f32::reinterpret(comptime![103u32 << 23]);
        let value = select(magnitude < 0x400u32, subnormal, normal);
        select(bits > 0x7fffu32, -value, value)
    }
}

/// The nearest 16-bit float's bits, ties to even; values too large become the largest.
#[cube]
pub(crate) fn half_bits(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let sign = (bits >> 16u32) & 0x8000u32;
    let magnitude = min(bits & 0x7fff_ffffu32, comptime![(142u32 << 23) | 0x007f_e000]);
    // Next to 0.5 a float's steps are 2⁻²⁴, the steps of 16-bit subnormals.
    let small = u32::reinterpret(f32::reinterpret(magnitude) + 0.5f32) - comptime![126u32 << 23];
    let even = (magnitude >> 13u32) & 1u32;
    let normal = (magnitude - comptime![112u32 << 23] + 0xfffu32 + even) >> 13u32;
    sign | select(magnitude < comptime![113u32 << 23], small, normal)
}
