//! The layout of cached keys and values in words.
//!
//! A page is `[kv_heads, 64, words]`. In f16 two neighbouring values share a word; in q8_0 a word has four codes of a
//! [block](formats::cache_block), which contains its own scale. Kernels access pools as vectors of four words, and read and write rows in
//! pieces: one vector, or two in q8_0, where a piece is a block.

use cubecl::prelude::*;
use formats::cube::{block_scale, encode_block, f16_bits};
use formats::{BLOCK, CacheFormat, cache_block};
use half::f16;

use crate::error::Error;
use crate::floats::{four_halves, signed_bytes};

/// Positions per page.
pub const PAGE: usize = 64;

/// The shape of the keys, or values, of one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvRow {
    format: CacheFormat,
    kv_heads: usize,
    head_dim: usize,
}

impl KvRow {
    /// # Errors
    /// `head_dim` is not a multiple of 4 in f32, of 8 in f16, or of 32 in q8_0.
    pub fn new(format: CacheFormat, kv_heads: usize, head_dim: usize) -> Result<KvRow, Error> {
        let row = KvRow { format, kv_heads, head_dim };
        let piece = row.piece_values();
        match head_dim.is_multiple_of(piece) {
            true => Ok(row),
            false => Err(Error::Shape(format!(
                "on a GPU a {format} cache needs heads of a multiple of {piece} values, but the model's have {head_dim}"
            ))),
        }
    }

    pub const fn format(&self) -> CacheFormat {
        self.format
    }

    pub const fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    pub const fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Words of one head at one position.
    pub const fn words(&self) -> usize {
        self.format.row_bytes(self.head_dim) / 4
    }

    /// Vectors of four words in one head's row.
    pub(crate) const fn vectors(&self) -> u32 {
        self.words() as u32 / 4
    }

    /// Vectors of four words in a piece. A q8_0 block is read as a whole, because its scale is spread over it.
    pub(crate) const fn piece_vectors(&self) -> u32 {
        match self.format {
            CacheFormat::F32 | CacheFormat::F16 => 1,
            CacheFormat::Q8_0 => 2,
        }
    }

    /// Number of values in a piece.
    pub(crate) const fn piece_values(&self) -> usize {
        match self.format {
            CacheFormat::F32 => 4,
            CacheFormat::F16 => 8,
            CacheFormat::Q8_0 => BLOCK,
        }
    }

    /// Number of pieces in one head's row.
    pub(crate) const fn pieces(&self) -> u32 {
        (self.head_dim / self.piece_values()) as u32
    }

    /// Words of a page.
    pub const fn page_words(&self) -> usize {
        self.kv_heads * PAGE * self.words()
    }

    /// Decodes the values of one head at one position.
    pub fn decode(&self, words: &[u32]) -> Vec<f32> {
        let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
        match self.format {
            CacheFormat::F32 => words.iter().map(|&word| f32::from_bits(word)).collect(),
            CacheFormat::F16 => words.iter().flat_map(|&word| [half(word), half(word >> 16)]).collect(),
            CacheFormat::Q8_0 => {
                let codes: Vec<i8> = words.iter().flat_map(|word| word.to_le_bytes().map(|code| code as i8)).collect();
                codes.as_chunks::<BLOCK>().0.iter().flat_map(cache_block::decode).collect()
            }
        }
    }
}

/// Values `4 i` to `4 i + 3` of the row that begins at vector `row` of a pool.
#[cube]
pub(crate) fn cached_vector(
    pool: &[Vector<u32, Const<4>>],
    row: u32,
    i: u32,
    #[comptime] shape: KvRow,
) -> Vector<f32, Const<4>> {
    match comptime![shape.format()] {
        CacheFormat::F32 => Vector::<f32, Const<4>>::reinterpret(pool[(row + i) as usize]),
        CacheFormat::F16 => {
            let words = pool[(row + i / 2) as usize];
            let is_second = i % 2 == 1;
            let a = select(is_second, words.extract(2usize), words.extract(0usize));
            let b = select(is_second, words.extract(3usize), words.extract(1usize));
            four_halves(a, b, false)
        }
        CacheFormat::Q8_0 => {
            let block = row + i / 8 * 2;
            let first = pool[block as usize];
            let words = pool[(block + i % 8 / 4) as usize];
            let is_odd = i % 2 == 1;
            let low = select(is_odd, words.extract(1usize), words.extract(0usize));
            let high = select(is_odd, words.extract(3usize), words.extract(2usize));
            let scale = block_scale(first.extract(0usize), first.extract(1usize));
            signed_bytes(select(i % 4 > 1, high, low)) * Vector::<f32, Const<4>>::new(scale)
        }
    }
}

