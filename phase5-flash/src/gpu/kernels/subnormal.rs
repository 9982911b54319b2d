//! Whether a device's arithmetic keeps f32 subnormals: Vulkan leaves it to the driver.

use cubecl::prelude::*;

use super::codes::INPUT_FACTOR;
use crate::gpu::GpuError;
use crate::gpu::device::Gpu;

/// A subnormal's bits, and a normal number's next to it.
const BITS: [u32; 4] = [0x0040_0000, 0x8040_0000, 0x0000_0001, 0x00c0_0000];

/// Multiplies subnormals by large inputs, as the mat-vec kernels do, and looks whether the products are right.
///
/// # Errors
/// A device that does not run kernels.
pub(crate) fn kept(gpu: &Gpu) -> Result<bool, GpuError> {
    let inputs = [1.5 * INPUT_FACTOR, -3.0 * INPUT_FACTOR, INPUT_FACTOR, 0.25 * INPUT_FACTOR];
    let (bits, x, out) = (gpu.upload(BITS.to_vec()), gpu.upload_f32(&inputs), gpu.empty(4));
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
    let expected: Vec<f32> = BITS.iter().zip(inputs).map(|(&bits, x)| f32::from_bits(bits) * x).collect();
    Ok(gpu.read_f32(&out)? == expected)
}

#[cube(launch_unchecked)]
fn products(bits: &[u32], x: &[f32], out: &mut [f32]) {
    let i = UNIT_POS as usize;
    let mut sum = 0.0f32;
    sum += f32::reinterpret(bits[i]) * x[i];
    out[i] = sum;
}
