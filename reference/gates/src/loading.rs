//! Phase 1's gate, a comparison with golden values: every tensor decodes to the values that the `gguf` Python package decodes, by samples
//! and sums.

use gptoss_reference::{Case, Check, Golden, GoldenError, Limit};
use phase1_loading::{Checkpoint, HostTensor};

use crate::checks::Checks;

/// Compares samples and sums of every decoded tensor with the golden ones.
///
/// # Errors
/// A model or golden file cannot be read.
pub fn run(case: &Case) -> Checks {
    let checkpoint = Checkpoint::open(&case.model())?;
    let golden = case.weights()?;
    let checks = (checkpoint.tensors.iter()).map(|(name, tensor)| check_tensor(case, &golden, name, tensor));
    Ok(checks.collect::<Result<_, GoldenError>>()?)
}

/// Evenly spaced samples must be equal. The sum of all values and the sum of their magnitudes also cover the values between the samples,
/// but do not depend on the order of values.
fn check_tensor(case: &Case, golden: &Golden, name: &str, tensor: &HostTensor) -> Result<Check, GoldenError> {
    let values = tensor.to_f32();
    let expected = golden.f32s(name)?;
    let last = expected.len() - 1;
    let samples: Vec<f32> = (0..expected.len()).map(|i| values[i * (values.len() - 1) / last]).collect();
    let mut check = Check::values(&case.name, name, &expected, &samples, Limit::EQUAL);

    let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
    let magnitude: f64 = values.iter().map(|&v| f64::from(v.abs())).sum();
    let sums = golden.f64s(&format!("{name}.sums"))?;
    // The golden sums are of exact values in f64, in another order than ours.
    let sum_error = (sum - sums[0]).abs().max((magnitude - sums[1]).abs()) / sums[1];
    if sum_error > 1e-12 {
        check.max = check.max.max(sum_error);
    }
    Ok(check)
}
