//! Reading an engine's cache, for tests and for comparisons with golden outputs (`gptoss gates`).

use burn::tensor::Tensor;
use phase2_forward::{Engine, SequenceId};

/// An engine whose cache can be read.
pub trait ReadCache: Engine {
    /// The cached positions of a sequence in `layer`, and the keys and values `[kv_heads, positions, head_dim]` in the same order. `None`
    /// for an unknown sequence, or a layer without cached positions.
    fn read_cache(&self, sequence: SequenceId, layer: usize) -> Option<(Vec<usize>, Tensor<3>, Tensor<3>)>;
}
