//! Merges the partial results of attention over splits of the keys.

use cubecl::prelude::*;

use super::args::{Attention, MASKED, Shape};
use crate::device::Device;

/// Number of splits that are read at once.
const AT_ONCE: u32 = 8;

/// Merges the partial results, if there are several splits.
pub(super) fn launch(device: &Device, attention: &Attention<'_>) {
    if attention.splits == 1 {
        return;
    }
    let units = device.whole_planes(attention.cache.pool.row().head_dim() as u32);
    // SAFETY: lengths were checked; indices follow from the shape.
    unsafe {
        merge::launch_unchecked(
            device.client(),
            CubeCount::Static(attention.heads as u32, attention.inputs as u32, 1),
            CubeDim::new_1d(units),
            attention.partials.arg(),
            attention.sinks.arg(),
            attention.out.arg(),
            attention.splits as u32,
            attention.shape(units),
        );
    }
}

/// Merges the partial results of each head, adds the head's sink, and normalizes the result.
#[cube(launch_unchecked)]
fn merge(partials: &[f32], sinks: &[f32], out: &mut [f32], splits: u32, #[comptime] shape: Shape) {
    let dim = comptime![shape.dim()];
    let words = comptime![shape.partial_words()];
    let head = CUBE_POS_X;
    let row = CUBE_POS_Y;
    let start = (row * shape.heads + head) * (splits * words);
    let sink = sinks[head as usize];
    let column = min(UNIT_POS, dim - 1);
    let mut most = sink;
    let mut total = 1.0f32;
    let mut acc = 0.0f32;
    let mut done = 0u32;
    while done < splits {
        let mut maxima = Array::<f32>::new(comptime![AT_ONCE as usize]);
        let mut sums = Array::<f32>::new(comptime![AT_ONCE as usize]);
        let mut values = Array::<f32>::new(comptime![AT_ONCE as usize]);
        #[unroll]
        for i in 0..AT_ONCE {
            let split = done + i;
            let partial = start + min(split, splits - 1) * words;
            let largest = partials[(partial + dim) as usize];
            maxima[comptime![i as usize]] = select(split < splits, largest, f32::new(2.0 * MASKED));
            sums[comptime![i as usize]] = partials[(partial + dim + 1) as usize];
            values[comptime![i as usize]] = partials[(partial + column) as usize];
        }
        let before = most;
        #[unroll]
        for i in 0..AT_ONCE {
            most = max(most, maxima[comptime![i as usize]]);
        }
        let factor = (before - most).exp();
        total *= factor;
        acc *= factor;
        #[unroll]
        for i in 0..AT_ONCE {
            let factor = (maxima[comptime![i as usize]] - most).exp();
            total += factor * sums[comptime![i as usize]];
            acc += factor * values[comptime![i as usize]];
        }
        done += AT_ONCE;
    }
    if UNIT_POS < dim {
        out[((row * shape.heads + head) * dim + UNIT_POS) as usize] = acc / total;
    }
}
