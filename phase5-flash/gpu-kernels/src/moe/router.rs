//! The norm before the experts, the router's logits, the choice of experts and their weights.
//!
//! The host never reads the choice. With many rows, each row has a cube, which also chooses the experts. With few rows, each pair of row
//! and expert has a cube; the choice needs all logits of a row and is made by [the kernel that uses it](crate::matvec::GateUp).
//!
//! History (H100, 32 experts of 2880, one row): inside a step, one cube per row takes 18.8 µs, one cube per expert 6.3 µs.

use cubecl::prelude::*;

use crate::device::{Buffer, Device};
use crate::norm::{norm_factor, rms_factor};
use crate::reduce::{plane_sums, total};
use crate::vec4::sum4;

/// Units of a cube for a whole row, and of a cube for a pair of row and expert.
const ROW_UNITS: u32 = 1024;
const EXPERT_UNITS: u32 = 256;
/// Vectors of an expert's row that a lane loads at once.
const VECTORS_IN_FLIGHT: u32 = 4;

/// The router of some rows.
pub struct Route<'a> {
    /// `[inputs, hidden]`
    pub x: &'a Buffer,
    pub norm: &'a Buffer,
    pub eps: f32,
    /// `[experts, hidden]` in f32.
    pub weight: &'a Buffer,
    pub bias: &'a Buffer,
    /// `norm(x)`, `[inputs, hidden]`
    pub normed: &'a Buffer,
    /// `[inputs, experts]`
    pub logits: &'a Buffer,
    pub hidden: usize,
    pub experts: usize,
    pub inputs: usize,
}

/// The experts of each row, `[inputs, per_row]`.
pub struct ExpertChoice<'a> {
    /// The most likely expert first; of equally likely experts, the lower number first.
    pub chosen: &'a Buffer,
    /// Softmax over the logits of the chosen experts.
    pub weights: &'a Buffer,
    pub per_row: usize,
}

impl Route<'_> {
    /// Computes the logits and the choice.
    ///
    /// # Panics
    /// If a buffer is too short, `hidden` is not a multiple of 4, or `per_row` is not from 1 to `experts`.
    pub fn launch(&self, device: &Device, choice: &ExpertChoice<'_>) {
        self.check();
        assert!(
            (1..=self.experts).contains(&choice.per_row),
            "cannot choose {} of {} experts",
            choice.per_row,
            self.experts
        );
        choice.chosen.expect("the chosen experts", self.inputs * choice.per_row);
        choice.weights.expect("the experts' weights", self.inputs * choice.per_row);
        let units = device.whole_planes(ROW_UNITS.min(device.max_units()));
        // SAFETY: lengths are checked; indices follow from the shapes.
        unsafe {
            route::launch_unchecked(
                device.client(),
                CubeCount::Static(self.inputs as u32, 1, 1),
                CubeDim::new_1d(units),
                self.x.arg4(),
                self.norm.arg4(),
                self.weight.arg4(),
                self.bias.arg(),
                self.normed.arg4(),
                self.logits.arg(),
                choice.chosen.arg(),
                choice.weights.arg(),
                self.eps,
                self.hidden as u32 / 4,
                self.experts as u32,
                choice.per_row as u32,
                device.most_planes(units),
            );
        }
    }

    /// Computes only the logits, for few rows.
    ///
    /// # Panics
    /// If a buffer is too short, or `hidden` is not a multiple of 4.
    pub fn launch_logits(&self, device: &Device) {
        self.check();
        let units = device.whole_planes(EXPERT_UNITS);
        // SAFETY: lengths are checked; indices follow from the shapes.
        unsafe {
            score::launch_unchecked(
                device.client(),
                CubeCount::Static(self.experts as u32, self.inputs as u32, 1),
                CubeDim::new_1d(units),
                self.x.arg4(),
                self.norm.arg4(),
                self.weight.arg4(),
                self.bias.arg(),
                self.normed.arg4(),
                self.logits.arg(),
                self.eps,
                self.hidden as u32 / 4,
                self.experts as u32,
                units,
                device.most_planes(units),
            );
        }
    }

    #[track_caller]
    fn check(&self) {
        let Route { hidden, experts, inputs, .. } = *self;
        assert!(hidden.is_multiple_of(4), "{hidden} columns are not whole vectors of four");
        self.x.expect("the router's input", inputs * hidden);
        self.norm.expect("the norm's weight", hidden);
        self.weight.expect("the router's weight", experts * hidden);
        self.bias.expect("the router's bias", experts);
        self.normed.expect("the normed rows", inputs * hidden);
        self.logits.expect("the router's logits", inputs * experts);
    }
}

