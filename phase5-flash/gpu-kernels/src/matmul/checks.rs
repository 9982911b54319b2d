//! Tests that every kernel for several rows must pass.

use formats::Storage;

use crate::gpu::Gpu;
use crate::matvec::{Down, GateUp};
use crate::moe::{Combine, SlotSort, tile_words};
use crate::product::{ExpertProduct, Experts, Product};
use crate::testing::{Random, assert_within, gpu, matrix, matvec_choice, poisoned};

/// Compares products of `(inputs, rows, columns)` in every format with f64, either with bias and previous output or
/// without both.
pub(super) fn check_dense(
    limit: f64,
    shapes: &[(usize, usize, usize)],
    what: &str,
    mut launch: impl FnMut(&Gpu, &Product<'_>),
) {
    let gpu = gpu();
    let device = &gpu.device;
    let mut random = Random::fresh();
    for (number, storage) in Storage::ALL.into_iter().enumerate() {
        for (shape, &(inputs, rows, columns)) in shapes.iter().enumerate() {
            // A software rasterizer takes seconds to compile each kernel: formats and shapes alternate between both and neither.
            let both = (number + shape).is_multiple_of(2);
            let (biased, add) = (both, both);
            let context = format!("{what} {storage:?} {inputs} {rows} {columns} {biased} {random:?}");
            let values = random.values(rows * columns, 1.0);
            let (weights, matrix) = matrix(device, storage, [1, rows, columns], &values);
            let x = random.values(inputs * columns, 1.0);
            let (bias, before) = (random.values(rows, 1.0), random.values(inputs * rows, 1.0));
            let out = if add { device.upload_f32(&before) } else { poisoned(device, inputs * rows) };
            let (x_buffer, bias_buffer) = (device.upload_f32(&x), device.upload_f32(&bias));
            let bias_buffer = biased.then_some(&bias_buffer);
            launch(&gpu, &Product { matrix: &matrix, x: &x_buffer, bias: bias_buffer, out: &out, add, inputs });
            let found = device.read_f32(&out).expect("reads");
            for input in 0..inputs {
                for row in 0..rows {
                    let terms = weights[row * columns..][..columns].iter().zip(&x[input * columns..]);
                    let start = if biased { f64::from(bias[row] + before[input * rows + row]) } else { 0.0 };
                    let (sum, size) = terms.fold((start, 2.0), |(sum, size), (&w, &x)| {
                        let term = f64::from(w) * f64::from(x);
                        (sum + term, size + term.abs())
                    });
                    assert_within(limit, found[input * rows + row], sum, size, &context);
                }
            }
        }
    }
}

/// Compares products of `(inputs, experts, width, hidden, chosen)` over sorted slots, in tiles of `tile`, with the mat-vec kernels, which
/// are tested against f64.
pub(crate) fn check_experts(
    limit: f64,
    shapes: &[(usize, usize, usize, usize, usize)],
    tile: u32,
    what: &str,
    mut launch: impl FnMut(&Gpu, &ExpertProduct<'_>),
) {
    let gpu = gpu();
    let device = &gpu.device;
    let in_f32 = gpu.clone().in_f32();
    let mut random = Random::fresh();
    let formats = [Storage::Mxfp4, Storage::Q8_0, Storage::BF16];
    // Each shape is tested with one of the formats.
    for (storage, &(inputs, experts, width, hidden, chosen)) in formats.into_iter().cycle().zip(shapes) {
        let choice = matvec_choice(&mut random);
        let context = format!("{what} {storage:?} {inputs} {experts} {width} {hidden} {chosen} {choice:?} {random:?}");
        let mut stack = |rows: usize, columns: usize| {
            let values = random.values(experts * rows * columns, 1.0);
            let (_, weight) = matrix(device, storage, [experts, rows, columns], &values);
            Experts { weight, bias: device.upload_f32(&random.values(experts * rows, 1.0)) }
        };
        let (gate, up, down) = (stack(width, hidden), stack(width, hidden), stack(hidden, width));
        let slots = inputs * chosen;
        // Most rows choose expert 0, so that its slots fill several tiles.
        let mut logits = random.values(inputs * experts, 1.0);
        logits.chunks_mut(experts).for_each(|row| row[0] += 3.0 * random.below(3) as f32);
        let logits = device.upload_f32(&logits);
        let [ids, weights] = [slots, slots].map(|len| poisoned(device, len));
        let x = device.upload_f32(&random.values(inputs * hidden, 0.5));
        let before = random.values(inputs * hidden, 1.0);
        let (sorted, single) = (device.upload_f32(&before), device.upload_f32(&before));
        let [activations, singly, products] =
            [slots * width, slots * width, slots * hidden].map(|len| poisoned(device, len));
        let sorted_slots = device.upload(vec![u32::MAX; slots]);
        let tiles = device.upload(vec![u32::MAX; tile_words(slots, experts, tile)]);

        GateUp {
            gate: &gate,
            up: &up,
            x: &x,
            logits: &logits,
            chosen: &ids,
            weights: &weights,
            chosen_per_row: chosen,
            out: &singly,
            inputs,
        }
        .launch(&in_f32, choice);
        SlotSort { chosen: &ids, sorted_slots: &sorted_slots, tiles: &tiles, slots, experts, tile }.launch(device);
        let product = ExpertProduct {
            experts: &gate,
            up: Some(&up),
            x: &x,
            x_by_slot: false,
            out: &activations,
            sorted_slots: &sorted_slots,
            tiles: &tiles,
            inputs,
            chosen_per_row: chosen,
        };
        launch(&gpu, &product);
        let (experts, x) = (&down, &activations);
        launch(&gpu, &ExpertProduct { experts, up: None, x, x_by_slot: true, out: &products, ..product });
        Combine { products: &products, weights: &weights, out: &sorted, inputs, chosen_per_row: chosen, hidden }
            .launch(device);

        Down { down: &down, x: &singly, chosen: &ids, weights: &weights, chosen_per_row: chosen, out: &single, inputs }
            .launch(&in_f32, choice);
        for (name, found, expected) in [("activations", &activations, &singly), ("sums", &sorted, &single)] {
            let (found, expected) = (device.read_f32(found).expect("reads"), device.read_f32(expected).expect("reads"));
            for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                let size = 10.0 * width.max(hidden) as f64;
                assert_within(limit, found, f64::from(expected), size, &format!("{name} {i} {context}"));
            }
        }
    }
}
