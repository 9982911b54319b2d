//! The chosen experts: gate and up projections with SwiGLU, and the weighted sum of the down projections. A slot is one of the experts
//! chosen for one row.
//!
//! The choice of experts stays on the device: every cube of the gate and up projections derives it from the router's logits, and the first
//! cube of each row stores it for the down projections.
//!
//! History (H100, gpt-oss-20b's shapes, one row; bandwidth inside a whole step, by timestamps):
//! 1. each lane reads its block of the inputs itself: gate and up 759 GB/s with 2 × 4 rows per cube; down 390 GB/s with 4 rows, its slots
//!    one after another.
//! 2. inputs through shared memory: gate and up 568 GB/s. Reverted.
//! 3. slots of down in parallel: 594 GB/s.
//! 4. codes as 16-bit floats, two at a time (SPIR-V): gate and up 915 GB/s, down 720.
//! 5. cubes iterate over their rows and load the next codes meanwhile: gate and up 1,198 GB/s, down 902. With ten rows, four times as many
//!    steps: gate and up of four layers take 0.60 ms instead of 0.64, down 0.38 instead of 0.41.
//! 6. current version: multiplied in pairs of 16-bit floats. On an H200, where version 5 reaches 1,258 and 976 GB/s: 1,387 and 1,093.

use cubecl::prelude::*;

use super::inputs::{load_inputs, prepare_inputs};
use super::plan::{MatvecChoice, MatvecPlan, RowTile};
use super::rows::{load_rows, multiply_cube_rows};
use crate::device::Buffer;
use crate::epilogue::swiglu;
use crate::gpu::Gpu;
use crate::moe::choose;
use crate::packed::PackedPair;
use crate::product::Experts;
use crate::reduce::total;

/// `out[slot] = swiglu(gate x + bias, up x + bias)` for every chosen expert of every row, `[inputs · chosen, width]`.
pub struct GateUp<'a> {
    pub gate: &'a Experts,
    /// The same shape and format as gate.
    pub up: &'a Experts,
    /// `[inputs, hidden]`
    pub x: &'a Buffer,
    /// The router's logits, `[inputs, experts]`
    pub logits: &'a Buffer,
    /// Output: `[inputs, chosen]`, the most likely expert first.
    pub chosen: &'a Buffer,
    /// Output: softmax over the logits of the chosen experts, `[inputs, chosen]`
    pub weights: &'a Buffer,
    pub chosen_per_row: usize,
    pub out: &'a Buffer,
    pub inputs: usize,
}

