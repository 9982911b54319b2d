//! Finds out by a trial which MXFP4 decoder a device supports.

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use half::f16;

use crate::device::Device;
use crate::e2m1::E2m1Decode;
use crate::error::Error;

/// Words that hold pairs of 16-bit floats, including subnormals.
const PAIRS: [u32; 4] = [0x0200_8200, 0x0e00_8e00, 0x0000_8000, 0x0400_0200];

/// The fastest decoder that works.
///
/// # Errors
/// The device cannot run kernels.
pub(crate) fn quickest_decode(device: &Device) -> Result<E2m1Decode, Error> {
    let client = device.client();
    // naga 30 reads WGSL's bitcast of a word to two 16-bit floats as one f32.
    let pairs = client.name().contains("spirv") && client.properties().supports_type(ElemType::Float(FloatKind::F16));
    Ok(if pairs && pairs_are_right(device)? { E2m1Decode::F16Pairs } else { E2m1Decode::Rebias })
}

/// Reinterprets words as pairs of 16-bit floats, and checks their values.
fn pairs_are_right(device: &Device) -> Result<bool, Error> {
    let (bits, out) = (device.upload(PAIRS.to_vec()), device.empty(8));
    // SAFETY: four units, with one pair each.
    unsafe {
        pairs::launch_unchecked(device.client(), CubeCount::Static(1, 1, 1), CubeDim::new_1d(4), bits.arg(), out.arg());
    }
    let halves = |word: &u32| [*word as u16, (word >> 16) as u16].map(|bits| f16::from_bits(bits).to_f32());
    let expected: Vec<f32> = PAIRS.iter().flat_map(halves).collect();
    Ok(device.read_f32(&out)? == expected)
}

#[cube(launch_unchecked)]
fn pairs(bits: &[u32], out: &mut [f32]) {
    let i = UNIT_POS as usize;
    let pair = Vector::<f32, Const<2>>::cast_from(Vector::<f16, Const<2>>::reinterpret(bits[i]));
    out[2 * i] = pair.extract(0usize);
    out[2 * i + 1] = pair.extract(1usize);
}
