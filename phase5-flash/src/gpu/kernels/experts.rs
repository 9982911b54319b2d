//! The chosen experts: gate and up projections with SwiGLU, and the weighted sum of the down projections.
//!
//! The choice of experts never leaves the device: every cube of the gate and up projections makes it from the router's logits, and
//! the first writes it down for the down projections.
//!
//! Ladder (H100, gpt-oss-20b's shapes, one row; bandwidth inside a whole step, by timestamps):
//! 1. each lane reads its block of the inputs itself: gate and up 759 GB/s with 2 × 4 rows a cube; down 390 GB/s with 4 rows, its
//!    slots one after another.
//! 2. inputs by way of shared memory: gate and up 568 GB/s. Taken back.
//! 3. down's slots side by side: 594 GB/s.
//! 4. codes as 16-bit floats, two at a time (SPIR-V): gate and up 915 GB/s, down 720.
//! 5. here: cubes walk down their rows, the next codes under way: gate and up 1,198 GB/s, down 902. With ten rows, four times as many
//!    steps: gate and up of four layers take 0.60 ms instead of 0.64, down 0.38 instead of 0.41.

use cubecl::prelude::*;

use super::project::{Cut, Split, add_products, copy, enlarged, load_inputs, load_rows, multiply_rows, zero};
use super::reduce::{share_sums, total};
use super::router::choose;
use crate::gpu::device::{Buffer, Gpu};
use crate::gpu::layout::Matrix;

/// SwiGLU's clamp, and the factor in its sigmoid.
const LIMIT: f32 = 7.0;
const ALPHA: f32 = 1.702;

/// A stack of experts' projections.
#[derive(Clone)]
pub(crate) struct Experts {
    pub weight: Matrix,
    /// `[experts, out]`
    pub bias: Buffer,
}

/// `out[slot] = swiglu(gate x, up x)` for every chosen expert of every row, `[inputs · chosen, width]`.
pub(crate) struct GateUp<'a> {
    pub gate: &'a Experts,
    pub up: &'a Experts,
    /// `[inputs, hidden]`
    pub x: &'a Buffer,
    /// The router's, `[inputs, experts]`
    pub logits: &'a Buffer,
    pub experts: usize,
    /// Written: `[inputs, chosen]`, the likeliest first.
    pub chosen: &'a Buffer,
    /// Written: softmax over the chosen ones' logits, `[inputs, chosen]`
    pub weights: &'a Buffer,
    pub chosen_per_row: usize,
    pub out: &'a Buffer,
    pub inputs: usize,
}

impl GateUp<'_> {
    pub fn launch(&self, gpu: &Gpu) {
        let (gate, up) = (&self.gate.weight, &self.up.weight);
        let cut =
            Cut::of(gpu, gpu.tuning.gate_up, gate.format, gate.rows * self.inputs * self.chosen_per_row, self.inputs);
        let split = Split::new(gpu, gate, cut);
        let (x, z) = split.cubes(gate.rows);
        // SAFETY: chosen experts are below their number, rows are bounded in the kernel.
        unsafe {
            gate_up::launch_unchecked(
                &gpu.client,
                CubeCount::Static((self.inputs * self.chosen_per_row) as u32, x, z),
                CubeDim::new_1d(split.lanes),
                self.x.arg4(),
                gate.parts[0].codes.arg4(),
                gate.parts[0].scales.arg(),
                self.gate.bias.arg(),
                up.parts[0].codes.arg4(),
                up.parts[0].scales.arg(),
                self.up.bias.arg(),
                self.logits.arg(),
                self.chosen.arg(),
                self.weights.arg(),
                self.out.arg(),
                gate.rows as u32,
                gate.stride() as u32,
                self.experts as u32,
                self.chosen_per_row as u32,
                split,
                Split { format: up.format, ..split },
            );
        }
    }
}

