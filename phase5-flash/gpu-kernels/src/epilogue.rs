//! What is done with a product's sums: bias, addition to what is there, SwiGLU, and stores of four values at once.

use cubecl::prelude::*;

/// SwiGLU's clamp, and the factor in its sigmoid.
const LIMIT: f32 = 7.0;
const ALPHA: f32 = 1.702;

/// GPT-OSS's gated unit: both halves clamped, the gate only from above, and 1 added to `up`.
#[cube]
pub(crate) fn swiglu(gate: f32, up: f32) -> f32 {
    let gate = min(gate, f32::new(LIMIT));
    let up = max(min(up, f32::new(LIMIT)), f32::new(-LIMIT));
    (up + 1.0f32) * gate / (1.0f32 + (-gate * f32::new(ALPHA)).exp())
}

/// What is written in a product's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Epilogue {
    /// A bias is added.
    pub biased: bool,
    /// What was there before is added.
    pub add: bool,
    /// The SwiGLU of two products is written.
    pub gated: bool,
}

/// Writes the sum of output `column` to place `at`.
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

/// Writes the sums of outputs `column` to `column + 3` of one row, of those that are outputs: below `columns`. The row begins at
/// `start`, its biases at `first_bias`.
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

/// The same for the sums of gate and up, of which the SwiGLU is written.
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
