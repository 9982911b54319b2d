//! The GPU half of phase 5: a model's layers in a handful of launches each, on the kernels of `gpu-kernels`.

pub mod bench;
mod buffers;
mod cache;
mod captured;
mod choice;
mod engine;
mod error;
mod forward;
mod plan;
mod saved;
mod step;
mod tune;
mod tuning;
mod weights;

pub use engine::{GpuEngine, Options, Tiles};
pub use error::GpuError;
pub use tune::{Tuned, tune};
pub use tuning::{TunedFor, Tuning, TuningError};
