//! Phase 2: tensors become logits. The model in Burn, a whole sequence at a time, nothing cached.
//!
//! [`GptOss`] is the architecture, read top to bottom in `model.rs`. [`Engine`] is the seam that every later phase plugs
//! into; [`Recompute`] is its plainest implementation, which runs the whole sequence again for every token.
//!
//! This crate never samples, never decides when to stop and never keeps keys or values between calls.

mod device;
mod engine;
mod model;
mod packed;
mod probe;
mod recompute;
mod rope;

pub use device::{ComputeDevice, DeviceChoice, DeviceError, ModelNeeds, register};
pub use engine::{
    Choice, Chunk, Continuation, Engine, EngineError, LogitsFor, SequenceId, Snapshot, check_batch, read_back,
};
pub use model::{GptOss, KeyValues};
pub use packed::{PackedMatrix, f16_value, packed_matmul};
pub use probe::{Dump, NoProbe, Operation, Probe, Span};
pub use recompute::Recompute;
pub use rope::Rope;
