//! Products of random shapes, in every format and on every instruction set here, against f64.

mod common;

use common::{Random, weights};
use cpu_kernels::{FEW, Isa, PackedRows, Panel, PanelFormat, Storage, TILE, multiply_few, multiply_panel};
use proptest::prelude::*;

/// Weights at an odd address, inputs with outliers, and the products with the sum of their terms' sizes.
struct Case {
    packed: Vec<u8>,
    storage: Storage,
    columns: usize,
    rows: usize,
    inputs: Vec<Vec<f32>>,
    /// `[inputs][rows]`: the product, and how large its terms are.
    expected: Vec<Vec<(f64, f64)>>,
}

impl Case {
    fn new(seed: u64, storage: Storage, rows: usize, blocks: usize, inputs: usize, exponents: (i32, i32)) -> Case {
        let mut random = Random(seed);
        let exponent = if storage == Storage::F16 || storage == Storage::Q8_0 { exponents.0 % 8 } else { exponents.0 };
        let (bytes, values) = weights(&mut random, storage, rows * blocks, exponent);
        let packed = [&[0xff][..], &bytes].concat();
        let columns = blocks * 32;
        let scale = 2f32.powi(exponents.1);
        let inputs: Vec<Vec<f32>> = (0..inputs)
            .map(|_| {
                let mut input = random.floats(columns, scale);
                let outlier = random.bits() as usize % columns;
                input[outlier] *= 300.0;
                input
            })
            .collect();
        let product = |row: usize, input: &[f32]| {
            let terms = values[row * columns..(row + 1) * columns].iter().zip(input).map(|(w, &x)| w * f64::from(x));
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        };
        let expected = inputs.iter().map(|input| (0..rows).map(|row| product(row, input)).collect()).collect();
        Case { packed, storage, columns, rows, inputs, expected }
    }

    fn rows(&self) -> PackedRows<'_> {
        PackedRows::new(&self.packed[1..], self.storage, self.columns)
    }

    fn check(&self, out: &[f32], tolerance: f64, what: &str) -> Result<(), TestCaseError> {
        for (i, expected) in self.expected.iter().enumerate() {
            for (row, &(expected, size)) in expected.iter().enumerate() {
                let found = f64::from(out[i * TILE + row]);
                let error = (found - expected).abs();
                prop_assert!(
                    error <= tolerance * size + 1e-37,
                    "{what}: row {row}, input {i}: {found}, not {expected}"
                );
            }
        }
        Ok(())
    }
}

fn storages() -> impl Strategy<Value = Storage> {
    prop::sample::select(Storage::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("KERNEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
    ))]

    #[test]
    fn few_inputs(
        seed: u64, storage in storages(), rows in 1..=TILE, blocks in 1usize..30, inputs in 1..=FEW,
        exponents in (-40i32..40, -30i32..30),
    ) {
        let case = Case::new(seed, storage, rows, blocks, inputs, exponents);
        let inputs: Vec<&[f32]> = case.inputs.iter().map(Vec::as_slice).collect();
        for isa in Isa::all() {
            let mut out = vec![f32::NAN; inputs.len() * TILE];
            multiply_few(isa, case.rows(), &inputs, &mut out);
            case.check(&out, 2e-6, isa.name())?;
        }
    }

    #[test]
    fn panels(
        seed: u64, storage in storages(), rows in 1..=TILE, blocks in 1usize..30, inputs in 1usize..=33,
        exponents in (-40i32..40, -30i32..30),
    ) {
        let case = Case::new(seed, storage, rows, blocks, inputs, exponents);
        let mut panel = Panel::default();
        for isa in Isa::all() {
            for (format, tolerance) in [(PanelFormat::F32, 2e-6), (PanelFormat::I16, 2e-3)] {
                if format == PanelFormat::I16 && !storage.is_quantized() {
                    continue;
                }
                let filling = panel.begin(isa, format, case.columns, inputs);
                for group in 0..filling.groups() {
                    // SAFETY: one thread.
                    unsafe { filling.pack(group, |i| &case.inputs[i]) };
                }
                let mut out = vec![f32::NAN; inputs * TILE];
                multiply_panel(isa, case.rows(), &panel, &mut out);
                case.check(&out, tolerance, &format!("{isa}, {format:?}"))?;
            }
        }
    }
}