#[cube(launch_unchecked)]
fn gate_up(
    x: &[Vector<f32, Const<4>>],
    gate_codes: &[Vector<u32, Const<4>>],
    gate_scales: &[u32],
    gate_bias: &[f32],
    up_codes: &[Vector<u32, Const<4>>],
    up_scales: &[u32],
    up_bias: &[f32],
    logits: &[f32],
    chosen: &mut [u32],
    weights: &mut [f32],
    out: &mut [f32],
    rows: u32,
    stride: u32,
    #[comptime] experts: u32,
    #[comptime] chosen_per_row: u32,
    #[comptime] gate: Split,
    #[comptime] up: Split,
) {
    let cube_rows = comptime![gate.cut.cube_rows()];
    let at_once = comptime![gate.cut.rows];
    let mut shared = Shared::<[f32]>::new_slice(comptime![(2 * gate.planes * cube_rows) as usize]);
    let mut loaded = Sequence::<Vector<f32, Const<4>>>::new();
    load_inputs(x, CUBE_POS_X / chosen_per_row * gate.blocks, UNIT_POS, &mut loaded, gate);
    let inputs = enlarged(&loaded, gate);

    let first_cube = CUBE_POS_Y + CUBE_POS_Z == 0;
    let expert = choose(logits, CUBE_POS_X, first_cube, chosen, weights, experts, chosen_per_row);
    let first = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * cube_rows;
    let start = expert * stride;
    let last = start + rows - 1;
    let mut held = Array::<Vector<u32, Const<4>>>::new(comptime![(gate.vectors() + up.vectors()) as usize]);
    let mut scale_words = Array::<u32>::new(comptime![(2 * at_once) as usize]);
    load_rows(gate_codes, gate_scales, start + first, last, UNIT_POS, &mut held, &mut scale_words, 0u32, gate);
    load_rows(up_codes, up_scales, start + first, last, UNIT_POS, &mut held, &mut scale_words, at_once, up);
    let mut sums = Array::<f32>::new(comptime![(2 * at_once) as usize]);
    for step in 0..gate.cut.steps {
        let row = start + first + step * at_once;
        let mut next = Array::<Vector<u32, Const<4>>>::new(comptime![(gate.vectors() + up.vectors()) as usize]);
        let mut next_scales = Array::<u32>::new(comptime![(2 * at_once) as usize]);
        if comptime![gate.cut.steps > 1] {
            let row = row + at_once;
            load_rows(gate_codes, gate_scales, row, last, UNIT_POS, &mut next, &mut next_scales, 0u32, gate);
            load_rows(up_codes, up_scales, row, last, UNIT_POS, &mut next, &mut next_scales, at_once, up);
        }
        zero(&mut sums, comptime![2 * at_once]);
        add_products(&held, &scale_words, &inputs, &mut sums, 0u32, 0u32, 1.0f32, gate);
        add_products(&held, &scale_words, &inputs, &mut sums, at_once, 0u32, 1.0f32, up);
        #[unroll]
        for i in 1..comptime![gate.blocks_a_lane()] {
            let block = UNIT_POS + comptime![i * gate.lanes];
            load_rows(gate_codes, gate_scales, row, last, block, &mut held, &mut scale_words, 0u32, gate);
            load_rows(up_codes, up_scales, row, last, block, &mut held, &mut scale_words, at_once, up);
            add_products(&held, &scale_words, &inputs, &mut sums, 0u32, i, 1.0f32, gate);
            add_products(&held, &scale_words, &inputs, &mut sums, at_once, i, 1.0f32, up);
        }
        share_sums(&sums, &mut shared, 0u32, step * at_once, at_once, comptime![2 * cube_rows]);
        share_sums(&sums, &mut shared, at_once, cube_rows + step * at_once, at_once, comptime![2 * cube_rows]);
        if comptime![gate.cut.steps > 1] {
            copy(&next, &mut held, comptime![gate.vectors() + up.vectors()]);
            copy(&next_scales, &mut scale_words, comptime![2 * at_once]);
        }
    }
    sync_cube();
    let mut i = UNIT_POS;
    while i < cube_rows {
        let row = first + i;
        if row < rows {
            let bias = (expert * rows + row) as usize;
            let gate_value = total(&shared, i, comptime![2 * cube_rows]) + gate_bias[bias];
            let up_value = total(&shared, i + cube_rows, comptime![2 * cube_rows]) + up_bias[bias];
            out[(CUBE_POS_X * rows + row) as usize] = swiglu(gate_value, up_value);
        }
        i += CUBE_DIM;
    }
}

/// GPT-OSS's gated unit: both halves clamped, the gate only from above, and 1 added to `up`.
#[cube]
pub(crate) fn swiglu(gate: f32, up: f32) -> f32 {
    let gate = min(gate, f32::new(LIMIT));
    let up = max(min(up, f32::new(LIMIT)), f32::new(-LIMIT));
    (up + 1.0f32) * gate / (1.0f32 + (-gate * f32::new(ALPHA)).exp())
}

/// `out[i] += Σ weight · (down x + bias)` over row i's chosen experts, `[inputs, hidden]`.
pub(crate) struct Down<'a> {
    pub down: &'a Experts,
    /// `[inputs · chosen, width]`
    pub x: &'a Buffer,
    /// `[inputs, chosen]`, as `weights`
    pub chosen: &'a Buffer,
    pub weights: &'a Buffer,
    pub chosen_per_row: usize,
    pub out: &'a Buffer,
    pub inputs: usize,
}

