//! RMS norm of whole rows, for products whose kernels do not compute the norm of their input themselves.

use cubecl::prelude::*;

use crate::device::{Buffer, Device};
use crate::reduce::cube_sum;
use crate::vec4::sum4;

const UNITS: u32 = 256;

/// `out[i] = x / √(mean(x²) + ε) · weight`, `[inputs, columns]`, where x is row `row_indices[i]` of `x` `[.., columns]`.
pub struct Norm<'a> {
    pub x: &'a Buffer,
    /// `[inputs]`
    pub row_indices: &'a Buffer,
    /// `[columns]`
    pub weight: &'a Buffer,
    pub eps: f32,
    pub out: &'a Buffer,
    pub inputs: usize,
    pub columns: usize,
}

impl Norm<'_> {
    /// # Panics
    /// If a buffer is too short, or `columns` is not a multiple of 4.
    pub fn launch(&self, device: &Device) {
        let Norm { inputs, columns, .. } = *self;
        assert!(columns.is_multiple_of(4), "{columns} columns are not whole vectors of four");
        self.row_indices.expect("the norm's row indices", inputs);
        self.weight.expect("the norm's weight", columns);
        self.out.expect("the normed rows", inputs * columns);
        self.x.expect("the norm's input", columns);
        let units = device.whole_planes(UNITS);
        // SAFETY: lengths are checked; the caller promises that `row_indices` names rows of `x`.
        unsafe {
            norm::launch_unchecked(
                device.client(),
                CubeCount::Static(inputs as u32, 1, 1),
                CubeDim::new_1d(units),
                self.x.arg4(),
                self.row_indices.arg(),
                self.weight.arg4(),
                self.out.arg4(),
                columns as u32 / 4,
                self.eps,
                device.most_planes(units),
            );
        }
    }
}

#[cube(launch_unchecked)]
fn norm(
    x: &[Vector<f32, Const<4>>],
    row_indices: &[u32],
    weight: &[Vector<f32, Const<4>>],
    out: &mut [Vector<f32, Const<4>>],
    vectors: u32,
    eps: f32,
    #[comptime] planes: u32,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![planes as usize]);
    let start = row_indices[CUBE_POS_X as usize] * vectors;
    let factor = Vector::<f32, Const<4>>::new(norm_factor(x, start, vectors, eps, &mut shared));
    let mut i = UNIT_POS;
    while i < vectors {
        out[(CUBE_POS_X * vectors + i) as usize] = x[(start + i) as usize] * factor * weight[i as usize];
        i += CUBE_DIM;
    }
}

/// The [factor](rms_factor) of the row that begins at vector `start`. All units of the cube must call it.
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
    rms_factor(cube_sum(sum4(squares), shared), vectors * 4, eps)
}

/// `1 / √(mean(x²) + ε)` from the sum of `count` squares.
#[cube]
pub(crate) fn rms_factor(squares: f32, count: u32, eps: f32) -> f32 {
    1.0f32 / (squares / f32::cast_from(count) + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, assert_close, device, poisoned};

    #[test]
    fn equals_f64() {
        let device = device();
        let mut random = Random::fresh();
        for (inputs, columns) in [(1, 32), (3, 96), (2, 2880), (1, 5000)] {
            let x = random.values(4 * columns, 3.0);
            let row_indices: Vec<u32> = (0..inputs).map(|_| random.below(4) as u32).collect();
            let weight = random.values(columns, 1.0);
            let out = poisoned(&device, inputs * columns);
            Norm {
                x: &device.upload_f32(&x),
                row_indices: &device.upload(row_indices.clone()),
                weight: &device.upload_f32(&weight),
                eps: 1e-5,
                out: &out,
                inputs,
                columns,
            }
            .launch(&device);
            let found = device.read_f32(&out).expect("reads");
            for (&row, found) in row_indices.iter().zip(found.chunks_exact(columns)) {
                let x = &x[row as usize * columns..][..columns];
                let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / columns as f64;
                for ((&x, &w), &found) in x.iter().zip(&weight).zip(found) {
                    let expected = f64::from(x) * f64::from(w) / (mean + 1e-5).sqrt();
                    assert_close(found, expected, expected.abs(), &format!("{inputs} {columns} {random:?}"));
                }
            }
        }
    }
}
