//! Errors of the GPU engine.

use gpu_kernels::Error;
use phase1_loading::LoadError;
use phase2_forward::EngineError;

/// Messages name the limit and the required amount, and suggest what to do, where there is such a limit or remedy.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("{0} cannot run the GPU engine of phase 5, which needs --device gpu or --device software")]
    NoGpu(String),
    #[error("{}{}", .0, remedy(.0))]
    Kernels(#[from] Error),
    #[error("{0}; use another --kv")]
    CacheFormat(#[source] Error),
    #[error(
        "a page of the KV cache takes {page} bytes, but only {given} bytes are available; allow at least \
         three pages (--kv-memory), or use --device cpu"
    )]
    NoCache { page: u64, given: u64 },
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What the user can do about the error.
fn remedy(error: &Error) -> &'static str {
    match error {
        Error::Limit { .. } => "; use --device cpu or another adapter",
        Error::Kernel { .. } => "; use --engine cached, --device cpu or another adapter",
        Error::Memory { .. } => "; use fewer or shorter sequences, a smaller cache (--kv q8_0), or --device cpu",
        Error::OutOfMemory { .. } => {
            "; close what else uses the GPU, or use a smaller cache (--kv q8_0) or --device cpu"
        }
        Error::Lost(_) => "; restart to load the model again",
        Error::Shape(_) => "; use --engine cached",
        Error::Device(_) => "",
    }
}

impl From<GpuError> for EngineError {
    fn from(error: GpuError) -> EngineError {
        match error {
            GpuError::Kernels(Error::Lost(reason)) => EngineError::Lost(reason),
            // Limits of the adapter, the model and the options do not change, so retrying is useless.
            GpuError::Kernels(Error::Kernel { .. } | Error::Limit { .. } | Error::Shape(_))
            | GpuError::CacheFormat(_)
            | GpuError::NoGpu(_) => EngineError::Unsupported(error.to_string()),
            _ => EngineError::Device(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_suggest_a_remedy() {
        let kernel = Error::Kernel { what: "units in a cube", need: 1024, limit: 256 };
        let expected = "a kernel needs 1024 units in a cube, but this adapter has 256; use --engine cached, --device cpu or \
                        another adapter";
        assert_eq!(GpuError::from(kernel).to_string(), expected);
        let lost = GpuError::from(Error::Lost("unplugged".into()));
        assert!(lost.to_string().ends_with("it was removed; restart to load the model again"), "{lost}");
        assert!(matches!(EngineError::from(lost), EngineError::Lost(reason) if reason == "unplugged"));
    }
}