/// Computes one expert's logit for one row, and a part of the normed row.
#[cube(launch_unchecked)]
fn score(
    x: &[Vector<f32, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    weight: &[Vector<f32, Const<4>>],
    bias: &[f32],
    normed: &mut [Vector<f32, Const<4>>],
    logits: &mut [f32],
    eps: f32,
    #[comptime] vectors: u32,
    #[comptime] experts: u32,
    #[comptime] units: u32,
    #[comptime] planes: u32,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![2 * planes as usize]);
    let expert = CUBE_POS_X;
    let start = CUBE_POS_Y * vectors;
    let mut squares = Vector::<f32, Const<4>>::new(0.0f32);
    let mut products = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for round in 0..comptime![vectors.div_ceil(units)] {
        let i = UNIT_POS + comptime![round * units];
        if i < vectors {
            let value = x[(start + i) as usize];
            squares += value * value;
            products += value * norm[i as usize] * weight[(expert * vectors + i) as usize];
        }
    }
    let mut sums = Array::<f32>::new(2usize);
    sums[0usize] = sum4(squares);
    sums[1usize] = sum4(products);
    plane_sums(&sums, &mut shared, 0u32, 0u32, 2u32, 2u32);
    sync_cube();
    let factor = rms_factor(total(&shared, 0u32, 2u32), comptime![vectors * 4].runtime(), eps);
    if UNIT_POS == 0 {
        let product = total(&shared, 1u32, 2u32);
        logits[(CUBE_POS_Y * experts + expert) as usize] = product * factor + bias[expert as usize];
    }
    let length = comptime![vectors.div_ceil(experts)];
    let mut i = expert * length + UNIT_POS;
    while i < min((expert + 1) * length, vectors) {
        let x = x[(start + i) as usize];
        normed[(start + i) as usize] = x * Vector::<f32, Const<4>>::new(factor) * norm[i as usize];
        i += CUBE_DIM;
    }
}

#[cube(launch_unchecked)]
fn route(
    x: &[Vector<f32, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    weight: &[Vector<f32, Const<4>>],
    bias: &[f32],
    normed: &mut [Vector<f32, Const<4>>],
    logits: &mut [f32],
    chosen: &mut [u32],
    weights: &mut [f32],
    eps: f32,
    #[comptime] vectors: u32,
    #[comptime] experts: u32,
    #[comptime] chosen_per_row: u32,
    #[comptime] planes: u32,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime![planes as usize]);
    let mut scores = Shared::<[f32]>::new_slice(comptime![experts as usize]);
    let mut choice = Shared::<[u32]>::new_slice(comptime![chosen_per_row as usize]);
    let row = CUBE_POS_X;
    let start = row * vectors;
    let factor = norm_factor(x, start, vectors, eps, &mut shared);
    let factors = Vector::<f32, Const<4>>::new(factor);
    let mut i = UNIT_POS;
    while i < vectors {
        normed[(start + i) as usize] = x[(start + i) as usize] * factors * norm[i as usize];
        i += CUBE_DIM;
    }

    // Each plane handles one expert at a time.
    let mut expert = PLANE_POS;
    while expert < experts {
        let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
        let mut i = UNIT_POS_PLANE;
        while i < vectors {
            // Reads past the row's end read its last vector instead, and the product is multiplied by zero.
            #[unroll]
            for ahead in 0..VECTORS_IN_FLIGHT {
                let column = i + ahead * PLANE_DIM;
                let at = min(column, vectors - 1);
                let term = x[(start + at) as usize] * norm[at as usize] * weight[(expert * vectors + at) as usize];
                sum += term * Vector::<f32, Const<4>>::new(select(column < vectors, 1.0f32, 0.0f32));
            }
            i += PLANE_DIM * VECTORS_IN_FLIGHT;
        }
        let logit = plane_sum(sum4(sum)) * factor + bias[expert as usize];
        if UNIT_POS_PLANE == 0 {
            scores[expert as usize] = logit;
            logits[(row * experts + expert) as usize] = logit;
        }
        expert += CUBE_DIM / PLANE_DIM;
    }
    sync_cube();

    rank(&scores, &mut choice, experts, chosen_per_row);
    write_choice(&scores, &choice, chosen, weights, row * chosen_per_row, chosen_per_row);
}

/// The expert of slot `slot`, choice number `slot % chosen_per_row` of row `slot / chosen_per_row`, computed from the row's logits. With
/// `write`, the row's first slot also stores the row's choice. All units of the cube must call it.
#[cube]
pub(crate) fn choose(
    logits: &[f32],
    slot: u32,
    write: bool,
    chosen: &mut [u32],
    weights: &mut [f32],
    #[comptime] experts: u32,
    #[comptime] chosen_per_row: u32,
) -> u32 {
    let mut scores = Shared::<[f32]>::new_slice(comptime![experts as usize]);
    let mut choice = Shared::<[u32]>::new_slice(comptime![chosen_per_row as usize]);
    let row = slot / chosen_per_row;
    let mut expert = UNIT_POS;
    while expert < experts {
        scores[expert as usize] = logits[(row * experts + expert) as usize];
        expert += CUBE_DIM;
    }
    sync_cube();
    rank(&scores, &mut choice, experts, chosen_per_row);
    let mine = slot % chosen_per_row;
    if write && mine == 0 {
        write_choice(&scores, &choice, chosen, weights, row * chosen_per_row, chosen_per_row);
    }
    choice[mine as usize]
}

/// Finds the experts with the largest scores, in order: the rank of an expert is the number of experts before it. All units of the cube
/// must call it.
#[cube]
fn rank(scores: &Shared<[f32]>, choice: &mut Shared<[u32]>, #[comptime] experts: u32, #[comptime] chosen_per_row: u32) {
    // If logits are NaN, the loop below leaves some places unset, which must still name an expert.
    let mut place = UNIT_POS;
    while place < chosen_per_row {
        choice[place as usize] = place;
        place += CUBE_DIM;
    }
    sync_cube();
    let mut expert = UNIT_POS;
    while expert < experts {
        let score = scores[expert as usize];
        let mut before = 0u32;
        #[unroll(experts <= 32)]
        for other in 0..experts {
            let theirs = scores[other as usize];
            before += u32::cast_from(theirs > score || (theirs == score && other < expert));
        }
        if before < chosen_per_row {
            choice[before as usize] = expert;
        }
        expert += CUBE_DIM;
    }
    sync_cube();
}

#[cube]
fn write_choice(
    scores: &Shared<[f32]>,
    choice: &Shared<[u32]>,
    chosen: &mut [u32],
    weights: &mut [f32],
    first: u32,
    #[comptime] chosen_per_row: u32,
) {
    let likeliest = scores[choice[0usize] as usize];
    let mut place = UNIT_POS;
    while place < chosen_per_row {
        let mut sum = 0.0f32;
        for other in 0..chosen_per_row {
            sum += (scores[choice[other as usize] as usize] - likeliest).exp();
        }
        let expert = choice[place as usize];
        chosen[(first + place) as usize] = expert;
        weights[(first + place) as usize] = (scores[expert as usize] - likeliest).exp() / sum;
        place += CUBE_DIM;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, assert_choice, assert_close, device, poisoned};

    #[test]
    fn choice_equals_sorting() {
        let device = device();
        let mut random = Random::fresh();
        for (inputs, hidden, experts, chosen) in
            [(1, 2880, 32, 4), (3, 96, 5, 2), (2, 64, 128, 4), (1, 32, 3, 3), (1, 32, 1, 1), (2, 32, 130, 70)]
        {
            let context = format!("{inputs} {hidden} {experts} {chosen} {random:?}");
            let x = random.values(inputs * hidden, 2.0);
            let norm = random.values(hidden, 1.0);
            let weight = random.values(experts * hidden, 1.0);
            let bias = random.values(experts, 1.0);
            for alone in [false, true] {
                let [normed, logits, ids, weights] =
                    [inputs * hidden, inputs * experts, inputs * chosen, inputs * chosen]
                        .map(|len| poisoned(&device, len));
                let route = Route {
                    x: &device.upload_f32(&x),
                    norm: &device.upload_f32(&norm),
                    eps: 1e-5,
                    weight: &device.upload_f32(&weight),
                    bias: &device.upload_f32(&bias),
                    normed: &normed,
                    logits: &logits,
                    hidden,
                    experts,
                    inputs,
                };
                match alone {
                    true => route.launch_logits(&device),
                    false => route.launch(&device, &ExpertChoice { chosen: &ids, weights: &weights, per_row: chosen }),
                }
                let read = |buffer| device.read_f32(buffer).expect("reads");
                let (normed, logits, weights) = (read(&normed), read(&logits), read(&weights));
                let ids = device.read(&ids).expect("reads");
                for input in 0..inputs {
                    let x = &x[input * hidden..][..hidden];
                    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / hidden as f64;
                    let factor = (mean + 1e-5).sqrt().recip();
                    let x: Vec<f64> =
                        x.iter().zip(&norm).map(|(&x, &w)| f64::from(x) * factor * f64::from(w)).collect();
                    for (column, &x) in x.iter().enumerate() {
                        assert_close(normed[input * hidden + column], x, x.abs(), &context);
                    }
                    for expert in 0..experts {
                        let terms = weight[expert * hidden..][..hidden].iter().zip(&x).map(|(&w, &x)| f64::from(w) * x);
                        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                        let logit = logits[input * experts + expert];
                        assert_close(logit, sum + f64::from(bias[expert]), size + 1.0, &context);
                    }
                    if !alone {
                        let logits = &logits[input * experts..][..experts];
                        let here = input * chosen..(input + 1) * chosen;
                        assert_choice(&ids[here.clone()], &weights[here], logits, &context);
                    }
                }
            }
        }
    }

    #[test]
    fn first_of_equal_experts_is_chosen() {
        let device = device();
        let hidden = 32;
        let [normed, logits, ids, weights] = [hidden, 40, 4, 4].map(|len| poisoned(&device, len));
        let mut bias = vec![0.0; 40];
        bias[7] = 1.0;
        bias[39] = 1.0;
        Route {
            x: &device.upload_f32(&vec![0.0; hidden]),
            norm: &device.upload_f32(&vec![1.0; hidden]),
            eps: 1e-5,
            weight: &device.upload_f32(&vec![0.0; 40 * hidden]),
            bias: &device.upload_f32(&bias),
            normed: &normed,
            logits: &logits,
            hidden,
            experts: 40,
            inputs: 1,
        }
        .launch(&device, &ExpertChoice { chosen: &ids, weights: &weights, per_row: 4 });
        assert_eq!(device.read(&ids).expect("reads")[..4], [7, 39, 0, 1]);
    }
}