impl Down<'_> {
    pub fn launch(&self, gpu: &Gpu) {
        let down = &self.down.weight;
        let cut =
            Cut::of(gpu, gpu.tuning.down, down.format, down.rows * self.inputs * self.chosen_per_row, self.inputs);
        let split = Split::new(gpu, down, cut);
        // The units share out the row's slots, and then each slot's blocks: nothing waits for the slot before.
        let most = (gpu.client.properties().hardware.max_units_per_cube / split.lanes).max(1);
        let slots = SlotSplit { chosen: self.chosen_per_row as u32, together: most.min(self.chosen_per_row as u32) };
        let units = split.lanes * slots.together;
        let split = Split { planes: units.div_ceil(gpu.least_plane), ..split };
        let (x, z) = split.cubes(down.rows);
        // SAFETY: as for gate and up.
        unsafe {
            down_kernel::launch_unchecked(
                &gpu.client,
                CubeCount::Static(self.inputs as u32, x, z),
                CubeDim::new_1d(units),
                self.x.arg4(),
                down.parts[0].codes.arg4(),
                down.parts[0].scales.arg(),
                self.down.bias.arg(),
                self.chosen.arg(),
                self.weights.arg(),
                self.out.arg(),
                down.rows as u32,
                down.stride() as u32,
                slots,
                split,
            );
        }
    }
}

/// How a cube's units share a row's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SlotSplit {
    /// Slots of a row.
    chosen: u32,
    /// Slots that a cube works on at once.
    together: u32,
}

