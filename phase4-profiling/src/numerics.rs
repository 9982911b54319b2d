//! Magnitudes of activations, and their difference from those of a reference, the engine of phase 2 in f32. The difference shows in which
//! layer a kernel is inaccurate.

use std::collections::BTreeMap;

use phase2_forward::{Activation, Dump, Probe, relative_rms};
use serde::Serialize;

/// The largest finite f16.
const F16_MAX: f32 = 65_504.0;
/// Fraction of [`F16_MAX`] above which values are at risk: with another prompt they may exceed it.
const RISK: f32 = 0.25;

/// One intermediate result of a step.
#[derive(Clone, Debug, Serialize)]
pub struct Numerics {
    /// Its name, as in [`Probe::observe`].
    pub name: String,
    /// The largest magnitude among the finite values.
    pub largest: f32,
    pub nans: usize,
    pub infinities: usize,
    pub f16: F16Range,
    /// [`relative_rms`] of the difference from the reference; `None` if there is no reference, or none of this name and length.
    pub error: Option<f64>,
}

/// Whether f16 can represent the largest finite value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum F16Range {
    Safe,
    Risk,
    Overflow,
}

/// Records every intermediate result of one step.
#[derive(Default)]
pub struct NumericsProbe {
    dump: Dump,
    order: Vec<String>,
}

impl Probe for NumericsProbe {
    fn observe(&mut self, name: &dyn Fn() -> String, value: &dyn Fn() -> Activation) {
        self.order.push(name());
        self.dump.observe(name, value);
    }
}

impl NumericsProbe {
    /// The recorded results in the order of the forward pass, compared with those that `reference` recorded for the same tokens.
    pub fn against(&self, reference: Option<&NumericsProbe>) -> Vec<Numerics> {
        let reference: Option<&BTreeMap<_, _>> = reference.map(|probe| &probe.dump.tensors);
        let of = |name: &String| {
            let values = &self.dump.tensors[name].1;
            let expected = reference.and_then(|tensors| tensors.get(name)).map(|(_, expected)| &**expected);
            Numerics::of(name.clone(), values, expected)
        };
        self.order.iter().map(of).collect()
    }
}

impl Numerics {
    fn of(name: String, values: &[f32], expected: Option<&[f32]>) -> Numerics {
        let largest = values.iter().filter(|x| x.is_finite()).fold(0.0f32, |most, x| most.max(x.abs()));
        let f16 = match largest {
            x if x > F16_MAX => F16Range::Overflow,
            x if x > RISK * F16_MAX => F16Range::Risk,
            _ => F16Range::Safe,
        };
        Numerics {
            name,
            largest,
            nans: values.iter().filter(|x| x.is_nan()).count(),
            infinities: values.iter().filter(|x| x.is_infinite()).count(),
            f16,
            error: expected
                .filter(|expected| expected.len() == values.len())
                .map(|expected| relative_rms(expected, values)),
        }
    }
}
