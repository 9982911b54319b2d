//! Finds the few rows of a matrix that can have the largest product with an input, from a copy of the matrix in 4 bits.
//!
//! Greedy decoding needs the largest logit only. A coarse matrix holds every row with 4-bit codes, in about half the bytes of Q8_0 and a
//! quarter of those of BF16, and estimates all products from them. The error of an estimate is bounded as follows: let r be the rounding
//! error of a block of 32 weights, and x the same block of the input. If rounding errors are independent of the input, `r · x` has the
//! variance `|r|² |x|² / 32`. A row whose estimate is more than [`DEVIATIONS`] standard deviations below a product that is already known is
//! excluded; the other rows are multiplied exactly.
//!
//! A sum of terms of bounded size and independent signs exceeds 8 standard deviations less than once in 10¹³ products (Hoeffding's
//! inequality). The bound assumes independent rounding errors. It does not hold for adversarial weights; for those, multiply every row.
//!
//! Inputs are rounded too, to 8-bit codes with a scale per block; the 15 levels of the weights dominate the error.

use formats::BLOCK;

use crate::isa::{Isa, Kernel};
use crate::panel::{Group, group};
use crate::pool::Shared;
use crate::product::{PREFETCH_BYTES, TILE};
use crate::simd::{LANES, Simd, array};
use crate::weights::{Block, PackedRows, with_block};

/// The margin of a bound, in standard deviations of an estimate's error.
const DEVIATIONS: f32 = 8.0;
/// The largest code of a weight, and of an input.
const WEIGHT_LIMIT: f32 = 7.0;
const INPUT_LIMIT: f32 = 127.0;
/// Added to a weight's code to make it unsigned.
const OFFSET: i32 = 8;
/// Vectors that hold the codes of a block of 16 rows, and their size in bytes.
const VECTORS: usize = BLOCK / 8;
const CODE_BYTES: usize = VECTORS * 4 * LANES;
/// The largest squared rounding error of an input's value, relative to the square of its block's largest value.
const INPUT_LOSS: f32 = 0.25 / (INPUT_LIMIT * INPUT_LIMIT);

/// A matrix in 4 bits per value and a 16-bit scale per block of 32.
pub struct CoarseMatrix {
    rows: usize,
    blocks: usize,
    /// `[tile of 32 rows, half of a tile, block, vector, row]`: a word holds 8 codes of a row, the first 4 columns in the low nibbles.
    codes: Vec<u8>,
    /// bf16, `[tile, half, block, row]`.
    scales: Vec<u16>,
    /// `[tile, block]`, padded to whole vectors: the largest `|r|² / 32` of the tile's rows.
    spreads: Vec<f32>,
}

/// A bound for the products of a tile's rows with one input: they are assumed not to exceed `largest + margin`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bound {
    /// The largest estimate.
    pub largest: f32,
    /// The assumed largest error of an estimate, 8 standard deviations. NaN or infinite if a weight of the tile or a value of the input is.
    pub margin: f32,
}

/// Inputs rounded for estimates. The buffers are reused by the next step.
#[derive(Default)]
pub struct CoarseInputs {
    count: usize,
    groups: usize,
    /// A group of n inputs is `[columns / 4, n]`, 4 codes per word.
    words: Vec<u32>,
    /// A group of n inputs is `[columns / 32, n]`: the scale of a block, and the number that cancels what [`OFFSET`] adds to its sum.
    units: Vec<f32>,
    offsets: Vec<i32>,
    /// `[count, columns / 32]`, padded to whole vectors: `|x|²` of each block.
    squares: Vec<f32>,
}

/// A coarse matrix under construction, shared by several threads.
pub struct CoarseMatrixBuilder<'a> {
    blocks: usize,
    codes: Shared<'a, u8>,
    scales: Shared<'a, u16>,
    spreads: Shared<'a, f32>,
}

impl CoarseMatrix {
    /// An empty copy of a matrix `[rows, columns]`. Each tile must then be written with the builder that [`CoarseMatrix::make`] returns.
    ///
    /// # Panics
    /// If `columns` is not a positive multiple of 32.
    pub fn new(rows: usize, columns: usize) -> CoarseMatrix {
        assert!(columns > 0 && columns.is_multiple_of(BLOCK), "{columns} columns are not whole blocks");
        let (tiles, blocks) = (rows.div_ceil(TILE), columns / BLOCK);
        CoarseMatrix {
            rows,
            blocks,
            codes: vec![0; tiles * blocks * 2 * CODE_BYTES],
            scales: vec![0; tiles * blocks * TILE],
            spreads: vec![0.0; tiles * blocks.next_multiple_of(LANES)],
        }
    }

