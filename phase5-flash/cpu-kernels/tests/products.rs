//! Compares products of random shapes, in every format and on every instruction set of this machine, with f64.

mod common;

use common::{cases, misaligned_weights};
use cpu_kernels::{
    Isa, PackedRows, Panel, PanelFormat, SMALL_BATCH, Storage, TILE, multiply_panel, multiply_prepared,
    multiply_small_batch, prepare_input,
};
use gptoss_reference::Random;
use proptest::prelude::*;

/// Weights at an odd address, inputs with outliers, and the expected products with their error bounds.
struct Case {
    packed: Vec<u8>,
    storage: Storage,
    columns: usize,
    inputs: Vec<Vec<f32>>,
    /// `[inputs][rows]`
    expected: Vec<Vec<Product>>,
}

struct Product {
    value: f64,
    /// The sum of the magnitudes of the product's terms; rounding errors in f32 are relative to this sum.
    size: f64,
    /// The largest change of the product if each input value changes by half of 1 / 32767 of the largest magnitude in its block.
    rounding: f64,
}

impl Case {
    fn new(seed: u64, storage: Storage, rows: usize, blocks: usize, inputs: usize, exponents: (i32, i32)) -> Case {
        let mut random = Random::new(seed);
        let (packed, values) = misaligned_weights(&mut random, storage, rows * blocks, exponents.0);
        let columns = blocks * 32;
        let scale = 2f32.powi(exponents.1);
        let inputs: Vec<Vec<f32>> = (0..inputs)
            .map(|_| {
                let mut input = random.values(columns, scale);
                let outlier = random.bits() as usize % columns;
                input[outlier] *= 300.0;
                input
            })
            .collect();
        let product = |row: usize, input: &[f32]| {
            let mut product = Product { value: 0.0, size: 0.0, rounding: 0.0 };
            for (w, x) in values[row * columns..(row + 1) * columns].chunks_exact(32).zip(input.chunks_exact(32)) {
                let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                for (w, &x) in w.iter().zip(x) {
                    product.value += w * f64::from(x);
                    product.size += (w * f64::from(x)).abs();
                    product.rounding += w.abs() * f64::from(largest) / 32767.0 * 0.501;
                }
            }
            product
        };
        let expected = inputs.iter().map(|input| (0..rows).map(|row| product(row, input)).collect()).collect();
        Case { packed, storage, columns, inputs, expected }
    }

    fn rows(&self) -> PackedRows<'_> {
        PackedRows::new(&self.packed[1..], self.storage, self.columns)
    }

    fn prepared(&self, isa: Isa) -> Vec<Vec<u32>> {
        let prepare = |input: &Vec<f32>| {
            let mut words = vec![u32::MAX; input.len()];
            prepare_input(isa, input, &mut words);
            words
        };
        self.inputs.iter().map(prepare).collect()
    }

    fn check(&self, out: &[f32], rounded: bool, what: &str) -> Result<(), TestCaseError> {
        for (i, expected) in self.expected.iter().enumerate() {
            for (row, Product { value, size, rounding }) in expected.iter().enumerate() {
                let found = f64::from(out[i * TILE + row]);
                let limit = 5e-6 * size + if rounded { *rounding } else { 0.0 } + 1e-37;
                prop_assert!((found - value).abs() <= limit, "{what}: row {row}, input {i}: {found}, not {value}");
            }
        }
        Ok(())
    }
}

fn slices<T>(rows: &[Vec<T>]) -> Vec<&[T]> {
    rows.iter().map(Vec::as_slice).collect()
}

