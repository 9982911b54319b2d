//! The result type of gates (comparisons of engines with MLX's golden outputs), and the function with which they open a model.

use std::error::Error;
use std::path::Path;

use gptoss_reference::Check;
use phase1_loading::{Checkpoint, LoadError, YarnRamp};

/// The checks of a gate on one case.
pub type Checks = Result<Vec<Check>, Box<dyn Error>>;

/// Opens a checkpoint and sets this ramp in its configuration.
pub(crate) fn open(path: &Path, ramp: YarnRamp) -> Result<Checkpoint, LoadError> {
    let mut checkpoint = Checkpoint::open(path)?;
    checkpoint.config.rope.ramp = ramp;
    Ok(checkpoint)
}
