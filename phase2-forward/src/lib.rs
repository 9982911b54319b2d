//! Phase 2: computes logits from a model's tensors. The model is written in Burn and processes whole sequences, without a cache.
//!
//! [`GptOss`] is the architecture, from top to bottom in `model.rs`. [`Engine`] is the interface that every engine implements;
//! [`RecomputeEngine`] is its simplest implementation, which runs the whole sequence again in every step. `draw.rs` defines how a token
//! is drawn from logits, for all engines.
//!
//! This crate does not decide when generation stops, and keeps no keys or values between calls.

mod check;
mod delegate;
mod device;
mod difference;
mod draw;
mod engine;
mod model;
mod packed;
pub mod plain;
mod probe;
mod recompute;
mod rope;
mod sample;

pub use check::check_work;
pub use device::{AdapterReport, ComputeDevice, DeviceChoice, DeviceError, ModelNeeds, register};
pub use difference::relative_rms;
pub use draw::{Adjustment, Draw, DrawnToken, HostDraw, Logprobs, MAX_LOGPROBS, Sampling, argmax, draw_number};
pub use engine::{
    BadRequest, Capacity, Engine, EngineError, Input, Inspect, Outcome, SequenceId, Snapshot, Snapshots, Ticket, Want,
    Work,
};
pub use model::{GptOss, KvCache};
pub use packed::{PackedMatrix, packed_matmul};
pub use probe::{Activation, Dump, NoProbe, Operation, Probe, Span};
pub use recompute::RecomputeEngine;
pub use rope::Rope;
pub use sample::sample_tokens;
