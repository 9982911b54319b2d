//! Reads blocks of packed weights and converts their values to floats.

use cubecl::prelude::*;
use formats::Storage;
use formats::cube::f16_value;
use half::f16;

use crate::e2m1::{E2m1Decode, f16_pair, four_values};
use crate::floats::{four_halves, signed_bytes, signed_pair};
use crate::matrix::{ROW_GROUP, vectors};

/// A storage format, and how its codes are converted to floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Packing {
    pub storage: Storage,
    pub decode: E2m1Decode,
}

impl Packing {
    /// Whether a word's codes can be read as [pairs of 16-bit floats](packed_f16_pair).
    pub const fn has_f16_pairs(self) -> bool {
        matches!((self.storage, self.decode), (Storage::Mxfp4, E2m1Decode::F16Pairs))
    }

    /// Whether a block's values can be multiplied as [pairs of 16-bit floats](packed_pair).
    pub const fn multiplies_pairs(self) -> bool {
        matches!((self.storage, self.decode), (Storage::Mxfp4 | Storage::Q8_0, E2m1Decode::F16Pairs))
    }

    /// The exponent of two, exclusive, that the inputs of [pairs](packed_pair) should be scaled to: then 16 products do not overflow, and
    /// as few as possible are subnormal.
    pub const fn input_exponent(self) -> u32 {
        match self.storage {
            Storage::Mxfp4 => 15,
            _ => 4,
        }
    }

    /// Vectors of four words per block of codes.
    pub const fn vectors(self) -> u32 {
        vectors(self.storage) as u32
    }

    /// Factor that undoes the scaling of the values that [`packed_values`] returns.
    pub const fn factor(self) -> f32 {
        match self.storage {
            Storage::Mxfp4 => self.decode.factor(),
            _ => 1.0,
        }
    }
}

/// A packed matrix, or two of the same shape.
#[derive(CubeType)]
pub(crate) struct PackedPair<'a> {
    pub codes: &'a [Vector<u32, Const<4>>],
    pub scales: &'a [u32],
    /// Codes of the second matrix; without one, of the first.
    pub second_codes: &'a [Vector<u32, Const<4>>],
    pub second_scales: &'a [u32],
    /// The last existing row.
    pub last_row: u32,
}

#[cube]
impl<'a> PackedPair<'a> {
    pub fn one(codes: &'a [Vector<u32, Const<4>>], scales: &'a [u32], last_row: u32) -> PackedPair<'a> {
        PackedPair::<'a> { codes, scales, second_codes: codes, second_scales: scales, last_row }
    }

    pub fn two(
        codes: &'a [Vector<u32, Const<4>>],
        scales: &'a [u32],
        second_codes: &'a [Vector<u32, Const<4>>],
        second_scales: &'a [u32],
        last_row: u32,
    ) -> PackedPair<'a> {
        PackedPair::<'a> { codes, scales, second_codes, second_scales, last_row }
    }
}

/// Reads the codes and scales of block `block` in `rows` neighbouring rows from `row` on, which is a multiple of `rows`. Codes go to
/// `words` and scales to `factors`, after those of `first` rows.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn load_blocks(
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    row: u32,
    block: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    factors: &mut Array<u32>,
    #[comptime] first: u32,
    #[comptime] rows: u32,
    #[comptime] storage: Storage,
) {
    let vectors = comptime![vectors(storage) as u32];
    #[unroll]
    for r in 0..rows {
        #[unroll]
        for v in 0..vectors {
            words[comptime![((first + r) * vectors + v) as usize]] =
                codes[(((row + r) * vectors + v) * blocks + block) as usize];
        }
    }
    load_scales(scales, row, block, blocks, factors, first, rows, storage);
}

/// Reads the codes and scales of columns `8 eight` to `8 eight + 7` of block `block` in the [`ROW_GROUP`] rows from `row` on, which is a
/// multiple of it. The codes of row r go to `words` from vector `2 r` on, as if they were a block's first eight columns.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn load_eights(
    codes: &[u32],
    scales: &[u32],
    row: u32,
    eight: u32,
    block: u32,
    blocks: u32,
    words: &mut Array<Vector<u32, Const<4>>>,
    factors: &mut Array<u32>,
    #[comptime] storage: Storage,
) {
    let (count, rows) = comptime![(vectors(storage) as u32, ROW_GROUP as u32)];
    // Index of the first word in the block; four words form a vector.
    let word = eight * count;
    #[unroll]
    for r in 0..rows {
        #[unroll]
        for v in 0..comptime![count.div_ceil(4)] {
            let vector = ((row + r) * count + word / 4 + v) * blocks + block;
            let mut four = Vector::<u32, Const<4>>::new(0u32);
            #[unroll]
            for i in 0..comptime![count.min(4)] {
                four.insert(comptime![i as usize], codes[(vector * 4 + word % 4 + i) as usize]);
            }
            words[comptime![(2 * r + v) as usize]] = four;
        }
    }
    load_scales(scales, row, block, blocks, factors, 0u32, rows, storage);
}

