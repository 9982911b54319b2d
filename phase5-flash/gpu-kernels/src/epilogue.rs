//! The last stage of a product: bias, addition to the previous output, SwiGLU, and stores of four values at once.

use cubecl::prelude::*;

/// SwiGLU's clamping limit, and the factor in its sigmoid.
const LIMIT: f32 = 7.0;
const ALPHA: f32 = 1.702;

/// GPT-OSS's gated activation: gate is clamped from above, up from both sides, and 1 is added to up.
#[cube]
pub(crate) fn swiglu(gate: f32, up: f32) -> f32 {
    let gate = min(gate, f32::new(LIMIT));
    let up = max(min(up, f32::new(LIMIT)), f32::new(-LIMIT));
    (up + 1.0f32) * gate / (1.0f32 + (-gate * f32::new(ALPHA)).exp())
}

/// The operations applied to a product's sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Epilogue {
    /// Adds a bias.
    pub biased: bool,
    /// Adds to the previous output.
    pub add: bool,
    /// Applies SwiGLU to the sums of two products.
    pub gated: bool,
}

/// Writes one sum to index `at`, after adding bias number `column` and the previous output, as `epilogue` asks. `gated` has no effect here.
#[cube]
pub(crate) fn store_one(
    out: &mut [f32],
    at: usize,
    sum: f32,
    bias: &[f32],
    column: u32,
    #[comptime] epilogue: Epilogue,
) {
    let mut y = sum;
    if comptime![epilogue.biased] {
        y += bias[column as usize];
    }
    if comptime![epilogue.add] {
        y += out[at];
    }
    out[at] = y;
}

/// Writes the sums of outputs `column` to `column + 3` of one row, except those from `columns` on. The row begins at `start`, its biases at
/// `first_bias`.
#[cube]
pub(crate) fn store_four(
    out: &mut [f32],
    start: u32,
    sums: Vector<f32, Const<4>>,
    bias: &[f32],
    first_bias: u32,
    column: u32,
    columns: u32,
    #[comptime] epilogue: Epilogue,
) {
    #[unroll]
    for i in 0..4u32 {
        let column = column + i;
        if column < columns {
            let sum = sums.extract(comptime![i as usize]);
            store_one(out, (start + column) as usize, sum, bias, first_bias + column, epilogue);
        }
    }
}

/// As [`store_four`], for the SwiGLU of the sums of gate and up.
#[cube]
pub(crate) fn store_four_gated(
    out: &mut [f32],
    start: u32,
    gate: Vector<f32, Const<4>>,
    up: Vector<f32, Const<4>>,
    gate_bias: &[f32],
    up_bias: &[f32],
    first_bias: u32,
    column: u32,
    columns: u32,
) {
    #[unroll]
    for i in 0..4u32 {
        let column = column + i;
        if column < columns {
            let bias = (first_bias + column) as usize;
            let gate = gate.extract(comptime![i as usize]) + gate_bias[bias];
            out[(start + column) as usize] = swiglu(gate, up.extract(comptime![i as usize]) + up_bias[bias]);
        }
    }
}
