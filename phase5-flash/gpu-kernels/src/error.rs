//! Errors of a device: why it cannot run a kernel, or has failed.

use cubecl::server::{IoError, LaunchError, ResourceLimitError, ServerError};

/// Why a device could not run a kernel or allocate memory. Messages about a limit name the limit and the required amount.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A buffer larger than one binding may span.
    #[error("{what} needs a buffer of {need} bytes, but this adapter binds at most {limit}")]
    Limit { what: String, need: u64, limit: u64 },
    /// A kernel needs more of a resource than the device has.
    #[error("a kernel needs {need} {what}, but this adapter has {limit}")]
    Kernel { what: &'static str, need: u64, limit: u64 },
    /// Too little memory according to the driver. This is detected before anything is allocated.
    #[error(
        "{what} needs {:.2} GB more, but {:.2} of this adapter's {:.2} GB are in use",
        gigabytes(need),
        gigabytes(taken),
        gigabytes(limit)
    )]
    Memory { what: String, need: u64, taken: u64, limit: u64 },
    /// An allocation that the driver refused.
    #[error("the driver could not allocate {:.2} GB", gigabytes(size))]
    OutOfMemory { size: u64 },
    /// A shape that no kernel supports.
    #[error("{0}")]
    Shape(String),
    /// The device is lost; nothing on it can be used again.
    #[error("the device was lost ({0}): its driver was reset, or it was removed")]
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
            // If work was skipped because of an earlier error, the root of the chain is the reason.
            ServerError::Unwritten { root, .. } => (*root).into(),
            ServerError::Several { mut errors, .. } if !errors.is_empty() => errors.remove(0).into(),
            ServerError::DevicePoisoned(lost) | ServerError::Launch(LaunchError::DevicePoisoned(lost)) => {
                Error::Lost(lost.reason)
            }
            ServerError::Launch(LaunchError::TooManyResources(limit)) => limit.into(),
            ServerError::Io(IoError::OutOfMemory { size, .. } | IoError::BufferTooBig { size, .. }) => {
                Error::OutOfMemory { size }
            }
            // The rest of the text is the driver's backtrace.
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
