//! Products of packed weight rows with inputs.
//!
//! [`multiply_small_batch`] is for up to 4 inputs: it streams weights through registers as f32, and memory bandwidth limits its speed.
//! [`multiply_panel`] is for more: it decodes a tile of 32 rows by 288 columns into L1, transposed, and multiplies it by every group of
//! inputs, so that arithmetic limits its speed.
//!
//! Variants tried, in GB/s of MXFP4 and Q8_0 weights from memory, one thread of a busy Zen 5 machine, best of 200 (a plain read loop:
//! 36.5):
//! - one input, four rows side by side, no prefetch: 10.3 and 13.7. Four streams inside one page confuse the hardware's prefetcher.
//! - prefetching 4 KB past the first row: 23.7 and 17.8. For Q8_0 that address is often still inside the four rows.
//! - prefetching 4 KB past all four rows: 27.3 and 36.0.
//!
//! In GMAC/s of MXFP4: streamed, 2 inputs 56, 4 inputs 67; tiles of f32, 4 inputs 25, 64 inputs 98; tiles of integers, 42 and 157. So up to
//! 4 inputs are streamed, and the fast mode's tiles are integers ([`PanelFormat::I16`]).
//!
//! Tiles of integers, GB/s of MXFP4 and Q8_0, 10 inputs:
//! - scales converted row by row, all of the next columns prefetched at once: 5.3 and 7.4. These are more loads than the processor can have
//!   in flight.
//! - scales of 16 rows converted together, addresses of rows computed outside the loop, each row prefetched as it is decoded: 6.5 and 13.4.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use formats::{BLOCK, Storage};

use crate::isa::{Isa, Kernel};
use crate::panel::{Group, Panel, PanelFormat};
use crate::simd::{LANES, Simd, array};
use crate::weights::{BF16Block, Block, F16Block, F32Block, IntegerBlock, Mxfp4Block, PackedRows, Q8Block, with_block};

/// The most inputs that [`multiply_small_batch`] takes.
pub const SMALL_BATCH: usize = 4;
/// The most weight rows of a product, and the stride between the results of two inputs.
pub const TILE: usize = 32;

/// Prefetch distance of a matrix–vector product, in bytes past the rows that are being multiplied.
pub(crate) const PREFETCH_BYTES: usize = 4096;
/// Blocks of 32 columns in a tile.
const DEPTH: usize = 9;

/// `out[i · 32 + r] = rows[r] · inputs[i]` in f32, for at most 4 inputs and 32 rows. Results past the last row are left unchanged.
///
/// # Panics
/// If there is no input, there are more than 4 inputs or 32 rows, or lengths do not match.
pub fn multiply_small_batch(isa: Isa, rows: PackedRows<'_>, inputs: &[&[f32]], out: &mut [f32]) {
    assert!(
        rows.count <= TILE && !inputs.is_empty() && inputs.len() <= SMALL_BATCH,
        "at most 32 rows and 1 to 4 inputs"
    );
    assert!(inputs.iter().all(|input| input.len() == rows.columns), "inputs must be as wide as the matrix");
    assert!(out.len() >= inputs.len() * TILE, "the output is too short");
    // SAFETY: the lengths that the kernel asks for were just checked.
    unsafe { isa.run(SmallBatch { rows, inputs, out }) }
}

/// `out[i · 32 + r] = rows[r] · panel[i]`, for at most 32 rows. Results past the last row are unspecified.
///
/// # Panics
/// If there is no row or more than 32, lengths do not match, or the panel is of integers and the weights are not quantized.
pub fn multiply_panel(isa: Isa, rows: PackedRows<'_>, panel: &Panel, out: &mut [f32]) {
    assert!(rows.count > 0 && rows.count <= TILE, "there must be 1 to 32 rows");
    assert_eq!(panel.columns, rows.columns, "the panel must be as wide as the matrix");
    assert!(out.len() >= panel.inputs * TILE, "the output is too short");
    assert!(
        panel.format == PanelFormat::F32 || rows.storage.is_quantized(),
        "a panel of integers needs quantized weights"
    );
    // SAFETY: the lengths that the kernel asks for were just checked.
    unsafe { isa.run(Tile { rows, panel, out }) }
}

struct SmallBatch<'a> {
    rows: PackedRows<'a>,
    inputs: &'a [&'a [f32]],
    out: &'a mut [f32],
}

impl Kernel for SmallBatch<'_> {
    type Output = ();

    /// # Safety
    /// There must be 1 to 4 inputs as wide as the rows, at most 32 rows, and 32 results per input.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller guarantees the contract.
        unsafe { with_block!(self.rows.storage, B => self.of::<S, B>()) }
    }
}