    /// Size in bytes of the coarse copy of a matrix `[rows, columns]`.
    pub fn bytes(rows: usize, columns: usize) -> usize {
        let (tiles, blocks) = (rows.div_ceil(TILE), columns / BLOCK);
        tiles * (blocks * (2 * CODE_BYTES + 2 * TILE) + 4 * blocks.next_multiple_of(LANES))
    }

    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    pub fn make(&mut self) -> CoarseMatrixBuilder<'_> {
        CoarseMatrixBuilder {
            blocks: self.blocks,
            codes: Shared::new(&mut self.codes),
            scales: Shared::new(&mut self.scales),
            spreads: Shared::new(&mut self.spreads),
        }
    }

    /// Estimates the products of a tile's rows with the inputs: row r and input i into `estimates[i · 32 + r]`, and a bound for all rows
    /// into `bounds[i]`. Estimates past the last row are 0.
    ///
    /// # Panics
    /// If there is no such tile, or lengths do not match.
    pub fn estimate(&self, isa: Isa, tile: usize, inputs: &CoarseInputs, estimates: &mut [f32], bounds: &mut [Bound]) {
        assert!(tile < self.tiles(), "a tile of the matrix");
        assert_eq!(inputs.squares.len(), inputs.count * self.blocks.next_multiple_of(LANES), "as wide as the matrix");
        assert!(estimates.len() >= inputs.count * TILE && bounds.len() >= inputs.count, "room for the results");
        // SAFETY: the lengths that the kernel asks for were just checked.
        unsafe { isa.run(Estimate { coarse: self, tile, inputs, estimates, bounds }) }
    }
}

impl CoarseMatrixBuilder<'_> {
    /// Rounds the rows of a tile.
    ///
    /// # Safety
    /// No other thread writes this tile.
    ///
    /// # Panics
    /// If there is no such tile, or there are more than 32 rows, or their width is not the matrix's.
    pub unsafe fn tile(&self, isa: Isa, tile: usize, rows: PackedRows<'_>) {
        assert!(rows.count <= TILE && rows.blocks() == self.blocks, "a tile of the matrix");
        let padded = self.blocks.next_multiple_of(LANES);
        // SAFETY: a tile has its own parts of the buffers, and the caller promises that no other thread writes this tile.
        unsafe {
            let codes = self.codes.part(tile * self.blocks * 2 * CODE_BYTES, self.blocks * 2 * CODE_BYTES);
            let scales = self.scales.part(tile * self.blocks * TILE, self.blocks * TILE);
            let spreads = self.spreads.part(tile * padded, padded);
            isa.run(Coarsen { rows, codes, scales, spreads });
        }
    }
}

impl CoarseInputs {
    /// Rounds inputs `[inputs, columns]`.
    ///
    /// # Panics
    /// If `columns` is not a positive multiple of 32, or the length of `values` is not a multiple of it.
    pub fn round(&mut self, isa: Isa, values: &[f32], columns: usize) {
        assert!(columns > 0 && columns.is_multiple_of(BLOCK) && values.len().is_multiple_of(columns), "whole inputs");
        let (count, blocks) = (values.len() / columns, columns / BLOCK);
        let padded = blocks.next_multiple_of(LANES);
        self.count = count;
        self.groups = count.div_ceil(isa.group_size());
        self.words.resize(count * columns / 4, 0);
        self.units.resize(count * blocks, 0.0);
        self.offsets.resize(count * blocks, 0);
        self.squares.clear();
        self.squares.resize(count * padded, 0.0);
        for number in 0..self.groups {
            let Group { first, count } = group(self.count, self.groups, number);
            for place in 0..count {
                let input = &values[(first + place) * columns..][..columns];
                for (block, values) in input.as_chunks::<BLOCK>().0.iter().enumerate() {
                    let largest = values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                    // A block whose largest magnitude is too small for a reciprocal becomes zeros.
                    let inverse = if largest > 1e-30 { INPUT_LIMIT / largest } else { 0.0 };
                    let codes = values.map(|x| (x * inverse).round_ties_even() as i8);
                    let at = first * blocks + block * count + place;
                    self.units[at] = largest / INPUT_LIMIT;
                    self.offsets[at] = -OFFSET * codes.iter().map(|&code| i32::from(code)).sum::<i32>();
                    self.squares[(first + place) * padded + block] = values.iter().map(|x| x * x).sum();
                    for (quad, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                        let at = first * columns / 4 + (block * 2 * VECTORS + quad) * count + place;
                        self.words[at] = u32::from_le_bytes(codes.map(|code| code as u8));
                    }
                }
            }
        }
    }
}

