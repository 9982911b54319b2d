//! Observes a forward pass: its intermediate results, and its operations in order.

use std::collections::BTreeMap;

/// The operations of a forward pass. The engines of all phases report these, so that their profiles have the same rows. A kernel that fuses
/// several operations reports the last of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// The attention mask, and the rotation's sines and cosines.
    Mask,
    Embed,
    AttentionNorm,
    Qkv,
    Rope,
    /// Writes new keys and values to the cache.
    CacheAppend,
    /// Scores, softmax with sinks, and the weighted sum of values.
    Attention,
    AttentionOut,
    MlpNorm,
    /// Logits of the experts, the choice of experts and their weights.
    Router,
    /// Both projections of the chosen experts, and SwiGLU.
    GateUp,
    /// The last projection of the chosen experts, and their weighted sum.
    Down,
    HeadNorm,
    Head,
}

impl Operation {
    pub const ALL: [Operation; 14] = [
        Operation::Mask,
        Operation::Embed,
        Operation::AttentionNorm,
        Operation::Qkv,
        Operation::Rope,
        Operation::CacheAppend,
        Operation::Attention,
        Operation::AttentionOut,
        Operation::MlpNorm,
        Operation::Router,
        Operation::GateUp,
        Operation::Down,
        Operation::HeadNorm,
        Operation::Head,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Operation::Mask => "mask",
            Operation::Embed => "embed",
            Operation::AttentionNorm => "attn.norm",
            Operation::Qkv => "attn.qkv",
            Operation::Rope => "attn.rope",
            Operation::CacheAppend => "attn.cache",
            Operation::Attention => "attn.scores",
            Operation::AttentionOut => "attn.out",
            Operation::MlpNorm => "moe.norm",
            Operation::Router => "moe.router",
            Operation::GateUp => "moe.gate_up",
            Operation::Down => "moe.down",
            Operation::HeadNorm => "head.norm",
            Operation::Head => "head",
        }
    }
}

/// One operation of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub operation: Operation,
    /// `None` outside the layers.
    pub layer: Option<usize>,
    /// Number of rows computed: new tokens, or for the head the positions whose logits are requested.
    pub tokens: usize,
    /// Number of sequences. Costs are computed as if each had the same number of rows.
    pub sequences: usize,
    /// Number of keys of a sequence in this layer. In phase 5 those that its new tokens attend to together: of the step's last sequence on
    /// the CPU, of the longest one on a GPU. In phases 2 and 3 all that attention reads, masked ones included. 0 for operations other than
    /// attention and the append to the cache.
    pub keys: usize,
}

/// An intermediate result on the host: its shape `[positions, width]` and its values, row by row.
pub type Activation = ([usize; 2], Vec<f32>);

/// Observes a step. The default methods do nothing.
pub trait Probe {
    /// Called with each intermediate result, by name: `embed`, `layers.N.resid_attn`, `layers.N.router_logits`, `layers.N.resid_mlp`,
    /// `final_norm`. `value` waits for the device and copies the result to the host.
    fn observe(&mut self, _name: &dyn Fn() -> String, _value: &dyn Fn() -> Activation) {}

    /// Called when an operation has been computed, or on a device when all its kernels have been launched. The operation began at the call
    /// for the one before it.
    fn done(&mut self, _: Span) {}
}

/// Observes nothing.
pub struct NoProbe;

impl Probe for NoProbe {}

/// Copies every intermediate result to the host and keeps it.
#[derive(Default)]
pub struct Dump {
    pub tensors: BTreeMap<String, Activation>,
}

impl Probe for Dump {
    fn observe(&mut self, name: &dyn Fn() -> String, value: &dyn Fn() -> Activation) {
        self.tensors.insert(name(), value());
    }
}
