//! The GPU half of phase 5: CubeCL kernels that do a layer in a handful of launches.

mod cache;
mod device;
mod error;
mod kernels;
mod layout;
mod rows;

pub use error::GpuError;