struct Estimate<'a> {
    coarse: &'a CoarseMatrix,
    tile: usize,
    inputs: &'a CoarseInputs,
    estimates: &'a mut [f32],
    bounds: &'a mut [Bound],
}

impl Kernel for Estimate<'_> {
    type Output = ();

    /// # Safety
    /// The tile exists, the inputs are as wide as the matrix, and there are 32 estimates and a bound for each input.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Estimate { coarse: &CoarseMatrix { blocks, ref codes, ref scales, ref spreads, .. }, tile, inputs, .. } =
            self;
        let padded = blocks.next_multiple_of(LANES);
        // SAFETY: the tile's codes, scales and spreads exist, and so does what is read and written for each input.
        unsafe {
            for half in 0..TILE / LANES {
                let rows = Rows {
                    codes: codes.as_ptr().add((2 * tile + half) * blocks * CODE_BYTES),
                    scales: scales.as_ptr().add((2 * tile + half) * blocks * LANES),
                    blocks,
                };
                for number in 0..inputs.groups {
                    let Group { first, count } = group(inputs.count, inputs.groups, number);
                    let group = Coarse {
                        words: inputs.words.as_ptr().add(first * blocks * 2 * VECTORS),
                        units: inputs.units.as_ptr().add(first * blocks),
                        offsets: inputs.offsets.as_ptr().add(first * blocks).cast(),
                        out: self.estimates.as_mut_ptr().add(first * TILE + half * LANES),
                    };
                    match count {
                        1 => estimate::<S, 1>(rows, group),
                        2 => estimate::<S, 2>(rows, group),
                        3 => estimate::<S, 3>(rows, group),
                        4 => estimate::<S, 4>(rows, group),
                        5 => estimate::<S, 5>(rows, group),
                        _ => estimate::<S, 6>(rows, group),
                    }
                }
            }
            let squares = inputs.squares.chunks_exact(padded);
            for (i, (bound, squares)) in self.bounds.iter_mut().zip(squares).enumerate() {
                let mut variance = S::zero();
                for at in (0..padded).step_by(LANES) {
                    let spread = S::load(spreads.as_ptr().add(tile * padded + at));
                    variance = S::fma(spread, S::load(squares.as_ptr().add(at)), variance);
                }
                let estimates = self.estimates.as_ptr().add(i * TILE);
                let largest = S::max(S::load(estimates), S::load(estimates.add(LANES)));
                *bound = Bound { largest: S::maximum(largest), margin: DEVIATIONS * S::sum(variance).sqrt() };
            }
        }
    }
}

/// 16 rows of a coarse matrix.
#[derive(Clone, Copy)]
struct Rows {
    codes: *const u8,
    scales: *const u16,
    blocks: usize,
}

/// A group of inputs.
#[derive(Clone, Copy)]
struct Coarse {
    words: *const u32,
    units: *const f32,
    offsets: *const u32,
    out: *mut f32,
}

/// # Safety
/// The rows and N inputs of the same width can be read; `out` has room for 16 results per input, and results of two inputs are 32 apart.
#[inline(always)]
unsafe fn estimate<S: Simd, const N: usize>(rows: Rows, inputs: Coarse) {
    // SAFETY: the caller guarantees the contract. Prefetching never faults.
    unsafe {
        let mut sums = [S::zero(); N];
        for block in 0..rows.blocks {
            let codes = rows.codes.add(block * CODE_BYTES);
            let scales: *const u8 = rows.scales.add(block * LANES).cast();
            for vector in 0..VECTORS {
                S::prefetch(codes.wrapping_add(PREFETCH_BYTES + vector * 64));
            }
            if block % 2 == 0 {
                S::prefetch(scales.wrapping_add(PREFETCH_BYTES / 8));
            }
            // The sum of 32 products of at most 15 · 127 fits in 32 bits.
            let mut whole: [S::I; N] = array(|i| S::splat_word(*inputs.offsets.add(block * N + i)));
            for vector in 0..VECTORS {
                let (low, high) = S::nibbles(S::load_words(codes.add(vector * 64).cast()));
                let words = inputs.words.add((block * VECTORS + vector) * 2 * N);
                for i in 0..N {
                    whole[i] = S::dot_bytes(whole[i], low, S::splat_word(*words.add(i)));
                    whole[i] = S::dot_bytes(whole[i], high, S::splat_word(*words.add(N + i)));
                }
            }
            let scales = S::load_bf16(scales);
            for i in 0..N {
                let unit = S::mul(scales, S::splat(*inputs.units.add(block * N + i)));
                sums[i] = S::fma(S::to_f32(whole[i]), unit, sums[i]);
            }
        }
        for i in 0..N {
            S::store(inputs.out.add(i * TILE), sums[i]);
        }
    }
}