impl GateUp<'_> {
    /// # Panics
    /// If a buffer is too short, gate and up differ in shape or format, a stack of experts is in several parts, or `chosen_per_row` is not
    /// from 1 to the number of experts.
    pub fn launch(&self, gpu: &Gpu, choice: MatvecChoice) {
        let GateUp { gate: Experts { weight: gate, .. }, up: Experts { weight: up, .. }, .. } = *self;
        let (experts, slots) = (gate.stack(), self.inputs * self.chosen_per_row);
        self.gate.check();
        self.up.check();
        self.gate.assert_same_shape(self.up);
        assert!(
            (1..=experts).contains(&self.chosen_per_row),
            "cannot choose {} of {experts} experts",
            self.chosen_per_row
        );
        self.x.expect("the experts' input", self.inputs * gate.columns());
        self.logits.expect("the router's logits", self.inputs * experts);
        self.chosen.expect("the chosen experts", slots);
        self.weights.expect("the experts' weights", slots);
        self.out.expect("the activations", slots * gate.rows());
        let tile = RowTile::new(choice, gate.storage(), gate.rows() * slots, self.inputs);
        let plan = MatvecPlan { matrices: 2, ..MatvecPlan::new(gpu, gate, tile) };
        let (y, z) = plan.cubes(gate.rows());
        // SAFETY: lengths are checked; the kernel chooses only experts that exist, and bounds rows.
        unsafe {
            gate_up::launch_unchecked(
                gpu.device.client(),
                CubeCount::Static(slots as u32, y, z),
                CubeDim::new_1d(plan.lanes),
                self.x.arg4(),
                gate.whole().codes.arg4(),
                gate.whole().scales.arg(),
                self.gate.bias.arg(),
                up.whole().codes.arg4(),
                up.whole().scales.arg(),
                self.up.bias.arg(),
                self.logits.arg(),
                self.chosen.arg(),
                self.weights.arg(),
                self.out.arg(),
                gate.rows() as u32,
                gate.stride() as u32,
                experts as u32,
                self.chosen_per_row as u32,
                plan,
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
    #[comptime] plan: MatvecPlan,
) {
    let cube_rows = comptime![plan.tile.cube_rows()];
    let places = comptime![plan.cube_sums()];
    let mut shared = Shared::<[f32]>::new_slice(comptime![(plan.planes * places) as usize]);
    let mut floats = Sequence::<Vector<f32, Const<4>>>::new();
    load_inputs(x, CUBE_POS_X / chosen_per_row * plan.blocks, UNIT_POS, &mut floats, plan);
    let inputs = prepare_inputs(floats, plan);

    let first_cube = CUBE_POS_Y + CUBE_POS_Z == 0;
    let expert = choose(logits, CUBE_POS_X, first_cube, chosen, weights, experts, chosen_per_row);
    let first = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * cube_rows;
    let start = expert * stride;
    let matrices = PackedPair::two(gate_codes, gate_scales, up_codes, up_scales, start + rows - 1);
    let mut held = Array::<Vector<u32, Const<4>>>::new(comptime![plan.vectors() as usize]);
    let mut scale_words = Array::<u32>::new(comptime![plan.rows() as usize]);
    load_rows(&matrices, start + first, UNIT_POS, &mut held, &mut scale_words, plan);
    multiply_cube_rows(
        &matrices,
        start + first,
        UNIT_POS,
        &mut held,
        &mut scale_words,
        &inputs,
        1.0f32,
        &mut shared,
        0u32,
        places,
        plan,
    );
    sync_cube();
    let mut i = UNIT_POS;
    while i < cube_rows {
        let row = first + i;
        if row < rows {
            let bias = (expert * rows + row) as usize;
            let gate_value = total(&shared, i, places) + gate_bias[bias];
            let up_value = total(&shared, i + cube_rows, places) + up_bias[bias];
            out[(CUBE_POS_X * rows + row) as usize] = swiglu(gate_value, up_value);
        }
        i += CUBE_DIM;
    }
}

/// `out[i] += Σ weight · (down x + bias)` over row i's chosen experts, `[inputs, hidden]`.
pub struct Down<'a> {
    pub down: &'a Experts,
    /// `[inputs · chosen, width]`
    pub x: &'a Buffer,
    /// `[inputs, chosen]`, as is `weights`
    pub chosen: &'a Buffer,
    pub weights: &'a Buffer,
    pub chosen_per_row: usize,
    pub out: &'a Buffer,
    pub inputs: usize,
}

impl Down<'_> {
    /// # Panics
    /// If a buffer is too short, the stack of experts is in several parts, or `chosen_per_row` is 0.
    pub fn launch(&self, gpu: &Gpu, choice: MatvecChoice) {
        let (down, slots) = (&self.down.weight, self.inputs * self.chosen_per_row);
        self.down.check();
        assert!(self.chosen_per_row > 0, "no expert is chosen");
        self.x.expect("the activations", slots * down.columns());
        self.chosen.expect("the chosen experts", slots);
        self.weights.expect("the experts' weights", slots);
        self.out.expect("the experts' output", self.inputs * down.rows());
        let tile = RowTile::new(choice, down.storage(), down.rows() * slots, self.inputs);
        let plan = MatvecPlan::new(gpu, down, tile);
        // The units share the row's slots, and then each slot's blocks: a cube processes as many slots in parallel as it has units for, and
        // the others in further rounds.
        let most = (gpu.device.max_units() / plan.lanes).max(1);
        let slots = SlotSplit { chosen: self.chosen_per_row as u32, together: most.min(self.chosen_per_row as u32) };
        let units = plan.lanes * slots.together;
        let plan = MatvecPlan { planes: gpu.device.most_planes(units), ..plan };
        let (y, z) = plan.cubes(down.rows());
        // SAFETY: lengths are checked, and the kernel bounds rows; the kernels that choose experts write only numbers of existing ones.
        unsafe {
            down_kernel::launch_unchecked(
                gpu.device.client(),
                CubeCount::Static(self.inputs as u32, y, z),
                CubeDim::new_1d(units),
                self.x.arg4(),
                down.whole().codes.arg4(),
                down.whole().scales.arg(),
                self.down.bias.arg(),
                self.chosen.arg(),
                self.weights.arg(),
                self.out.arg(),
                down.rows() as u32,
                down.stride() as u32,
                slots,
                plan,
            );
        }
    }
}

