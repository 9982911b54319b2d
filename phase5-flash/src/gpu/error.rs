//! Why a model cannot run, or cannot go on, on a GPU.

use cubecl::server::{IoError, LaunchError, ResourceLimitError, ServerError};
use phase1_loading::LoadError;
use phase2_forward::EngineError;

/// Every message names what is missing, how much of it is needed and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("{0} is no GPU; phase 5 on a GPU needs --device gpu or software")]
    NoGpu(String),
    #[error(
        "{what} needs {need} bytes in one piece and this adapter binds at most {limit}; use --device cpu or another adapter"
    )]
    Limit { what: String, need: u64, limit: u64 },
    #[error(
        "a kernel needs {need} {what} and this adapter has {limit}; use --phase 3, --device cpu or another adapter"
    )]
    Kernel { what: &'static str, need: u64, limit: u64 },
    #[error(
        "{what} needs {:.2} GB more and {:.2} of this adapter's {:.2} GB are taken; use fewer or shorter sequences, a smaller cache \
         (--kv q8_0), or --device cpu",
        gigabytes(need),
        gigabytes(taken),
        gigabytes(limit)
    )]
    Memory { what: String, need: u64, taken: u64, limit: u64 },
    #[error(
        "the driver found no memory for {:.2} GB; close what else uses the GPU, or use a smaller cache (--kv q8_0) or --device cpu",
        gigabytes(size)
    )]
    OutOfMemory { size: u64 },
    #[error(
        "a page of the KV cache takes {page} bytes in all layers and {given} are given; give at least three pages (--kv-memory), \
         or use --device cpu"
    )]
    NoCache { page: u64, given: u64 },
    #[error("{0}")]
    Shape(String),
    #[error("the device was lost ({0}): its driver was reset, or it is gone; start again to load the model anew")]
    Lost(String),
    #[error("the device failed: {0}")]
    Device(String),
    #[error(transparent)]
    Load(#[from] LoadError),
}

fn gigabytes(bytes: &u64) -> f64 {
    *bytes as f64 / 1e9
}

impl From<GpuError> for EngineError {
    fn from(error: GpuError) -> EngineError {
        match error {
            GpuError::Lost(reason) => EngineError::Lost(reason),
            // What the adapter cannot do, it will not do the next time either.
            GpuError::Kernel { .. } | GpuError::Limit { .. } | GpuError::Shape(_) | GpuError::NoGpu(_) => {
                EngineError::Unsupported(error.to_string())
            }
            _ => EngineError::Device(error.to_string()),
        }
    }
}

impl From<ServerError> for GpuError {
    fn from(error: ServerError) -> GpuError {
        match error {
            // Work that was never done says why, at the end of a chain.
            ServerError::Unwritten { root, .. } => (*root).into(),
            ServerError::Several { mut errors, .. } if !errors.is_empty() => errors.remove(0).into(),
            ServerError::DevicePoisoned(lost) | ServerError::Launch(LaunchError::DevicePoisoned(lost)) => {
                GpuError::Lost(lost.reason)
            }
            ServerError::Launch(LaunchError::TooManyResources(limit)) => limit.into(),
            ServerError::Io(IoError::OutOfMemory { size, .. } | IoError::BufferTooBig { size, .. }) => {
                GpuError::OutOfMemory { size }
            }
            // What follows is where in the driver it was noticed.
            other => GpuError::Device(other.to_string().split("\nBacktrace").next().unwrap_or_default().to_owned()),
        }
    }
}

impl From<ResourceLimitError> for GpuError {
    fn from(limit: ResourceLimitError) -> GpuError {
        match limit {
            ResourceLimitError::SharedMemory { requested, max, .. } => {
                GpuError::Kernel { what: "bytes of shared memory", need: requested as u64, limit: max as u64 }
            }
            ResourceLimitError::Units { requested, max, .. } => {
                GpuError::Kernel { what: "units in a cube", need: requested.into(), limit: max.into() }
            }
            ResourceLimitError::CubeDim { requested, max, .. } => {
                GpuError::Kernel { what: "units in a row of a cube", need: requested.0.into(), limit: max.0.into() }
            }
        }
    }
}
