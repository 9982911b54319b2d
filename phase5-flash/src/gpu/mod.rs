//! The GPU engine of phase 5: each layer is a few launches of the kernels in `gpu-kernels`.

pub mod bench;
mod buffers;
mod cache;
mod captured;
mod choice;
mod engine;
mod error;
mod forward;
mod load_times;
mod plan;
mod saved;
mod step;
mod tune;
mod tuning;
mod warm_up;
mod weights;

pub use engine::{GpuEngine, Options, Tiles};
pub use error::GpuError;
pub use load_times::{Compiled, LoadTimes};
pub use tune::{Tuned, tune};
pub use tuning::{TunedFor, Tuning, TuningError};
pub use weights::in_order_of_upload;