/// How the units of a cube share the slots of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SlotSplit {
    /// Slots per row.
    chosen: u32,
    /// Slots that a cube processes in parallel.
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
    #[comptime] plan: MatvecPlan,
) {
    let cube_rows = comptime![plan.tile.cube_rows()];
    let rounds = comptime![slots.chosen.div_ceil(slots.together)];
    let places = comptime![rounds * cube_rows];
    let mut shared = Shared::<[f32]>::new_slice(comptime![(places * plan.planes) as usize]);
    let first = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) * cube_rows;
    let first_slot = CUBE_POS_X * slots.chosen;
    let lane = UNIT_POS % plan.lanes;
    #[unroll]
    for round in 0..rounds {
        let number = UNIT_POS / plan.lanes + comptime![round * slots.together];
        // Units past the last slot repeat it with a weight of 0.
        let slot = first_slot + min(number, slots.chosen - 1);
        let start = chosen[slot as usize] * stride;
        let matrix = PackedPair::one(codes, scales, start + rows - 1);
        let mut held = Array::<Vector<u32, Const<4>>>::new(comptime![plan.vectors() as usize]);
        let mut scale_words = Array::<u32>::new(comptime![plan.rows() as usize]);
        load_rows(&matrix, start + first, lane, &mut held, &mut scale_words, plan);
        let mut floats = Sequence::<Vector<f32, Const<4>>>::new();
        load_inputs(x, slot * plan.blocks, lane, &mut floats, plan);
        let inputs = prepare_inputs(floats, plan);
        let weight = select(number < slots.chosen, weights[slot as usize], 0.0f32);
        multiply_cube_rows(
            &matrix,
            start + first,
            lane,
            &mut held,
            &mut scale_words,
            &inputs,
            weight,
            &mut shared,
            comptime![round * cube_rows],
            places,
            plan,
        );
    }
    sync_cube();
    let mut i = UNIT_POS;
    while i < cube_rows {
        let row = first + i;
        if row < rows {
            let mut y = 0.0f32;
            #[unroll]
            for round in 0..rounds {
                y += total(&shared, i + comptime![round * cube_rows], places);
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
    use formats::Storage;

    use super::*;
    use crate::testing::{F16_PAIRS, F32, Random, assert_choice, assert_within, gpu, matrix, matvec_choice, poisoned};

    struct HostExperts {
        /// `[experts, rows, columns]`
        weight: Vec<f32>,
        bias: Vec<f32>,
        device: Experts,
    }

    fn experts(gpu: &Gpu, random: &mut Random, storage: Storage, shape: [usize; 3]) -> HostExperts {
        let [experts, rows, columns] = shape;
        let values = random.values(experts * rows * columns, 1.0);
        let (values, weight) = matrix(&gpu.device, storage, shape, &values);
        let bias = random.values(experts * rows, 1.0);
        let device = Experts { weight, bias: gpu.device.upload_f32(&bias) };
        HostExperts { weight: values, bias, device }
    }

    /// `W x + b` of one expert, with the sum of the magnitudes of its terms.
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
        compare_with_f64(&gpu().in_f32(), &[Storage::Mxfp4, Storage::Q8_0, Storage::F16], F32);
    }

    #[test]
    fn equal_f64_in_16_bits() {
        compare_with_f64(&gpu(), &[Storage::Mxfp4, Storage::Q8_0], F16_PAIRS);
    }

    /// Compares products of both kernels with f64; `limit` is the largest error relative to the terms' magnitudes.
    fn compare_with_f64(gpu: &Gpu, formats: &[Storage], limit: f64) {
        let device = &gpu.device;
        let mut random = Random::fresh();
        for &storage in formats {
            for (inputs, stack, rows, columns, chosen) in
                [(1, 3, 5, 2880, 2), (3, 4, 33, 64, 3), (2, 8, 64, 32, 4), (1, 1, 1, 96, 1)]
            {
                let choices = [(); 2].map(|()| matvec_choice(&mut random));
                let context = format!("{storage:?} {inputs} {stack} {rows} {columns} {chosen} {choices:?} {random:?}");
                let [gate, up, down] = [(); 3].map(|()| experts(gpu, &mut random, storage, [stack, rows, columns]));
                let logits = random.values(inputs * stack, 3.0);
                let (ids_buffer, weights_buffer) =
                    (poisoned(device, inputs * chosen), poisoned(device, inputs * chosen));

                let x = random.values(inputs * columns, 0.3);
                let out = poisoned(device, inputs * chosen * rows);
                GateUp {
                    gate: &gate.device,
                    up: &up.device,
                    x: &device.upload_f32(&x),
                    logits: &device.upload_f32(&logits),
                    chosen: &ids_buffer,
                    weights: &weights_buffer,
                    chosen_per_row: chosen,
                    out: &out,
                    inputs,
                }
                .launch(gpu, choices[0]);
                let found = device.read_f32(&out).expect("reads");
                let ids = device.read(&ids_buffer).expect("reads");
                let weights = device.read_f32(&weights_buffer).expect("reads");
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
                        assert_within(
                            limit,
                            found[slot * rows + row],
                            expected,
                            10.0 * (g_size + u_size + 1.0),
                            &context,
                        );
                    }
                }

                let x = random.values(inputs * chosen * columns, 1.0);
                let before = random.values(inputs * rows, 1.0);
                let out = device.upload_f32(&before);
                Down {
                    down: &down.device,
                    x: &device.upload_f32(&x),
                    chosen: &ids_buffer,
                    weights: &weights_buffer,
                    chosen_per_row: chosen,
                    out: &out,
                    inputs,
                }
                .launch(gpu, choices[1]);
                let found = device.read_f32(&out).expect("reads");
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
                        assert_within(limit, found[input * rows + row], expected, size, &context);
                    }
                }
            }
        }
    }
}
