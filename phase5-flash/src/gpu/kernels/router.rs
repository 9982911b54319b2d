//! The norm before the experts, the router's logits, the choice of experts and their weights: one cube a row.
//!
//! The choice never returns to the host: later kernels read it where this one wrote it.

use cubecl::prelude::*;

use super::norm::norm_factor;
use crate::gpu::device::{Buffer, Gpu};

const UNITS: u32 = 1024;
/// Vectors of an expert's row that a lane has under way at once.
const AHEAD: u32 = 4;
/// Below every logit.
const TAKEN: f32 = -3.0e38;

/// Where the router reads and writes; all for the same rows.
pub(crate) struct Route<'a> {
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
    /// `[inputs, chosen]`, the likeliest first; the first of equals.
    pub chosen: &'a Buffer,
    /// Softmax over the chosen ones' logits.
    pub weights: &'a Buffer,
    pub hidden: usize,
    pub experts: usize,
    pub experts_per_token: usize,
    pub inputs: usize,
}

impl Route<'_> {
    pub fn launch(&self, gpu: &Gpu) {
        let units = UNITS.min(gpu.client.properties().hardware.max_units_per_cube).next_multiple_of(gpu.plane);
        // SAFETY: every index is below the buffers' shapes above.
        unsafe {
            route::launch_unchecked(
                &gpu.client,
                CubeCount::Static(self.inputs as u32, 1, 1),
                CubeDim::new_1d(units),
                self.x.arg4(),
                self.norm.arg4(),
                self.weight.arg4(),
                self.bias.arg(),
                self.normed.arg4(),
                self.logits.arg(),
                self.chosen.arg(),
                self.weights.arg(),
                self.eps,
                self.hidden as u32 / 4,
                self.experts as u32,
                self.experts_per_token as u32,
                units.div_ceil(gpu.least_plane),
            );
        }
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
    let row = CUBE_POS_X;
    let start = row * vectors;
    let factor = norm_factor(x, start, vectors, eps, &mut shared);
    let factors = Vector::<f32, Const<4>>::new(factor);
    let mut i = UNIT_POS;
    while i < vectors {
        normed[(start + i) as usize] = x[(start + i) as usize] * factors * norm[i as usize];
        i += CUBE_DIM;
    }

    // A plane takes an expert at a time.
    let mut expert = PLANE_POS;
    while expert < experts {
        let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
        let mut i = UNIT_POS_PLANE;
        while i < vectors {
            // Reads past the row's end are read at its end and count for nothing.
            #[unroll]
            for ahead in 0..AHEAD {
                let column = i + ahead * PLANE_DIM;
                let at = min(column, vectors - 1);
                let term = x[(start + at) as usize] * norm[at as usize] * weight[(expert * vectors + at) as usize];
                sum += term * Vector::<f32, Const<4>>::new(select(column < vectors, 1.0f32, 0.0f32));
            }
            i += PLANE_DIM * AHEAD;
        }
        let sum = (sum.extract(0usize) + sum.extract(1usize)) + (sum.extract(2usize) + sum.extract(3usize));
        let logit = plane_sum(sum) * factor + bias[expert as usize];
        if UNIT_POS_PLANE == 0 {
            scores[expert as usize] = logit;
            logits[(row * experts + expert) as usize] = logit;
        }
        expert += CUBE_DIM / PLANE_DIM;
    }
    sync_cube();

    // The first plane takes the largest score again and again; its lanes share out the experts.
    if PLANE_POS == 0 {
        let first = row * chosen_per_row;
        let mut likeliest = 0.0f32;
        let mut sum = 0.0f32;
        let mut mine = 0.0f32;
        for rank in 0..chosen_per_row {
            let mut best = f32::new(TAKEN);
            let mut best_expert = u32::new(experts as i64);
            let mut expert = UNIT_POS_PLANE;
            while expert < experts {
                let score = scores[expert as usize];
                if score > best {
                    best = score;
                    best_expert = expert;
                }
                expert += PLANE_DIM;
            }
            let largest = plane_max(best);
            let candidate = select(best == largest, best_expert, experts);
            // Not a number beats nothing and would leave no candidate.
            let winner = min(plane_min(candidate), experts - 1);
            if winner % PLANE_DIM == UNIT_POS_PLANE {
                scores[winner as usize] = f32::new(TAKEN);
            }
            if rank == 0 {
                likeliest = largest;
            }
            let weight = (largest - likeliest).exp();
            sum += weight;
            if UNIT_POS_PLANE == rank % PLANE_DIM {
                chosen[(first + rank) as usize] = winner;
                weights[(first + rank) as usize] = weight;
            }
            mine = sum;
        }
        for rank in 0..chosen_per_row {
            if UNIT_POS_PLANE == rank % PLANE_DIM {
                weights[(first + rank) as usize] /= mine;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::testing::{Random, assert_close, gpu, poisoned};

    #[test]
    fn chooses_as_sorting_does() {
        let gpu = gpu();
        let mut random = Random::fresh();
        for (inputs, hidden, experts, chosen) in
            [(1, 2880, 32, 4), (3, 96, 5, 2), (2, 64, 128, 4), (1, 32, 3, 3), (1, 32, 1, 1), (2, 32, 130, 70)]
        {
            let context = format!("{inputs} {hidden} {experts} {chosen} {random:?}");
            let x = random.values(inputs * hidden, 2.0);
            let norm = random.values(hidden, 1.0);
            let weight = random.values(experts * hidden, 1.0);
            let bias = random.values(experts, 1.0);
            let [normed, logits, ids, weights] =
                [inputs * hidden, inputs * experts, inputs * chosen, inputs * chosen].map(|len| poisoned(&gpu, len));
            Route {
                x: &gpu.upload_f32(&x),
                norm: &gpu.upload_f32(&norm),
                eps: 1e-5,
                weight: &gpu.upload_f32(&weight),
                bias: &gpu.upload_f32(&bias),
                normed: &normed,
                logits: &logits,
                chosen: &ids,
                weights: &weights,
                hidden,
                experts,
                experts_per_token: chosen,
                inputs,
            }
            .launch(&gpu);
            let read = |buffer| gpu.read_f32(buffer).expect("reads");
            let (normed, logits, weights) = (read(&normed), read(&logits), read(&weights));
            let ids = gpu.read(&ids).expect("reads");
            for input in 0..inputs {
                let x = &x[input * hidden..][..hidden];
                let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / hidden as f64;
                let factor = (mean + 1e-5).sqrt().recip();
                let x: Vec<f64> = x.iter().zip(&norm).map(|(&x, &w)| f64::from(x) * factor * f64::from(w)).collect();
                for (column, &x) in x.iter().enumerate() {
                    assert_close(normed[input * hidden + column], x, x.abs(), &context);
                }
                for expert in 0..experts {
                    let terms = weight[expert * hidden..][..hidden].iter().zip(&x).map(|(&w, &x)| f64::from(w) * x);
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                    assert_close(logits[input * experts + expert], sum + f64::from(bias[expert]), size + 1.0, &context);
                }
                let logits = &logits[input * experts..][..experts];
                let mut order: Vec<u32> = (0..experts as u32).collect();
                order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
                assert_eq!(ids[input * chosen..][..chosen], order[..chosen], "{context}");
                let exponentials: Vec<f64> = order[..chosen]
                    .iter()
                    .map(|&e| (f64::from(logits[e as usize]) - f64::from(logits[order[0] as usize])).exp())
                    .collect();
                let sum: f64 = exponentials.iter().sum();
                for (rank, e) in exponentials.iter().enumerate() {
                    // The exponential's own error grows with its argument.
                    assert_close(weights[input * chosen + rank], e / sum, 10.0, &context);
                }
            }
        }
    }

    #[test]
    fn the_first_of_equals_is_chosen() {
        let gpu = gpu();
        let hidden = 32;
        let [normed, logits, ids, weights] = [hidden, 40, 4, 4].map(|len| poisoned(&gpu, len));
        let mut bias = vec![0.0; 40];
        bias[7] = 1.0;
        bias[39] = 1.0;
        Route {
            x: &gpu.upload_f32(&vec![0.0; hidden]),
            norm: &gpu.upload_f32(&vec![1.0; hidden]),
            eps: 1e-5,
            weight: &gpu.upload_f32(&vec![0.0; 40 * hidden]),
            bias: &gpu.upload_f32(&bias),
            normed: &normed,
            logits: &logits,
            chosen: &ids,
            weights: &weights,
            hidden,
            experts: 40,
            experts_per_token: 4,
            inputs: 1,
        }
        .launch(&gpu);
        assert_eq!(gpu.read(&ids).expect("reads")[..4], [7, 39, 0, 1]);
    }
}
