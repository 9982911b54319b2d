//! Computes the weighted sum of the products of each row's experts.

use cubecl::prelude::*;

use crate::device::{Buffer, Device};

const UNITS: u32 = 256;

/// `out[i] += Σ weight · product` over the experts that row i chose; `out` is `[inputs, hidden]`. A slot is a pair of a row and one of its
/// experts.
pub struct Combine<'a> {
    /// `[inputs · chosen, hidden]`
    pub products: &'a Buffer,
    /// `[inputs, chosen]`
    pub weights: &'a Buffer,
    pub out: &'a Buffer,
    pub inputs: usize,
    pub chosen_per_row: usize,
    pub hidden: usize,
}

impl Combine<'_> {
    /// # Panics
    /// If a buffer is too short, or `hidden` is not a multiple of 4.
    pub fn launch(&self, device: &Device) {
        let slots = self.inputs * self.chosen_per_row;
        assert!(self.hidden.is_multiple_of(4), "{} columns are not whole vectors of four", self.hidden);
        self.products.expect("the experts' products", slots * self.hidden);
        self.weights.expect("the experts' weights", slots);
        self.out.expect("the experts' sum", self.inputs * self.hidden);
        let vectors = self.hidden as u32 / 4;
        // SAFETY: lengths are checked; columns are bounded in the kernel.
        unsafe {
            combine::launch_unchecked(
                device.client(),
                CubeCount::Static(self.inputs as u32, vectors.div_ceil(UNITS), 1),
                CubeDim::new_1d(UNITS),
                self.products.arg4(),
                self.weights.arg(),
                self.out.arg4(),
                self.chosen_per_row as u32,
                vectors,
            );
        }
    }
}

#[cube(launch_unchecked)]
fn combine(
    products: &[Vector<f32, Const<4>>],
    weights: &[f32],
    out: &mut [Vector<f32, Const<4>>],
    chosen_per_row: u32,
    vectors: u32,
) {
    let column = CUBE_POS_Y * UNITS + UNIT_POS;
    if column < vectors {
        let mut sum = out[(CUBE_POS_X * vectors + column) as usize];
        for slot in CUBE_POS_X * chosen_per_row..(CUBE_POS_X + 1) * chosen_per_row {
            let weight = Vector::<f32, Const<4>>::new(weights[slot as usize]);
            sum += weight * products[(slot * vectors + column) as usize];
        }
        out[(CUBE_POS_X * vectors + column) as usize] = sum;
    }
}
