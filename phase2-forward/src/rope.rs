//! Rotary position embedding with YaRN scaling (<https://arxiv.org/abs/2309.00071>).

use std::f64::consts::PI;
use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use phase1_loading::constants::{BETA_FAST, BETA_SLOW, attention_factor};
use phase1_loading::{RopeConfig, YarnRamp};

/// The angular velocities of a head's dimension pairs.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians per position, `[head_dim / 2]`.
    pub inverse_frequencies: Vec<f32>,
    /// YaRN's mscale: a factor on queries and on keys, so that scores are multiplied by its square.
    pub mscale: f32,
}

impl Rope {
    pub fn new(config: &RopeConfig, head_dim: usize) -> Rope {
        let (theta, factor) = (f64::from(config.theta), f64::from(config.factor));
        let dim = head_dim as f64;
        // The dimension pair that makes `rotations` turns over the original context.
        let correction =
            |rotations: f64| dim * (config.original_context as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (low, high) = (correction(BETA_FAST), correction(BETA_SLOW));
        let (low, high) = match config.ramp {
            YarnRamp::Exact => (low, high),
            YarnRamp::Truncated => (low.floor(), high.ceil()),
        };
        // With a short context the ends of the ramp may lie outside the head's dimensions, or coincide.
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        let high = if high > low { high } else { low + 1e-3 };
        let inverse_frequencies = (0..head_dim / 2)
            .map(|i| {
                let frequency = theta.powf(-2.0 * i as f64 / dim);
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                (frequency * (1.0 - ramp) + frequency / factor * ramp) as f32
            })
            .collect();
        Rope { inverse_frequencies, mscale: attention_factor(factor) as f32 }
    }

    /// Cosines and sines for a range of positions, each `[1, positions, head_dim / 2]` and multiplied by `mscale`.
    ///
    /// Angles are f32 products, as in the reference implementations: f64 would be closer to the formula and further from what the model was
    /// trained with.
    pub fn at(&self, positions: Range<usize>, device: &Device) -> (Tensor<3>, Tensor<3>) {
        let shape = [1, positions.len(), self.inverse_frequencies.len()];
        let angles: Vec<f32> =
            positions.flat_map(|p| self.inverse_frequencies.iter().map(move |f| p as f32 * f)).collect();
        let table = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|&angle| function(angle) * self.mscale).collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        (table(f32::cos), table(f32::sin))
    }
}

/// Rotates `x` `[heads, positions, head_dim]`. Dimension i is paired with i + head_dim / 2.
pub(crate) fn rotate(x: Tensor<3>, (cos, sin): &(Tensor<3>, Tensor<3>)) -> Tensor<3> {
    let [_, _, dim] = x.dims();
    let first = x.clone().narrow(2, 0, dim / 2);
    let second = x.narrow(2, dim / 2, dim / 2);
    Tensor::cat(
        vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos.clone() + first * sin.clone()],
        2,
    )
}
