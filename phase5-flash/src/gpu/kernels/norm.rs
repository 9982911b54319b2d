//! RMS norm of whole rows, for products that do not norm their own input.

use cubecl::prelude::*;

use super::reduce::{cube_sum, sum4};
use crate::gpu::device::{Buffer, Gpu};

const UNITS: u32 = 256;

/// `out[i] = x / √(mean(x²) + ε) · w` for row `picks[i]` of `x` `[.., columns]`, `[inputs, columns]`.
pub(crate) fn norm(
    gpu: &Gpu,
    x: &Buffer,
    picks: &Buffer,
    weight: &Buffer,
    eps: f32,
    out: &Buffer,
    [inputs, columns]: [usize; 2],
) {
    let units = UNITS.next_multiple_of(gpu.plane);
    // SAFETY: every index is below `inputs · columns / 4`.
    unsafe {
        norm_kernel::launch_unchecked(
            &gpu.client,
            CubeCount::Static(inputs as u32, 1, 1),
            CubeDim::new_1d(units),
            x.arg4(),
            picks.arg(),
            weight.arg4(),
            out.arg4(),
            columns as u32 / 4,
            eps,
            units.div_ceil(gpu.least_plane),
        );
    }
}

#[cube(launch_unchecked)]
fn norm_kernel(
    x: &[Vector<f32, Const<4>>],
    picks: &[u32],
    weight: &[Vector<f32, Const<4>>],
    out: &mut [Vector<f32, Const<4>>],
    vectors: u32,
    eps: f32,
    #[comptime] planes: u32,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![planes as usize]);
    let start = picks[CUBE_POS_X as usize] * vectors;
    let factor = Vector::<f32, Const<4>>::new(norm_factor(x, start, vectors, eps, &mut shared));
    let mut i = UNIT_POS;
    while i < vectors {
        out[(CUBE_POS_X * vectors + i) as usize] = x[(start + i) as usize] * factor * weight[i as usize];
        i += CUBE_DIM;
    }
}

/// `1 / √(mean(x²) + ε)` of the row that begins at vector `start`. All units of the cube call it together.
#[cube]
pub(crate) fn norm_factor(
    x: &[Vector<f32, Const<4>>],
    start: u32,
    vectors: u32,
    eps: f32,
    shared: &mut Shared<[f32]>,
) -> f32 {
    let mut squares = Vector::<f32, Const<4>>::new(0.0f32);
    let mut i = UNIT_POS;
    while i < vectors {
        let value = x[(start + i) as usize];
        squares += value * value;
        i += CUBE_DIM;
    }
    let mean = cube_sum(sum4(squares), shared) / f32::cast_from(vectors * 4);
    1.0f32 / (mean + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::testing::{Random, assert_close, gpu, poisoned};

    #[test]
    fn equals_f64() {
        let gpu = gpu();
        let mut random = Random::fresh();
        for (inputs, columns) in [(1, 32), (3, 96), (2, 2880), (1, 5000)] {
            let x = random.values(4 * columns, 3.0);
            let picks: Vec<u32> = (0..inputs).map(|_| random.below(4) as u32).collect();
            let weight = random.values(columns, 1.0);
            let out = poisoned(&gpu, inputs * columns);
            let picks_buffer = gpu.upload(picks.clone());
            norm(&gpu, &gpu.upload_f32(&x), &picks_buffer, &gpu.upload_f32(&weight), 1e-5, &out, [inputs, columns]);
            let found = gpu.read_f32(&out).expect("reads");
            for (&pick, found) in picks.iter().zip(found.chunks_exact(columns)) {
                let x = &x[pick as usize * columns..][..columns];
                let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / columns as f64;
                for ((&x, &w), &found) in x.iter().zip(&weight).zip(found) {
                    let expected = f64::from(x) * f64::from(w) / (mean + 1e-5).sqrt();
                    assert_close(found, expected, expected.abs(), &format!("{inputs} {columns} {random:?}"));
                }
            }
        }
    }
}