impl SmallBatch<'_> {
    #[inline(always)]
    unsafe fn of<S: Simd, B: Block>(self) {
        // SAFETY: the caller guarantees the contract; each arm has its number of inputs.
        unsafe {
            match self.inputs.len() {
                1 => self.with::<S, B, 1>(),
                2 => self.with::<S, B, 2>(),
                3 => self.with::<S, B, 3>(),
                _ => self.with::<S, B, 4>(),
            }
        }
    }

    #[inline(always)]
    unsafe fn with<S: Simd, B: Block, const N: usize>(self) {
        let SmallBatch { rows, inputs, out } = self;
        let inputs: [*const f32; N] = array(|i| inputs[i].as_ptr());
        let mut row = 0;
        // SAFETY: rows up to `count` exist, and results of N inputs have room.
        unsafe {
            if S::PARALLEL_ROWS == 4 {
                while row + 4 <= rows.count {
                    stream::<S, B, 4, N>(rows, row, inputs, out.as_mut_ptr());
                    row += 4;
                }
            }
            while row + 2 <= rows.count {
                stream::<S, B, 2, N>(rows, row, inputs, out.as_mut_ptr());
                row += 2;
            }
            if row < rows.count {
                stream::<S, B, 1, N>(rows, row, inputs, out.as_mut_ptr());
            }
        }
    }
}

/// Multiplies R rows from `row` on by N inputs.
///
/// # Safety
/// The rows exist, the inputs have the same width, and `out` has room for 32 results per input.
#[inline(always)]
unsafe fn stream<S: Simd, B: Block, const R: usize, const N: usize>(
    rows: PackedRows<'_>,
    row: usize,
    inputs: [*const f32; N],
    out: *mut f32,
) {
    let weights: [*const u8; R] = array(|r| rows.row(row + r));
    // Only lines that are read later are worth prefetching, so prefetched addresses are past all rows that are read side by side.
    let ahead = weights[0].wrapping_add(R * rows.row_bytes() + PREFETCH_BYTES);
    // SAFETY: every block lies inside its row and every pair of vectors inside its input. Prefetching may go past the end:
    // it never faults, and its address is computed without claiming to lie inside the slice.
    unsafe {
        let mut sums = [[S::zero(); N]; R];
        for block in 0..rows.blocks() {
            for line in 0..(R * B::BYTES).div_ceil(64) {
                S::prefetch(ahead.wrapping_add(block * R * B::BYTES + line * 64));
            }
            let x: [_; N] = array(|i| {
                let p = inputs[i].add(block * BLOCK);
                (S::load(p), S::load(p.add(LANES)))
            });
            for r in 0..R {
                let p = weights[r].add(block * B::BYTES);
                let (low, high) = B::values::<S>(p);
                if B::SCALED {
                    let scale = B::scale::<S>(p);
                    for i in 0..N {
                        let part = S::fma(high, x[i].1, S::mul(low, x[i].0));
                        sums[r][i] = S::fma(part, scale, sums[r][i]);
                    }
                } else {
                    for i in 0..N {
                        sums[r][i] = S::fma(high, x[i].1, S::fma(low, x[i].0, sums[r][i]));
                    }
                }
            }
        }
        for r in 0..R {
            for i in 0..N {
                *out.add(i * TILE + row + r) = S::sum(sums[r][i]);
            }
        }
    }
}

struct Tile<'a> {
    rows: PackedRows<'a>,
    panel: &'a Panel,
    out: &'a mut [f32],
}

/// A decoded tile, transposed: a row of `words` has the values of all 32 weight rows in one column, or pairs of integers of two columns.
#[repr(align(64))]
struct Decoded {
    words: [[u32; TILE]; DEPTH * BLOCK],
    /// Integers only: the factor between integers and weights, for each block of each weight row.
    units: [[f32; TILE]; DEPTH],
}

