//! Packing on a GPU, without 8- or 16-bit types, which a GPU may lack. Each unit (thread) handles 32 values of a row, fewer at the end of
//! an f16 row: up to 16 words of f16, or one [block](formats::cache_block) of Q8_0.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, ops::numeric::empty_device_dtype};
use cubecl::prelude::*;
use formats::CacheFormat;
use formats::cube::{block_scale, encode_block, f16_bits, f16_value};

use super::CachePacking;

/// Units per cube.
const UNITS: u32 = 64;
/// The most cubes along one axis that every GPU accepts.
const MAX_CUBES: u32 = 65_535;
/// Values per unit.
const PART: u32 = 32;

impl CachePacking for CubeBackend {
    fn pack_rows(x: CubeTensor, kind: CacheFormat) -> CubeTensor {
        let x = into_contiguous(x);
        let [heads, n, dim] = x.meta.shape().dims();
        let row_words = kind.row_bytes(dim) / 4;
        let words =
            empty_device_dtype(x.client.clone(), x.device.clone(), Shape::new([heads, n, row_words]), DType::U32);
        let (cubes, parts) = launch_size(heads * n, dim);
        // SAFETY: every index is below the length of its tensor: parts and rows are bounded in the kernel.
        unsafe {
            pack_kernel::launch_unchecked(
                &words.client,
                cubes,
                CubeDim::new_1d(UNITS),
                x.into_buffer_arg(),
                words.clone().into_buffer_arg(),
                parts,
                dim as u32,
                row_words as u32,
                kind,
            );
        }
        words
    }

    fn unpack_rows(words: CubeTensor, kind: CacheFormat, head_dim: usize) -> CubeTensor {
        let words = into_contiguous(words);
        let [heads, n, row_words] = words.meta.shape().dims();
        let x = empty_device_dtype(
            words.client.clone(),
            words.device.clone(),
            Shape::new([heads, n, head_dim]),
            DType::F32,
        );
        let (cubes, parts) = launch_size(heads * n, head_dim);
        // SAFETY: as in `pack_rows`.
        unsafe {
            unpack_kernel::launch_unchecked(
                &x.client,
                cubes,
                CubeDim::new_1d(UNITS),
                words.into_buffer_arg(),
                x.clone().into_buffer_arg(),
                parts,
                head_dim as u32,
                row_words as u32,
                kind,
            );
        }
        x
    }
}

/// Number of cubes for `rows` rows, and number of parts into which the rows are divided, one per unit.
fn launch_size(rows: usize, dim: usize) -> (CubeCount, u32) {
    let parts = rows as u32 * (dim as u32).div_ceil(PART);
    let cubes = parts.div_ceil(UNITS);
    (CubeCount::Static(cubes.min(MAX_CUBES), cubes.div_ceil(MAX_CUBES), 1), parts)
}

/// The part of one unit: the values `start` to `end` of a row.
#[derive(CubeType)]
struct Part {
    /// Index of the row's first value.
    values: u32,
    /// Index of the row's first word.
    packed: u32,
    start: u32,
    end: u32,
}

#[cube]
fn part(number: u32, dim: u32, row_words: u32) -> Part {
    let parts_per_row = dim.div_ceil(PART);
    let (row, start) = (number / parts_per_row, number % parts_per_row * PART);
    Part { values: row * dim, packed: row * row_words, start, end: min(start + PART, dim) }
}

#[cube(launch_unchecked)]
fn pack_kernel(x: &[f32], words: &mut [u32], parts: u32, dim: u32, row_words: u32, #[comptime] kind: CacheFormat) {
    let number = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if number < parts {
        let Part { values, packed, start, end } = part(number, dim, row_words);
        match comptime![kind] {
            CacheFormat::Q8_0 => {
                let mut block = Array::<f32>::new(32usize);
                for i in 0..32usize {
                    block[i] = x[(values + start) as usize + i];
                }
                let mut codes = Array::<u32>::new(8usize);
                encode_block(&block, &mut codes);
                for i in 0..8usize {
                    words[(packed + start / 4) as usize + i] = codes[i];
                }
            }
            _ => {
                let mut at = start;
                while at < end {
                    let low = f16_bits(x[(values + at) as usize]);
                    let high = f16_bits(x[(values + at + 1) as usize]);
                    words[(packed + at / 2) as usize] = low | (high << 16);
                    at += 2;
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
fn unpack_kernel(words: &[u32], x: &mut [f32], parts: u32, dim: u32, row_words: u32, #[comptime] kind: CacheFormat) {
    let number = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if number < parts {
        let Part { values, packed, start, end } = part(number, dim, row_words);
        match comptime![kind] {
            CacheFormat::Q8_0 => {
                let first = packed + start / 4;
                let scale = block_scale(words[first as usize], words[(first + 1) as usize]);
                let mut at = start;
                while at < end {
                    // Flipping the sign bit turns a code into an unsigned number that is 128 larger.
                    let word = words[(packed + at / 4) as usize] ^ 0x8080_8080;
                    for i in 0..4u32 {
                        let code = f32::cast_from((word >> (i * 8)) & 0xff);
                        x[(values + at + i) as usize] = scale * (code - 128.0);
                    }
                    at += 4;
                }
            }
            _ => {
                let mut at = start;
                while at < end {
                    let word = words[(packed + at / 2) as usize];
                    x[(values + at) as usize] = f16_value(word & 0xffff);
                    x[(values + at + 1) as usize] = f16_value(word >> 16);
                    at += 2;
                }
            }
        }
    }
}
