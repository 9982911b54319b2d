//! A look inside a forward pass.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

/// Sees intermediate results by name: `embed`, `layers.N.resid_attn`, `layers.N.router_logits`, `layers.N.resid_mlp`,
/// `final_norm`.
pub trait Probe {
    /// Called with each result, `[positions, width]`. Reading it back is the probe's business and cost.
    fn see(&mut self, name: &dyn Fn() -> String, value: &Tensor<2>);
}

/// Looks at nothing.
pub struct NoProbe;

impl Probe for NoProbe {
    fn see(&mut self, _: &dyn Fn() -> String, _: &Tensor<2>) {}
}

/// Keeps every result on the host.
#[derive(Default)]
pub struct Dump {
    /// By name: shape and values.
    pub tensors: BTreeMap<String, ([usize; 2], Vec<f32>)>,
}

impl Probe for Dump {
    fn see(&mut self, name: &dyn Fn() -> String, value: &Tensor<2>) {
        let values = value.to_data().try_to_vec().expect("activations are f32");
        self.tensors.insert(name(), (value.dims(), values));
    }
}