impl Kernel for Tile<'_> {
    type Output = ();

    /// # Safety
    /// The panel must be as wide as the rows, of which there are 1 to 32, with 32 results per input; integers only for quantized rows.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller guarantees the contract.
        unsafe {
            match (self.panel.format, self.rows.storage) {
                (PanelFormat::F32, Storage::F32) => self.multiply::<S, Floats<F32Block>>(),
                (PanelFormat::F32, Storage::F16) => self.multiply::<S, Floats<F16Block>>(),
                (PanelFormat::F32, Storage::BF16) => self.multiply::<S, Floats<BF16Block>>(),
                (PanelFormat::F32, Storage::Q8_0) => self.multiply::<S, Floats<Q8Block>>(),
                (PanelFormat::F32, Storage::Mxfp4) => self.multiply::<S, Floats<Mxfp4Block>>(),
                (PanelFormat::I16, Storage::Mxfp4) => self.multiply::<S, Integers<Mxfp4Block>>(),
                (PanelFormat::I16, _) => self.multiply::<S, Integers<Q8Block>>(),
            }
        }
    }
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn multiply<S: Simd, A: Arithmetic>(self) {
        let Tile { rows, panel, out } = self;
        let out = out.as_mut_ptr();
        let mut tile = MaybeUninit::<Decoded>::uninit();
        let tile = tile.as_mut_ptr();
        for start in (0..rows.blocks()).step_by(DEPTH) {
            let blocks = DEPTH.min(rows.blocks() - start);
            // Distance from these columns to those that the next iteration decodes: of the same rows or, after the last columns, of the
            // next tile's.
            let last = start + blocks == rows.blocks();
            let next = if last { TILE * rows.row_bytes() - start * A::BYTES } else { DEPTH * A::BYTES };
            // SAFETY: blocks lie inside their rows; the tile has room for DEPTH of them, and what is read of it was written.
            // Prefetching never faults.
            unsafe {
                for half in 0..TILE / LANES {
                    // Rows after the last are replaced by the last row.
                    let rows: [*const u8; LANES] = array(|lane| rows.row((half * LANES + lane).min(rows.count - 1)));
                    for block in 0..blocks {
                        let at = array::<_, LANES>(|lane| rows[lane].add((start + block) * A::BYTES));
                        if A::BYTES > 32 || block % 2 == 0 {
                            for row in at {
                                for line in 0..A::BYTES.div_ceil(64) {
                                    S::prefetch(row.wrapping_add(next + line * 64));
                                }
                            }
                        }
                        let words = (&raw mut (*tile).words[block * A::WORDS][half * LANES]).cast();
                        A::decode::<S>(at, words, &raw mut (*tile).units[block][half * LANES]);
                    }
                }
                for Group { first, count } in panel.groups() {
                    let group = Inputs {
                        // A value is one word in F32, half a word in I16.
                        words: panel.words.as_ptr().add((first * panel.columns / BLOCK + start * count) * A::WORDS),
                        scales: panel.scales.as_ptr().wrapping_add(first * panel.columns / BLOCK + start * count),
                        out: out.add(first * TILE),
                        first: start == 0,
                    };
                    match count {
                        1 => A::multiply::<S, 1>(tile, blocks, group),
                        2 => A::multiply::<S, 2>(tile, blocks, group),
                        3 => A::multiply::<S, 3>(tile, blocks, group),
                        4 => A::multiply::<S, 4>(tile, blocks, group),
                        5 => A::multiply::<S, 5>(tile, blocks, group),
                        _ => A::multiply::<S, 6>(tile, blocks, group),
                    }
                }
            }
        }
    }
}

/// A group of N inputs, starting at a tile's first column.
struct Inputs {
    /// `[columns, N]` floats, or `[columns / 2, N]` pairs of integers.
    words: *const u32,
    /// Integers only: `[columns / 32, N]`.
    scales: *const f32,
    /// `[N, 32]`, overwritten if the tile begins at column 0.
    out: *mut f32,
    first: bool,
}

impl Inputs {
    /// Adds a tile's sums to the output. Sums start at zero in each tile, because for 2880 columns ten sums of 288 terms have a smaller
    /// rounding error than one sum of all terms.
    #[inline(always)]
    unsafe fn add<S: Simd, const N: usize>(self, sums: [[S::V; N]; 2]) {
        for (h, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                // SAFETY: there is room for 32 results of N inputs.
                unsafe {
                    let out = self.out.add(i * TILE + h * LANES);
                    S::store(out, if self.first { sum } else { S::add(S::load(out), sum) });
                }
            }
        }
    }
}

/// The number format that a tile is decoded to and multiplied in.
trait Arithmetic {
    /// Bytes of a packed block.
    const BYTES: usize;
    /// Words per row of a decoded block.
    const WORDS: usize;

    /// Decodes one block of each of 16 rows. The words of a row are 32 words apart; `units` has one value per row.
    ///
    /// # Safety
    /// The blocks can be read, and the results written.
    unsafe fn decode<S: Simd>(blocks: [*const u8; LANES], words: *mut u32, units: *mut f32);

