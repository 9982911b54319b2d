//! Compares the packed product with a product in f64, on both kinds of device and for unusual shapes.

use burn::tensor::{Int, Tensor, TensorData};
use gptoss_reference::test_seed;
use phase1_loading::{Format, HostTensor};
use phase2_forward::{ComputeDevice, PackedMatrix, packed_matmul};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngSeed, TestRunner};

/// A product to compute: `inputs` rows through a stack of `experts` matrices `[rows, columns]`.
#[derive(Clone, Copy, Debug)]
struct Shape {
    inputs: usize,
    experts: usize,
    rows: usize,
    columns: usize,
}

/// gpt-oss's width, widths that are not powers of two, single rows, and more rows than one cube or task handles.
const SHAPES: [Shape; 7] = [
    Shape { inputs: 1, experts: 1, rows: 5, columns: 2880 },
    Shape { inputs: 3, experts: 1, rows: 1, columns: 96 },
    Shape { inputs: 1, experts: 1, rows: 1, columns: 32 },
    Shape { inputs: 2, experts: 1, rows: 67, columns: 32 },
    Shape { inputs: 7, experts: 4, rows: 33, columns: 160 },
    Shape { inputs: 16, experts: 8, rows: 130, columns: 64 },
    Shape { inputs: 5, experts: 3, rows: 2, columns: 352 },
];

/// Rows of two blocks in the formats with the longest blocks (256 values), such as K-quants.
const WIDE: Shape = Shape { inputs: 2, experts: 2, rows: 3, columns: 512 };

/// Packed rows: encoded random values if the format can be encoded, otherwise random codes with realistic scales.
fn random_rows(format: Format, shape: Shape, runner: &mut TestRunner) -> Vec<u8> {
    let count = shape.experts * shape.rows * shape.columns;
    let factors: &[usize] = match format {
        Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0 | Format::Mxfp4 => {
            return format.encode(&random(prop::collection::vec(-2.0f32..2.0, count), runner));
        }
        Format::Q6_K => &[208],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Tq1_0 => &[52],
        Format::Tq2_0 => &[64],
        Format::Q4_0 | Format::Q5_0 | Format::Iq4Nl | Format::Iq4Xs => &[0],
        Format::Iq3Xxs | Format::Iq3S | Format::Iq2Xxs | Format::Iq2Xs | Format::Iq2S => &[0],
        _ => &[0, 2],
    };
    let mut packed = random(prop::collection::vec(any::<u8>(), format.row_bytes(count)), runner);
    for block in packed.chunks_exact_mut(format.block_bytes()) {
        for &at in factors {
            // Between 0.0005 and 0.002 as an f16, of either sign.
            block[at + 1] = 0x10 + (block[at + 1] & 0x87);
        }
    }
    packed
}

/// Draws a random value.
fn random<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>, runner: &mut TestRunner) -> T {
    strategy.new_tree(runner).expect("a value").current()
}

fn check(device: &ComputeDevice, format: Format, shape: Shape, runner: &mut TestRunner) {
    let Shape { inputs, experts, rows, columns } = shape;
    let x = random(prop::collection::vec(-3.0f32..3.0, inputs * columns), runner);
    let matrix = random(prop::collection::vec(0..experts as i32, inputs), runner);
    let packed =
        HostTensor::packed_rows(format, vec![experts, rows, columns], random_rows(format, shape, runner).into());
    let weights = packed.to_f32();

    let product = packed_matmul(
        Tensor::<2>::from_data(TensorData::new(x.clone(), [inputs, columns]), &device.burn),
        &PackedMatrix::new(&packed, device),
        Tensor::<1, Int>::from_data(TensorData::new(matrix.clone(), [inputs]), &device.burn),
    );
    assert_eq!(product.dims(), [inputs, rows]);
    let product: Vec<f32> = product.into_data().try_to_vec().expect("f32");

    for (input, x) in x.chunks_exact(columns).enumerate() {
        let first_row = matrix[input] as usize * rows;
        for row in 0..rows {
            let weights = &weights[(first_row + row) * columns..][..columns];
            let terms = weights.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let (expected, magnitude) = terms.fold((0.0, 0.0), |(sum, abs), term| (sum + term, abs + term.abs()));
            let error = (f64::from(product[input * rows + row]) - expected).abs();
            let limit = 1e-6 * magnitude + 1e-30;
            assert!(
                error <= limit,
                "{} {format:?} {shape:?}: output {input}, {row} is off by {error:e}, limit {limit:e}",
                device.name,
            );
        }
    }
}

#[test]
fn equals_f64_on_every_device() {
    let rng_seed = RngSeed::Fixed(test_seed());
    for device in ComputeDevice::for_gates().expect("both devices") {
        let mut runner = TestRunner::new(ProptestConfig { rng_seed, ..ProptestConfig::default() });
        for format in Format::GGUF {
            for shape in SHAPES.into_iter().chain([WIDE]) {
                // A row consists of whole blocks, which are long in K-quants.
                let columns = shape.columns.next_multiple_of(format.block_len());
                check(&device, format, Shape { columns, ..shape }, &mut runner);
            }
        }
    }
}

/// More inputs than a GPU can start cubes along one axis (65,535), as in a prompt of 16,384 tokens with four experts each.
#[test]
fn more_inputs_than_cubes_are_multiplied() {
    let rng_seed = RngSeed::Fixed(test_seed());
    let shape = Shape { inputs: 65_537, experts: 3, rows: 2, columns: 32 };
    for device in ComputeDevice::for_gates().expect("both devices") {
        let mut runner = TestRunner::new(ProptestConfig { rng_seed, ..ProptestConfig::default() });
        check(&device, Format::Q8_0, shape, &mut runner);
    }
}

/// Scales that GPUs may flush to zero: half-precision subnormals, which small weights in Q8_0 have.
#[test]
fn subnormal_scales_are_kept() {
    let mut block = vec![3, 0];
    block.extend([100u8; 32]);
    let packed = HostTensor::packed_rows(Format::Q8_0, vec![1, 32], block.into());
    let expected = packed.to_f32().iter().sum::<f32>();
    assert!(expected > 0.0);
    for device in ComputeDevice::for_gates().expect("both devices") {
        let product = packed_matmul(
            Tensor::<2>::ones([1, 32], &device.burn),
            &PackedMatrix::new(&packed, &device),
            Tensor::<1, Int>::zeros([1], &device.burn),
        );
        let product: Vec<f32> = product.into_data().try_to_vec().expect("f32");
        assert!((product[0] / expected - 1.0).abs() < 1e-6, "{}: {product:?}, expected {expected}", device.name);
    }
}
