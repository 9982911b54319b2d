//! Compares products estimated from coarse copies of random matrices, on every instruction set of this machine, with f64: errors are within
//! their bounds.

mod common;

use common::{cases, misaligned_weights};
use cpu_kernels::{Bound, CoarseInputs, CoarseMatrix, Isa, PackedRows, Storage, TILE};
use gptoss_reference::Random;
use proptest::prelude::*;

struct Case {
    /// Begins at an odd address.
    packed: Vec<u8>,
    values: Vec<f64>,
    storage: Storage,
    columns: usize,
    rows: usize,
    inputs: Vec<f32>,
}

impl Case {
    fn new(seed: u64, storage: Storage, rows: usize, blocks: usize, inputs: usize, exponents: (i32, i32)) -> Case {
        let mut random = Random::new(seed);
        let (packed, values) = misaligned_weights(&mut random, storage, rows * blocks, exponents.0);
        let columns = blocks * 32;
        let mut inputs = random.values(inputs * columns, 2f32.powi(exponents.1));
        for input in inputs.chunks_exact_mut(columns) {
            input[random.bits() as usize % columns] *= 30.0;
        }
        Case { packed, values, storage, columns, rows, inputs }
    }

    fn tile(&self, tile: usize) -> PackedRows<'_> {
        let row_bytes = self.columns / 32 * self.storage.block_bytes();
        let end = self.rows.min((tile + 1) * TILE);
        PackedRows::new(&self.packed[1 + tile * TILE * row_bytes..1 + end * row_bytes], self.storage, self.columns)
    }

    /// Estimates `[tiles][inputs · 32]` and bounds `[tiles][inputs]`; the outputs are filled with NaN first.
    fn estimates(&self, isa: Isa) -> (Vec<Vec<f32>>, Vec<Vec<Bound>>) {
        let mut coarse = CoarseMatrix::new(self.rows, self.columns);
        let tiles = coarse.tiles();
        let making = coarse.make();
        for tile in 0..tiles {
            // SAFETY: only this thread uses the buffers.
            unsafe { making.tile(isa, tile, self.tile(tile)) };
        }
        let mut inputs = CoarseInputs::default();
        // Earlier contents of the buffers must have no effect.
        inputs.round(isa, &vec![7.0; 3 * 32], 32);
        inputs.round(isa, &self.inputs, self.columns);
        let count = self.inputs.len() / self.columns;
        let estimate = |tile| {
            let poison = Bound { largest: f32::NAN, margin: f32::NAN };
            let (mut estimates, mut bounds) = (vec![f32::NAN; count * TILE], vec![poison; count]);
            coarse.estimate(isa, tile, &inputs, &mut estimates, &mut bounds);
            (estimates, bounds)
        };
        (0..tiles).map(estimate).unzip()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(100)))]

    #[test]
    fn product_errors_are_within_their_bound(
        seed: u64, storage in prop::sample::select(Storage::ALL.to_vec()), rows in 1usize..100, blocks in 1usize..40,
        inputs in 1usize..=13, exponents in (-40i32..40, -30i32..30),
    ) {
        let case = Case::new(seed, storage, rows, blocks, inputs, exponents);
        for isa in Isa::all() {
            let (estimates, bounds) = case.estimates(isa);
            // Sum of the squares of error / margin.
            let mut squares = 0.0;
            for (i, x) in case.inputs.chunks_exact(case.columns).enumerate() {
                for (row, w) in case.values.chunks_exact(case.columns).enumerate() {
                    let Bound { largest, margin } = bounds[row / TILE][i];
                    let estimate = estimates[row / TILE][i * TILE + row % TILE];
                    let product: f64 = w.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum();
                    let size: f64 = w.iter().zip(x).map(|(w, &x)| (w * f64::from(x)).abs()).sum();
                    let error = (f64::from(estimate) - product).abs();
                    // The margin does not include rounding in f32.
                    prop_assert!(error <= f64::from(margin) + 1e-5 * size + 1e-37, "{isa}: row {row}, input {i}: {estimate}, {product}, {margin}");
                    prop_assert!(estimate <= largest, "{isa}: {estimate} is larger than the largest, {largest}");
                    squares += (error / f64::from(margin).max(1e-37)).powi(2);
                }
            }
            // A margin is eight standard deviations of the tile's worst row, unless its square overflows or underflows in f32.
            let ordinary = |exponent: i32| exponent.abs() < 20;
            if rows * inputs >= 200 && blocks >= 8 && storage != Storage::Mxfp4 && ordinary(exponents.0) && ordinary(exponents.1) {
                let mean = (squares / (rows * inputs) as f64).sqrt();
                prop_assert!((1.0 / 60.0..1.0 / 5.0).contains(&mean), "{isa}: errors are on average {mean} of their margins");
            }
        }
    }

    /// Instruction sets differ only in the rounding of f32 sums.
    #[test]
    fn instruction_sets_agree(seed: u64, storage in prop::sample::select(Storage::ALL.to_vec()), rows in 1usize..70, blocks in 1usize..30, inputs in 1usize..=7) {
        let case = Case::new(seed, storage, rows, blocks, inputs, (0, 0));
        let found: Vec<_> = Isa::all().into_iter().map(|isa| case.estimates(isa)).collect();
        for (estimates, bounds) in &found[1..] {
            for (tile, (estimates, expected)) in estimates.iter().zip(&found[0].0).enumerate() {
                let margins = bounds[tile].iter().zip(&found[0].1[tile]);
                for (a, b) in margins {
                    prop_assert!((a.margin - b.margin).abs() <= 1e-4 * b.margin, "{a:?}, {b:?}");
                }
                for (i, (a, b)) in estimates.iter().zip(expected).enumerate() {
                    let margin = found[0].1[tile][i / TILE].margin;
                    prop_assert!((a - b).abs() <= 1e-3 * margin, "{a}, {b}, {margin}");
                }
            }
        }
    }

    /// A bound never excludes a row if the row's tile or the input has a value that is NaN or infinite.
    #[test]
    fn rows_with_nan_are_never_excluded(
        seed: u64, rows in 1usize..40, blocks in 1usize..5, inputs in 1usize..4, bad in any::<prop::sample::Index>(),
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]), in_weights: bool,
    ) {
        let mut case = Case::new(seed, Storage::F32, rows, blocks, inputs, (0, 0));
        let (tile, input) = if in_weights {
            let place = bad.index(rows * case.columns);
            case.packed[1 + 4 * place..][..4].copy_from_slice(&value.to_le_bytes());
            (Some(place / case.columns / TILE), None)
        } else {
            let place = bad.index(case.inputs.len());
            case.inputs[place] = value;
            (None, Some(place / case.columns))
        };
        for isa in Isa::all() {
            for (number, bounds) in case.estimates(isa).1.iter().enumerate() {
                for (i, bound) in bounds.iter().enumerate() {
                    if tile == Some(number) || input == Some(i) {
                        let out = bound.largest + bound.margin < f32::MAX;
                        prop_assert!(!out, "{isa}: {bound:?}");
                    }
                }
            }
        }
    }
}
