//! The packed product on a GPU. 32 units (threads) compute one output; each of them sums a 32nd of the row. A cube (workgroup) computes
//! `ROWS_PER_CUBE` outputs at a time, and continues with others if there are more outputs than the device can start cubes for.
//!
//! The kernel is kept simple instead of fast: it unpacks one value at a time and needs no optional GPU feature (subgroups, 16-bit types,
//! matrix units). Phase 5 has the fast kernels.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, ops::numeric::empty_device_dtype};
use cubecl::prelude::*;
use formats::cube::f16_value;
use phase1_loading::Format;

use super::{DeviceMatmul, PackedLayout};

/// Units that share one output.
const UNITS: u32 = 32;
/// Outputs that one cube computes at a time.
const ROWS_PER_CUBE: u32 = 4;
/// The most cubes along one axis that every GPU accepts.
const MAX_CUBES: u32 = 65_535;

impl DeviceMatmul for CubeBackend {
    fn device_matmul(x: CubeTensor, words: CubeTensor, matrix: CubeTensor, layout: PackedLayout) -> CubeTensor {
        let (x, matrix) = (into_contiguous(x), into_contiguous(matrix));
        let inputs = x.meta.shape()[0];
        let product =
            empty_device_dtype(x.client.clone(), x.device.clone(), Shape::new([inputs, layout.rows]), DType::F32);
        let (inputs, rows) = (inputs as u32, layout.rows as u32);
        let cubes = CubeCount::Static(rows.div_ceil(ROWS_PER_CUBE).min(MAX_CUBES), inputs.min(MAX_CUBES), 1);
        // SAFETY: every index is below the length of its tensor: the kernel checks rows, inputs and columns against their numbers, and the
        // caller's `matrix` holds indices of matrices of the stack.
        unsafe {
            packed_matmul_kernel::launch_unchecked(
                &product.client,
                cubes,
                CubeDim::new_2d(UNITS, ROWS_PER_CUBE),
                x.into_buffer_arg(),
                words.into_buffer_arg(),
                matrix.into_buffer_arg(),
                product.clone().into_buffer_arg(),
                inputs,
                rows,
                layout.columns as u32,
                layout.format,
            );
        }
        product
    }
}

#[cube(launch_unchecked)]
fn packed_matmul_kernel(
    x: &[f32],
    words: &[u32],
    matrix: &[i32],
    product: &mut [f32],
    inputs: u32,
    rows: u32,
    columns: u32,
    #[comptime] format: Format,
) {
    let mut sums = Shared::<[f32]>::new_slice(comptime![(UNITS * ROWS_PER_CUBE) as usize]);
    let unit = UNIT_POS_X;

    // Every unit of a cube runs the same number of iterations, so that all reach the barriers.
    let mut input = CUBE_POS_Y;
    while input < inputs {
        let first_row = matrix[input as usize] as u32 * rows;
        let mut first_of_cube = CUBE_POS_X * ROWS_PER_CUBE;
        while first_of_cube < rows {
            let row = first_of_cube + UNIT_POS_Y;
            let mut sum = 0.0f32;
            if row < rows {
                let mut column = unit;
                while column < columns {
                    let weight = unpack(words, (first_row + row) * columns + column, format);
                    sum += weight * x[(input * columns + column) as usize];
                    column += UNITS;
                }
            }
            sums[UNIT_POS as usize] = sum;
            sync_cube();
            if unit == 0 && row < rows {
                let mut total = 0.0f32;
                for other in 0..UNITS {
                    total += sums[(UNIT_POS + other) as usize];
                }
                product[(input * rows + row) as usize] = total;
            }
            sync_cube();
            first_of_cube += CUBE_COUNT_X * ROWS_PER_CUBE;
        }
        input += CUBE_COUNT_Y;
    }
}

/// Value number `index` of a packed stack. Each row consists of whole blocks, so blocks are numbered consecutively over all rows.
#[cube]
fn unpack(words: &[u32], index: u32, #[comptime] format: Format) -> f32 {
    match comptime![format] {
        Format::F32 => f32::reinterpret(words[index as usize]),
        Format::BF16 => f32::reinterpret(half_word(words, index * 2) << 16),
        Format::F16 => f16_value(half_word(words, index * 2)),
        Format::Q8_0 => {
            let block = index / 32 * 34;
            let scale = f16_value(half_word(words, block));
            let code = byte(words, block + 2 + index % 32);
            // Converts from two's complement arithmetically, because WGSL has no 8-bit integers.
            scale * (f32::cast_from(code) - select(code > 127, 256.0f32, 0.0f32))
        }
        Format::Mxfp4 => {
            let block = index / 32 * 17;
            let element = index % 32;
            let codes = byte(words, block + 1 + element % 16);
            let scale = f32::reinterpret(byte(words, block) << 23);
            e2m1_value((codes >> (element / 16 * 4)) & 15) * scale
        }
        _ => comptime!(unreachable!("a format that is uploaded as F32")),
    }
}

#[cube]
fn byte(words: &[u32], at: u32) -> u32 {
    (words[(at / 4) as usize] >> (at % 4 * 8)) & 0xff
}

/// The 16 bits at an even byte position.
#[cube]
fn half_word(words: &[u32], at: u32) -> u32 {
    (words[(at / 4) as usize] >> (at % 4 * 8)) & 0xffff
}

/// E2M1: sign, two exponent bits, one mantissa bit.
#[cube]
fn e2m1_value(code: u32) -> f32 {
    let exponent = (code >> 1) & 3;
    let mantissa = f32::cast_from(code & 1) * 0.5;
    let normal = (1.0 + mantissa) * f32::reinterpret((exponent + 126) << 23);
    let value = select(exponent == 0, mantissa, normal);
    select(code > 7, -value, value)
}
