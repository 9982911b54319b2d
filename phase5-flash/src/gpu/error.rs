//! Why a model cannot run, or cannot go on, on a GPU.

use phase1_loading::LoadError;

/// Every message names what is missing, how much of it is needed and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("{0} is no GPU; phase 5 on a GPU needs --device gpu or software")]
    NoGpu(String),
    #[error(
        "{what} needs {need} bytes in one piece and this adapter binds at most {limit}; use --device cpu or another adapter"
    )]
    Limit { what: String, need: u64, limit: u64 },
    #[error("{0}")]
    Shape(String),
    #[error("the device failed: {0}; its driver may have been reset, and the model must be loaded again")]
    Device(String),
    #[error(
        "the logits after {position} tokens are not numbers; the weights may be damaged: `gptoss inspect --check` names the tensor"
    )]
    NotANumber { position: usize },
    #[error(transparent)]
    Load(#[from] LoadError),
}
