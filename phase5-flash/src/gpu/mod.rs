//! The GPU half of phase 5: CubeCL kernels that do a layer in a handful of launches.

pub mod bench;
mod cache;
mod captured;
mod choice;
mod device;
mod engine;
mod error;
mod kernels;
mod layout;
mod pass;
mod rows;
mod saved;
mod scratch;
mod step;
mod tune;
mod tuning;
mod weights;

pub use engine::{GpuEngine, Options, Tiles};
pub use error::GpuError;
pub use tune::{Tuned, tune};
pub use tuning::{TunedFor, Tuning, TuningError};