/// Reads the scales of block `block` in `rows` rows of one group, for [`packed_scale`]. `row` is a multiple of `rows`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn load_scales(
    scales: &[u32],
    row: u32,
    block: u32,
    blocks: u32,
    found: &mut Array<u32>,
    #[comptime] first: u32,
    #[comptime] rows: u32,
    #[comptime] storage: Storage,
) {
    let group = (row >> 2u32) * blocks + block;
    match comptime![storage] {
        Storage::F32 | Storage::F16 | Storage::BF16 => {}
        Storage::Q8_0 =>
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
        Storage::Mxfp4 => {
            let word = scales[group as usize];
            #[unroll]
            for r in 0..rows {
                let place = if comptime![rows == ROW_GROUP as u32] { r.runtime() } else { (row + r) & 3 };
                found[comptime![(first + r) as usize]] = word >> (place * 8);
            }
        }
    }
}

/// The scale that begins at the lowest bit of a word.
#[cube]
pub(crate) fn scale_value(word: u32, #[comptime] storage: Storage) -> f32 {
    match comptime![storage] {
        Storage::F32 | Storage::F16 | Storage::BF16 => 1.0f32.runtime(),
        Storage::Q8_0 => f16_value(word & 0xffffu32),
        Storage::Mxfp4 => f32::reinterpret((word & 255u32) << 23u32),
    }
}

/// The scale that begins at the lowest bit of a word, for values of [`packed_values`].
#[cube]
pub(crate) fn packed_scale(word: u32, #[comptime] packing: Packing) -> f32 {
    let scale = scale_value(word, packing.storage);
    if comptime![packing.storage == Storage::Mxfp4] { scale * f32::new(comptime![packing.factor()]) } else { scale }
}

/// Values `4 i` to `4 i + 3` of a block whose codes begin at vector `first_word`. They must be multiplied by its [`packed_scale`].
#[cube]
pub(crate) fn packed_values(
    words: &Array<Vector<u32, Const<4>>>,
    #[comptime] first_word: u32,
    #[comptime] i: u32,
    #[comptime] packing: Packing,
) -> Vector<f32, Const<4>> {
    match comptime![packing.storage] {
        Storage::F32 => Vector::<f32, Const<4>>::reinterpret(words[comptime![(first_word + i) as usize]]),
        Storage::F16 | Storage::BF16 => {
            let word = words[comptime![(first_word + i / 2) as usize]];
            let a = word.extract(comptime![(i % 2 * 2) as usize]);
            let b = word.extract(comptime![(i % 2 * 2 + 1) as usize]);
            four_halves(a, b, comptime![packing.storage == Storage::BF16])
        }
        Storage::Q8_0 => {
            let word = words[comptime![(first_word + i / 4) as usize]];
            signed_bytes(word.extract(comptime![(i % 4) as usize]))
        }
        Storage::Mxfp4 => {
            let word = words[comptime![first_word as usize]];
            four_values(word.extract(comptime![(i / 2) as usize]), comptime![i % 2], packing.decode)
        }
    }
}

/// The MXFP4 scale that begins at the lowest bit of a word, for [`packed_f16_pair`]. It must be at most 2, because the result, the
/// scale times 2¹⁴, is an f16.
#[cube]
pub(crate) fn packed_f16_scale(word: u32) -> f16 {
    f16::cast_from(scale_value(word, Storage::Mxfp4) * f32::new(comptime![E2m1Decode::F16Pairs.factor()]))
}

/// Values `i` and `i + 4` of the eight MXFP4 codes in a word, multiplied by their [`packed_f16_scale`] and rounded once.
#[cube]
pub(crate) fn packed_f16_pair(codes: u32, scale: f16, #[comptime] i: u32) -> Vector<f16, Const<2>> {
    f16_pair(codes, i) * Vector::<f16, Const<2>>::new(scale)
}

/// [Pairs](packed_pair) of values in a block.
pub(crate) const PAIRS: u32 = 16;

/// Pair `i` of a block's [`PAIRS`] pairs of values, whose codes begin at vector `first_word`, for formats that
/// [`Packing::multiplies_pairs`]. They must be multiplied by the block's [`packed_scale`]. The positions in the block are [`pair_places`].
#[cube]
pub(crate) fn packed_pair(
    words: &Array<Vector<u32, Const<4>>>,
    #[comptime] first_word: u32,
    #[comptime] i: u32,
    #[comptime] packing: Packing,
) -> Vector<f16, Const<2>> {
    match comptime![packing.storage] {
        Storage::Q8_0 => {
            let word = words[comptime![(first_word + i / 8) as usize]].extract(comptime![(i / 2 % 4) as usize]);
            signed_pair(word, comptime![i % 2])
        }
        _ => {
            let word = words[comptime![first_word as usize]].extract(comptime![(i / 4) as usize]);
            f16_pair(word, comptime![i % 4])
        }
    }
}

/// The positions in a block of the two values of [pair](packed_pair) `i`.
pub(crate) const fn pair_places(storage: Storage, i: u32) -> [u32; 2] {
    match storage {
        Storage::Q8_0 => [i / 2 * 4 + i % 2, i / 2 * 4 + i % 2 + 2],
        _ => [i / 4 * 8 + i % 4, i / 4 * 8 + i % 4 + 4],
    }
}