#[cube(launch_unchecked)]
fn down_kernel(
    x: &[Vector<f32, Const<4>>],
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    bias: &[f32],
    chosen: &[u32],
    weights: &[f32],
    out: &mut [f32],
    rows: u32,
    stride: u32,
    #[comptime] slots: SlotSplit,
    #[comptime] split: Split,
) {
    let cube_rows = comptime![split.cut.cube_rows()];
    let rounds = comptime![slots.chosen.div_ceil(slots.together)];
    let mut shared = Shared::<[f32]>::new_slice(comptime![(rounds * split.planes * cube_rows) as usize]);
    let first = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * cube_rows;
    let first_slot = CUBE_POS_X * slots.chosen;
    let lane = UNIT_POS % split.lanes;
    #[unroll]
    for round in 0..rounds {
        let number = UNIT_POS / split.lanes + comptime![round * slots.together];
        // Past the last slot its products count for nothing.
        let slot = first_slot + min(number, slots.chosen - 1);
        let start = chosen[slot as usize] * stride;
        let last = start + rows - 1;
        let mut held = Array::<Vector<u32, Const<4>>>::new(comptime![split.vectors() as usize]);
        let mut scale_words = Array::<u32>::new(comptime![split.cut.rows as usize]);
        load_rows(codes, scales, start + first, last, lane, &mut held, &mut scale_words, 0u32, split);
        let mut loaded = Sequence::<Vector<f32, Const<4>>>::new();
        load_inputs(x, slot * split.blocks, lane, &mut loaded, split);
        let inputs = enlarged(&loaded, split);
        let weight = select(number < slots.chosen, weights[slot as usize], 0.0f32);
        let mut sums = Array::<f32>::new(comptime![split.cut.rows as usize]);
        for step in 0..split.cut.steps {
            let row = start + first + step * split.cut.rows;
            zero(&mut sums, split.cut.rows);
            multiply_rows(
                codes,
                scales,
                row,
                last,
                lane,
                &mut held,
                &mut scale_words,
                &inputs,
                &mut sums,
                weight,
                split,
            );
            let place = comptime![round * cube_rows] + step * split.cut.rows;
            share_sums(&sums, &mut shared, 0u32, place, split.cut.rows, comptime![rounds * cube_rows]);
        }
    }
    sync_cube();
    let mut i = UNIT_POS;
    while i < cube_rows {
        let row = first + i;
        if row < rows {
            let mut y = 0.0f32;
            #[unroll]
            for round in 0..rounds {
                y += total(&shared, i + comptime![round * cube_rows], comptime![rounds * cube_rows]);
            }
            #[unroll]
            for number in 0..slots.chosen {
                let slot = (first_slot + number) as usize;
                y += weights[slot] * bias[(chosen[slot] * rows + row) as usize];
            }
            let at = (CUBE_POS_X * rows + row) as usize;
            out[at] += y;
        }
        i += CUBE_DIM;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::router::tests::assert_choice;
    use crate::gpu::kernels::testing::{Random, assert_close, poisoned, tuned};
    use phase1_loading::{Format, HostTensor};

    struct HostExperts {
        /// `[experts, rows, columns]`
        weight: Vec<f32>,
        bias: Vec<f32>,
        device: Experts,
    }

    fn experts(gpu: &Gpu, random: &mut Random, format: Format, [experts, rows, columns]: [usize; 3]) -> HostExperts {
        let values = random.values(experts * rows * columns, 1.0);
        let tensor = HostTensor::packed_rows(format, vec![experts, rows, columns], format.encode(&values).into());
        let weight = Matrix::upload(gpu, "experts", &[&tensor]).expect("uploads");
        let bias = random.values(experts * rows, 1.0);
        let device = Experts { weight, bias: gpu.upload_f32(&bias) };
        HostExperts { weight: tensor.to_f32(), bias, device }
    }

    /// `W x + b` of one expert, and the size of its terms.
    fn apply(experts: &HostExperts, expert: usize, [rows, columns]: [usize; 2], x: &[f32]) -> Vec<(f64, f64)> {
        (0..rows)
            .map(|row| {
                let bias = f64::from(experts.bias[expert * rows + row]);
                let weights = &experts.weight[(expert * rows + row) * columns..][..columns];
                let terms = weights.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                terms.fold((bias, bias.abs()), |(sum, size), t| (sum + t, size + t.abs()))
            })
            .collect()
    }

    #[test]
    fn equal_f64_in_awkward_shapes() {
        let mut random = Random::fresh();
        for format in [Format::Mxfp4, Format::Q8_0, Format::F16] {
            for (inputs, stack, rows, columns, chosen) in
                [(1, 3, 5, 2880, 2), (3, 4, 33, 64, 3), (2, 8, 64, 32, 4), (1, 1, 1, 96, 1)]
            {
                let gpu = tuned(&mut random);
                let context =
                    format!("{format:?} {inputs} {stack} {rows} {columns} {chosen} {:?} {random:?}", gpu.tuning);
                let [gate, up, down] = [(); 3].map(|()| experts(&gpu, &mut random, format, [stack, rows, columns]));
                let logits = random.values(inputs * stack, 3.0);
                let (ids_buffer, weights_buffer) = (poisoned(&gpu, inputs * chosen), poisoned(&gpu, inputs * chosen));

                let x = random.values(inputs * columns, 0.3);
                let out = poisoned(&gpu, inputs * chosen * rows);
                GateUp {
                    gate: &gate.device,
                    up: &up.device,
                    x: &gpu.upload_f32(&x),
                    logits: &gpu.upload_f32(&logits),
                    experts: stack,
                    chosen: &ids_buffer,
                    weights: &weights_buffer,
                    chosen_per_row: chosen,
                    out: &out,
                    inputs,
                }
                .launch(&gpu);
                let found = gpu.read_f32(&out).expect("reads");
                let ids = gpu.read(&ids_buffer).expect("reads");
                let weights = gpu.read_f32(&weights_buffer).expect("reads");
                for (row, logits) in logits.chunks(stack).enumerate() {
                    let here = row * chosen..(row + 1) * chosen;
                    assert_choice(&ids[here.clone()], &weights[here], logits, &context);
                }
                for slot in 0..inputs * chosen {
                    let x = &x[slot / chosen * columns..][..columns];
                    let gates = apply(&gate, ids[slot] as usize, [rows, columns], x);
                    let ups = apply(&up, ids[slot] as usize, [rows, columns], x);
                    for (row, ((g, g_size), (u, u_size))) in gates.into_iter().zip(ups).enumerate() {
                        let (g, u) = (g.min(7.0), u.clamp(-7.0, 7.0));
                        let expected = (u + 1.0) * g / (1.0 + (-1.702 * g).exp());
                        assert_close(found[slot * rows + row], expected, 10.0 * (g_size + u_size + 1.0), &context);
                    }
                }

                let x = random.values(inputs * chosen * columns, 1.0);
                let before = random.values(inputs * rows, 1.0);
                let out = gpu.upload_f32(&before);
                Down {
                    down: &down.device,
                    x: &gpu.upload_f32(&x),
                    chosen: &ids_buffer,
                    weights: &weights_buffer,
                    chosen_per_row: chosen,
                    out: &out,
                    inputs,
                }
                .launch(&gpu);
                let found = gpu.read_f32(&out).expect("reads");
                for input in 0..inputs {
                    let mut expected: Vec<(f64, f64)> =
                        before[input * rows..][..rows].iter().map(|&b| (f64::from(b), 1.0)).collect();
                    for slot in input * chosen..(input + 1) * chosen {
                        let y = apply(&down, ids[slot] as usize, [rows, columns], &x[slot * columns..][..columns]);
                        for (total, (y, size)) in expected.iter_mut().zip(y) {
                            total.0 += f64::from(weights[slot]) * y;
                            total.1 += size;
                        }
                    }
                    for (row, (expected, size)) in expected.into_iter().enumerate() {
                        assert_close(found[input * rows + row], expected, size, &context);
                    }
                }
            }
        }
    }
}
