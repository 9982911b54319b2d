//! Which of the ways to decode MXFP4 a device allows: what it does to subnormals is left to its driver, and tried out here.

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use half::f16;

use super::codes::{Codes, INPUT_FACTOR};
use crate::gpu::GpuError;
use crate::gpu::device::Gpu;

/// An f32 subnormal's bits, and a normal number's next to it.
const SINGLES: [u32; 4] = [0x0040_0000, 0x8040_0000, 0x0000_0001, 0x00c0_0000];
/// Pairs of 16-bit floats, subnormals among them.
const PAIRS: [u32; 4] = [0x0200_8200, 0x0e00_8e00, 0x0000_8000, 0x0400_0200];

/// The quickest decoding of those that work.
///
/// # Errors
/// A device that does not run kernels.
pub(crate) fn quickest(gpu: &Gpu) -> Result<Codes, GpuError> {
    // WGSL's bitcast of a word to two 16-bit floats is read as one f32 by naga 30.
    let halves =
        gpu.client.name().contains("spirv") && gpu.client.properties().supports_type(ElemType::Float(FloatKind::F16));
    if halves && halves_are_right(gpu)? {
        return Ok(Codes::Halves);
    }
    Ok(if subnormals_are_kept(gpu)? { Codes::Subnormals } else { Codes::Less2 })
}

/// Multiplies subnormals by large inputs, as the mat-vec kernels do, and looks whether the products are right.
fn subnormals_are_kept(gpu: &Gpu) -> Result<bool, GpuError> {
    let inputs = [1.5 * INPUT_FACTOR, -3.0 * INPUT_FACTOR, INPUT_FACTOR, 0.25 * INPUT_FACTOR];
    let (bits, x, out) = (gpu.upload(SINGLES.to_vec()), gpu.upload_f32(&inputs), gpu.empty(4));
    // SAFETY: four units, four values in each buffer.
    unsafe {
        products::launch_unchecked(
            &gpu.client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(4),
            bits.arg(),
            x.arg(),
            out.arg(),
        );
    }
    let expected: Vec<f32> = SINGLES.iter().zip(inputs).map(|(&bits, x)| f32::from_bits(bits) * x).collect();
    Ok(gpu.read_f32(&out)? == expected)
}

/// Takes words for pairs of 16-bit floats, and looks whether their values are right.
fn halves_are_right(gpu: &Gpu) -> Result<bool, GpuError> {
    let (bits, out) = (gpu.upload(PAIRS.to_vec()), gpu.empty(8));
    // SAFETY: four units, a pair for each.
    unsafe {
        pairs::launch_unchecked(&gpu.client, CubeCount::Static(1, 1, 1), CubeDim::new_1d(4), bits.arg(), out.arg());
    }
    let halves = |word: &u32| [*word as u16, (word >> 16) as u16].map(|bits| f16::from_bits(bits).to_f32());
    let expected: Vec<f32> = PAIRS.iter().flat_map(halves).collect();
    Ok(gpu.read_f32(&out)? == expected)
}

#[cube(launch_unchecked)]
fn products(bits: &[u32], x: &[f32], out: &mut [f32]) {
    let i = UNIT_POS as usize;
    let mut sum = 0.0f32;
    sum += f32::reinterpret(bits[i]) * x[i];
    out[i] = sum;
}

#[cube(launch_unchecked)]
fn pairs(bits: &[u32], out: &mut [f32]) {
    let i = UNIT_POS as usize;
    let pair = Vector::<f32, Const<2>>::cast_from(Vector::<f16, Const<2>>::reinterpret(bits[i]));
    out[2 * i] = pair.extract(0usize);
    out[2 * i + 1] = pair.extract(1usize);
}