struct Coarsen<'a> {
    rows: PackedRows<'a>,
    codes: &'a mut [u8],
    scales: &'a mut [u16],
    spreads: &'a mut [f32],
}

impl Kernel for Coarsen<'_> {
    type Output = ();

    /// # Safety
    /// There are at most 32 rows, and the buffers are those of a tile of the same width.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller guarantees the contract.
        unsafe { with_block!(self.rows.storage, B => self.of::<S, B>()) }
    }
}

impl Coarsen<'_> {
    #[inline(always)]
    unsafe fn of<S: Simd, B: Block>(self) {
        let Coarsen { rows, codes, scales, spreads } = self;
        let blocks = rows.blocks();
        for row in 0..rows.count {
            let (half, lane) = (row / LANES, row % LANES);
            let packed = rows.row(row);
            for block in 0..blocks {
                // SAFETY: the block lies inside its row, and 32 codes fit in 16 words.
                let (scale, words, spread) = unsafe { coarsen::<S, B>(packed.add(block * B::BYTES)) };
                let at = half * blocks + block;
                scales[at * LANES + lane] = scale;
                for (vector, word) in words.into_iter().enumerate() {
                    let at = at * CODE_BYTES + (vector * LANES + lane) * 4;
                    codes[at..at + 4].copy_from_slice(&word.to_le_bytes());
                }
                // A NaN is kept, so that no row of this tile is ever excluded.
                if spread > spreads[block] || spread.is_nan() {
                    spreads[block] = spread;
                }
            }
        }
    }
}

/// Rounds a block: its scale as bf16, its codes, and `|r|² / 32`, which includes the error from rounding the input.
///
/// # Safety
/// The block can be read.
#[inline(always)]
unsafe fn coarsen<S: Simd, B: Block>(block: *const u8) -> (u16, [u32; VECTORS], f32) {
    // SAFETY: the caller guarantees the contract.
    unsafe {
        let (mut low, mut high) = B::values::<S>(block);
        if B::SCALED {
            let scale = B::scale::<S>(block);
            (low, high) = (S::mul(low, scale), S::mul(high, scale));
        }
        let largest = S::max(S::max(low, high), S::sub(S::zero(), S::min(low, high)));
        // The scale is rounded up, so that no code exceeds the limit.
        let bits = (S::maximum(largest) / WEIGHT_LIMIT).to_bits().saturating_add(0xffff) & 0xffff_0000;
        let scale = f32::from_bits(bits);
        let inverse = S::splat(if scale > 1e-30 { 1.0 / scale } else { 0.0 });
        let (low_codes, high_codes) = (S::round(S::mul(low, inverse)), S::round(S::mul(high, inverse)));
        let back = S::splat(-scale);
        let (low_loss, high_loss) = (S::fma(low_codes, back, low), S::fma(high_codes, back, high));
        let loss = S::fma(low_loss, low_loss, S::mul(high_loss, high_loss));
        let size = S::fma(low, low, S::mul(high, high));
        let spread = S::sum(S::fma(size, S::splat(BLOCK as f32 * INPUT_LOSS), loss)) / BLOCK as f32;

        let mut pairs = [0; LANES];
        S::store_words(pairs.as_mut_ptr(), S::round_pairs(low_codes, high_codes));
        let words = array(|vector| {
            // 16-bit codes of 4 columns are reduced to 4 bits with the sign bit flipped, which adds 8; then two codes are packed per byte,
            // and the bytes are moved together.
            let four = |i: usize| {
                let codes = u64::from(pairs[4 * vector + i]) | u64::from(pairs[4 * vector + i + 1]) << 32;
                (codes & 0x000f_000f_000f_000f) ^ 0x0008_0008_0008_0008
            };
            let bytes = four(0) | four(2) << 4;
            let bytes = (bytes | bytes >> 8) & 0x0000_ffff_0000_ffff;
            (bytes | bytes >> 16) as u32
        });
        ((bits >> 16) as u16, words, spread)
    }
}