/// Packs the values of a [piece](KvRow::piece_values) and stores it at vector `first` of a pool.
#[cube]
pub(crate) fn write_piece(pool: &mut [Vector<u32, Const<4>>], first: u32, new: &Array<f32>, #[comptime] shape: KvRow) {
    let mut words = Array::<u32>::new(comptime![(4 * shape.piece_vectors()) as usize]);
    match comptime![shape.format()] {
        CacheFormat::F32 =>
        {
            #[unroll]
            for i in 0..4usize {
                words[i] = u32::reinterpret(new[i]);
            }
        }
        CacheFormat::F16 =>
        {
            #[unroll]
            for i in 0..4u32 {
                let (low, high) = (new[comptime![(2 * i) as usize]], new[comptime![(2 * i + 1) as usize]]);
                words[comptime![i as usize]] = f16_bits(low) | (f16_bits(high) << 16u32);
            }
        }
        CacheFormat::Q8_0 => encode_block(new, &mut words),
    }
    #[unroll]
    for v in 0..comptime![shape.piece_vectors()] {
        let mut vector = Vector::<u32, Const<4>>::new(0u32);
        #[unroll]
        for i in 0..4u32 {
            vector.insert(comptime![i as usize], words[comptime![(4 * v + i) as usize]]);
        }
        pool[(first + v) as usize] = vector;
    }
}

/// Reads the piece at vector `first` of a pool into `found`, from index `at` on.
#[cube]
pub(crate) fn read_piece(
    pool: &[Vector<u32, Const<4>>],
    first: u32,
    found: &mut Array<Vector<u32, Const<4>>>,
    #[comptime] at: u32,
    #[comptime] shape: KvRow,
) {
    #[unroll]
    for v in 0..comptime![shape.piece_vectors()] {
        found[comptime![(at + v) as usize]] = pool[(first + v) as usize];
    }
}

/// Values `4 four` to `4 four + 3` of the piece that [`read_piece`] stored at index `at`. With `pairs`, words are reinterpreted as pairs of
/// 16-bit floats.
#[cube]
pub(crate) fn piece_vector<T: Float>(
    found: &Array<Vector<u32, Const<4>>>,
    #[comptime] at: u32,
    #[comptime] four: u32,
    #[comptime] shape: KvRow,
    #[comptime] pairs: bool,
) -> Vector<T, Const<4>> {
    match comptime![shape.format()] {
        CacheFormat::F32 => {
            Vector::<T, Const<4>>::cast_from(Vector::<f32, Const<4>>::reinterpret(found[comptime![at as usize]]))
        }
        CacheFormat::F16 => {
            let words = found[comptime![at as usize]];
            let a = words.extract(comptime![(2 * four) as usize]);
            let b = words.extract(comptime![(2 * four + 1) as usize]);
            two_words::<T>(a, b, pairs)
        }
        CacheFormat::Q8_0 => {
            let first = found[comptime![at as usize]];
            let scale = block_scale(first.extract(0usize), first.extract(1usize));
            let words = found[comptime![(at + four / 4) as usize]];
            let codes = signed_bytes(words.extract(comptime![(four % 4) as usize]));
            Vector::<T, Const<4>>::cast_from(codes * Vector::<f32, Const<4>>::new(scale))
        }
    }
}

/// The four 16-bit floats of two words, lower halves first.
#[cube]
fn two_words<T: Float>(a: u32, b: u32, #[comptime] pairs: bool) -> Vector<T, Const<4>> {
    if comptime![pairs] {
        let low = Vector::<T, Const<2>>::cast_from(Vector::<f16, Const<2>>::reinterpret(a));
        let high = Vector::<T, Const<2>>::cast_from(Vector::<f16, Const<2>>::reinterpret(b));
        let mut values = Vector::<T, Const<4>>::empty();
        values.insert(0usize, low.extract(0usize));
        values.insert(1usize, low.extract(1usize));
        values.insert(2usize, high.extract(0usize));
        values.insert(3usize, high.extract(1usize));
        values
    } else {
        Vector::<T, Const<4>>::cast_from(four_halves(a, b, false))
    }
}
