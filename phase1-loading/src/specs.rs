//! The tensors that a configuration requires, and how each may be stored.

use crate::config::GptOssConfig;
use crate::error::Defect;
use crate::tensor::HostTensor;

/// A tensor's purpose, which decides how it may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorRole {
    /// A stack of the experts' matrices, `[experts, out, in]`.
    Experts,
    /// Any other matrix, `[out, in]`.
    Matrix,
    /// The router's matrix, `[experts, hidden]`.
    Router,
    /// A norm's weight, a bias or the sinks: a vector, or `[experts, out]` for the experts' biases.
    Vector,
}

/// A tensor that a configuration requires.
pub struct TensorSpec {
    pub name: String,
    /// Row-major, as [`HostTensor::shape`].
    pub shape: Vec<usize>,
    pub role: TensorRole,
}

/// Every tensor of a model with this configuration, in the order in which `convert` and the crate `synthetic` write them.
pub fn tensor_specs(config: &GptOssConfig) -> Vec<TensorSpec> {
    let (hidden, width, experts) = (config.hidden, config.expert_width, config.experts);
    let q = config.heads * config.head_dim;
    let kv = config.kv_heads * config.head_dim;
    let mut specs = Vec::new();
    let mut add = |name: String, shape: &[usize], role| {
        let shape = shape.to_vec();
        specs.push(TensorSpec { name, shape, role });
    };
    add("token_embd.weight".into(), &[config.vocab, hidden], TensorRole::Matrix);
    for layer in 0..config.layers() {
        let mut add = |name: &str, shape: &[usize], role| add(format!("blk.{layer}.{name}"), shape, role);
        add("attn_norm.weight", &[hidden], TensorRole::Vector);
        for (projection, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
            add(&format!("{projection}.weight"), &[rows, hidden], TensorRole::Matrix);
            add(&format!("{projection}.bias"), &[rows], TensorRole::Vector);
        }
        add("attn_output.weight", &[hidden, q], TensorRole::Matrix);
        add("attn_output.bias", &[hidden], TensorRole::Vector);
        add("attn_sinks.weight", &[config.heads], TensorRole::Vector);
        add("post_attention_norm.weight", &[hidden], TensorRole::Vector);
        add("ffn_gate_inp.weight", &[experts, hidden], TensorRole::Router);
        add("ffn_gate_inp.bias", &[experts], TensorRole::Vector);
        for (projection, rows, columns) in
            [("ffn_gate_exps", width, hidden), ("ffn_up_exps", width, hidden), ("ffn_down_exps", hidden, width)]
        {
            add(&format!("{projection}.weight"), &[experts, rows, columns], TensorRole::Experts);
            add(&format!("{projection}.bias"), &[experts, rows], TensorRole::Vector);
        }
    }
    add("output_norm.weight".into(), &[hidden], TensorRole::Vector);
    add("output.weight".into(), &[config.vocab, hidden], TensorRole::Matrix);
    specs
}

/// Checks the tensor that was found for a specification.
pub(crate) fn check_tensor(spec: &TensorSpec, found: Option<HostTensor>) -> Result<HostTensor, Defect> {
    let part = format!("tensor `{}`", spec.name);
    let shape = format!("shape {:?}", spec.shape);
    let Some(tensor) = found else {
        return Err(Defect::new(part, shape, "no such tensor"));
    };
    if tensor.shape != spec.shape {
        return Err(Defect::new(part, shape, format!("shape {:?}", tensor.shape)));
    }
    if spec.role == TensorRole::Vector && tensor.format.block_len() > 1 {
        let found = tensor.format.name();
        return Err(Defect::new(part, "a vector of F32, F16 or BF16", found));
    }
    Ok(tensor)
}
