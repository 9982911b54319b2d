//! Why a device cannot run a kernel, or cannot go on.

use cubecl::server::{IoError, LaunchError, ResourceLimitError, ServerError};

/// Every message names what is missing and how much of it is needed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A buffer larger than one binding may span.
    #[error("{what} needs {need} bytes in one piece and this adapter binds at most {limit}")]
    Limit { what: String, need: u64, limit: u64 },
    /// A kernel that needs more of a resource than the device has.
    #[error("a kernel needs {need} {what} and this adapter has {limit}")]
    Kernel { what: &'static str, need: u64, limit: u64 },
    /// Less memory than is needed, by the driver's own figure and before anything was allocated.
    #[error(
        "{what} needs {:.2} GB more and {:.2} of this adapter's {:.2} GB are taken",
        gigabytes(need),
        gigabytes(taken),
        gigabytes(limit)
    )]
    Memory { what: String, need: u64, taken: u64, limit: u64 },
    /// An allocation that the driver refused.
    #[error("the driver found no memory for {:.2} GB", gigabytes(size))]
    OutOfMemory { size: u64 },
    /// A shape that no kernel takes.
    #[error("{0}")]
    Shape(String),
    /// The device is gone; nothing on it can be used again.
    #[error("the device was lost ({0}): its driver was reset, or it is gone")]
    Lost(String),
    #[error("the device failed: {0}")]
    Device(String),
}

fn gigabytes(bytes: &u64) -> f64 {
    *bytes as f64 / 1e9
}

impl From<ServerError> for Error {
    fn from(error: ServerError) -> Error {
        match error {
            // Work that was never done says why, at the end of a chain.
            ServerError::Unwritten { root, .. } => (*root).into(),
            ServerError::Several { mut errors, .. } if !errors.is_empty() => errors.remove(0).into(),
            ServerError::DevicePoisoned(lost) | ServerError::Launch(LaunchError::DevicePoisoned(lost)) => {
                Error::Lost(lost.reason)
            }
            ServerError::Launch(LaunchError::TooManyResources(limit)) => limit.into(),
            ServerError::Io(IoError::OutOfMemory { size, .. } | IoError::BufferTooBig { size, .. }) => {
                Error::OutOfMemory { size }
            }
            // What follows is where in the driver it was noticed.
            other => Error::Device(other.to_string().split("\nBacktrace").next().unwrap_or_default().to_owned()),
        }
    }
}

impl From<ResourceLimitError> for Error {
    fn from(limit: ResourceLimitError) -> Error {
        match limit {
            ResourceLimitError::SharedMemory { requested, max, .. } => {
                Error::Kernel { what: "bytes of shared memory", need: requested as u64, limit: max as u64 }
            }
            ResourceLimitError::Units { requested, max, .. } => {
                Error::Kernel { what: "units in a cube", need: requested.into(), limit: max.into() }
            }
            ResourceLimitError::CubeDim { requested, max, .. } => {
                Error::Kernel { what: "units in a row of a cube", need: requested.0.into(), limit: max.0.into() }
            }
        }
    }
}
