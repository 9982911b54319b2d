//! How products begin and end: the rows that a tile reads, and what is done with a sum.

use cubecl::prelude::*;

use super::experts::swiglu;

/// Notes the inputs of a tile of `size` rows from `first` on; past the last of `inputs` it is the last again.
#[cube]
pub(super) fn take_rows(sources: &mut Shared<[u32]>, first: u32, inputs: u32, #[comptime] size: u32) {
    if UNIT_POS < size {
        sources[UNIT_POS as usize] = min(first + UNIT_POS, inputs - 1);
    }
    sync_cube();
}

/// Notes the inputs of a tile of `size` slots, of which `count` from place `first` of the order on are needed; past the last it is
/// the last again.
#[cube]
pub(super) fn take_slots(
    sources: &mut Shared<[u32]>,
    order: &[u32],
    first: u32,
    count: u32,
    slots_per_input: u32,
    #[comptime] size: u32,
) {
    if UNIT_POS < size {
        sources[UNIT_POS as usize] = order[(first + min(UNIT_POS, count - 1)) as usize] / slots_per_input;
    }
    sync_cube();
}

/// Writes the sum of output `column` to place `at`, with its bias and what was there before, if they are wanted.
#[cube]
pub(super) fn put(
    out: &mut [f32],
    at: usize,
    sum: f32,
    bias: &[f32],
    column: u32,
    #[comptime] biased: bool,
    #[comptime] add: bool,
) {
    let mut y = sum;
    if comptime![biased] {
        y += bias[column as usize];
    }
    if comptime![add] {
        y += out[at];
    }
    out[at] = y;
}

/// Writes the sums of outputs `column` to `column + 3` of one row, of those that are outputs: below `columns`. The row begins at
/// `start`, its biases at `first_bias`.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn put_four(
    out: &mut [f32],
    start: u32,
    sums: Vector<f32, Const<4>>,
    bias: &[f32],
    first_bias: u32,
    column: u32,
    columns: u32,
    #[comptime] biased: bool,
    #[comptime] add: bool,
) {
    #[unroll]
    for i in 0..4u32 {
        let column = column + i;
        if column < columns {
            let sum = sums.extract(comptime![i as usize]);
            put(out, (start + column) as usize, sum, bias, first_bias + column, biased, add);
        }
    }
}

/// The same for gate's and up's sums, of which the SwiGLU is written.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn put_gated_four(
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