fn storages() -> impl Strategy<Value = Storage> {
    prop::sample::select(Storage::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(150)))]

    #[test]
    fn small_batches_equal_f64(
        seed: u64, storage in storages(), rows in 1..=TILE, blocks in 1usize..30, inputs in 1..=SMALL_BATCH,
        exponents in (-40i32..40, -30i32..30),
    ) {
        let case = Case::new(seed, storage, rows, blocks, inputs, exponents);
        let inputs = slices(&case.inputs);
        for isa in Isa::all() {
            let mut out = vec![f32::NAN; inputs.len() * TILE];
            multiply_small_batch(isa, case.rows(), &inputs, &mut out);
            case.check(&out, false, isa.name())?;
        }
    }

    #[test]
    fn prepared_inputs_equal_f64(
        seed: u64, rows in 1..=TILE, blocks in 1usize..30, inputs in 1..=SMALL_BATCH,
        exponents in (-40i32..40, -30i32..30),
    ) {
        let case = Case::new(seed, Storage::Mxfp4, rows, blocks, inputs, exponents);
        for isa in Isa::all() {
            let mut out = vec![f32::NAN; inputs * TILE];
            multiply_prepared(isa, case.rows(), &slices(&case.prepared(isa)), &mut out);
            case.check(&out, true, isa.name())?;
        }
    }

    #[test]
    fn panels_equal_f64(
        seed: u64, storage in storages(), rows in 1..=TILE, blocks in 1usize..30, inputs in 1usize..=33,
        exponents in (-40i32..40, -30i32..30),
    ) {
        let case = Case::new(seed, storage, rows, blocks, inputs, exponents);
        let mut panel = Panel::default();
        for isa in Isa::all() {
            for format in [PanelFormat::F32, PanelFormat::I16] {
                if format == PanelFormat::I16 && !storage.is_quantized() {
                    continue;
                }
                let filling = panel.begin(isa, format, case.columns, inputs);
                for group in 0..filling.groups() {
                    // SAFETY: only this thread uses the buffers.
                    unsafe { filling.pack(group, |i| &case.inputs[i]) };
                }
                let mut out = vec![f32::NAN; inputs * TILE];
                multiply_panel(isa, case.rows(), &panel, &mut out);
                case.check(&out, format == PanelFormat::I16, &format!("{isa}, {format:?}"))?;
            }
        }
    }

    /// If an input contains NaN or an infinity, its products are not finite, whichever kernel computes them, so that it can be detected.
    #[test]
    fn nan_is_preserved(
        seed: u64, storage in storages(), blocks in 1usize..5, inputs in 1usize..9, bad in any::<prop::sample::Index>(),
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
    ) {
        let mut case = Case::new(seed, storage, TILE, blocks, inputs, (0, 0));
        let (who, place) = (bad.index(inputs), bad.index(case.columns));
        case.inputs[who][place] = value;
        for isa in Isa::all() {
            if inputs <= SMALL_BATCH {
                let mut out = vec![0.0; inputs * TILE];
                multiply_small_batch(isa, case.rows(), &slices(&case.inputs), &mut out);
                prop_assert!(out[who * TILE..][..TILE].iter().all(|y| !y.is_finite()), "{isa}");
            }
            if inputs <= SMALL_BATCH && storage == Storage::Mxfp4 {
                let mut out = vec![0.0; inputs * TILE];
                multiply_prepared(isa, case.rows(), &slices(&case.prepared(isa)), &mut out);
                prop_assert!(out[who * TILE..][..TILE].iter().all(|y| !y.is_finite()), "{isa}, prepared");
            }
            for format in [PanelFormat::F32, PanelFormat::I16] {
                if format == PanelFormat::I16 && !storage.is_quantized() {
                    continue;
                }
                let mut panel = Panel::default();
                let filling = panel.begin(isa, format, case.columns, inputs);
                for group in 0..filling.groups() {
                    // SAFETY: only this thread uses the buffers.
                    unsafe { filling.pack(group, |i| &case.inputs[i]) };
                }
                let mut out = vec![0.0; inputs * TILE];
                multiply_panel(isa, case.rows(), &panel, &mut out);
                prop_assert!(out[who * TILE..][..TILE].iter().all(|y| !y.is_finite()), "{isa}, {format:?}");
            }
        }
    }
}