    /// Adds the products of a tile of `blocks` blocks with N inputs.
    ///
    /// # Safety
    /// `blocks` blocks of the tile have been decoded, and there are N inputs of as many columns.
    unsafe fn multiply<S: Simd, const N: usize>(tile: *const Decoded, blocks: usize, inputs: Inputs);
}

struct Floats<B>(PhantomData<B>);
struct Integers<B>(PhantomData<B>);

/// Transposes 16 × 16 words into rows that are 32 words apart.
#[inline(always)]
unsafe fn store_columns<S: Simd>(mut rows: [S::I; LANES], to: *mut u32) {
    // SAFETY: the caller guarantees the contract.
    unsafe {
        S::transpose(&mut rows);
        for (column, values) in rows.into_iter().enumerate() {
            S::store_words(to.add(column * TILE), values);
        }
    }
}

impl<B: Block> Arithmetic for Floats<B> {
    const BYTES: usize = B::BYTES;
    const WORDS: usize = BLOCK;

    #[inline(always)]
    unsafe fn decode<S: Simd>(blocks: [*const u8; LANES], words: *mut u32, _: *mut f32) {
        // SAFETY: the caller guarantees the contract.
        unsafe {
            let (mut low, mut high) = ([S::zero_words(); LANES], [S::zero_words(); LANES]);
            for lane in 0..LANES {
                let (a, b) = B::values::<S>(blocks[lane]);
                let scale = B::scale::<S>(blocks[lane]);
                low[lane] = S::bits(if B::SCALED { S::mul(a, scale) } else { a });
                high[lane] = S::bits(if B::SCALED { S::mul(b, scale) } else { b });
            }
            store_columns::<S>(low, words);
            store_columns::<S>(high, words.add(LANES * TILE));
        }
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd, const N: usize>(tile: *const Decoded, blocks: usize, inputs: Inputs) {
        // SAFETY: the caller guarantees the contract.
        unsafe {
            let w: *const f32 = (&raw const (*tile).words).cast();
            let x: *const f32 = inputs.words.cast();
            let mut sums = [[S::zero(); N]; 2];
            for column in 0..blocks * BLOCK {
                let (top, bottom) = (S::load(w.add(column * TILE)), S::load(w.add(column * TILE + LANES)));
                for i in 0..N {
                    let x = S::splat(*x.add(column * N + i));
                    sums[0][i] = S::fma(top, x, sums[0][i]);
                    sums[1][i] = S::fma(bottom, x, sums[1][i]);
                }
            }
            inputs.add::<S, N>(sums);
        }
    }
}

impl<B: Block + IntegerBlock> Arithmetic for Integers<B> {
    const BYTES: usize = B::BYTES;
    const WORDS: usize = LANES;

    #[inline(always)]
    unsafe fn decode<S: Simd>(blocks: [*const u8; LANES], words: *mut u32, units: *mut f32) {
        // SAFETY: the caller guarantees the contract.
        unsafe {
            S::store(units, B::units::<S>(blocks));
            let mut pairs = [S::zero_words(); LANES];
            for lane in 0..LANES {
                pairs[lane] = B::pairs::<S>(blocks[lane]);
            }
            store_columns::<S>(pairs, words);
        }
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd, const N: usize>(tile: *const Decoded, blocks: usize, inputs: Inputs) {
        // SAFETY: the caller guarantees the contract.
        unsafe {
            let w: *const u32 = (&raw const (*tile).words).cast();
            let mut sums = [[S::zero(); N]; 2];
            for block in 0..blocks {
                // The sum of 32 products of at most 128 · 32767 fits in 32 bits.
                let mut whole = [[S::zero_words(); N]; 2];
                for pair in block * LANES..(block + 1) * LANES {
                    let (top, bottom) = (S::load_words(w.add(pair * TILE)), S::load_words(w.add(pair * TILE + LANES)));
                    for i in 0..N {
                        let x = S::splat_word(*inputs.words.add(pair * N + i));
                        whole[0][i] = S::dot_pairs(whole[0][i], top, x);
                        whole[1][i] = S::dot_pairs(whole[1][i], bottom, x);
                    }
                }
                for h in 0..2 {
                    let units = S::load((&raw const (*tile).units[block][h * LANES]).cast());
                    for i in 0..N {
                        let unit = S::mul(units, S::splat(*inputs.scales.add(block * N + i)));
                        sums[h][i] = S::fma(S::to_f32(whole[h][i]), unit, sums[h][i]);
                    }
                }
            }
            inputs.add::<S, N>(sums);
        }
    }
}
