//! What every gate gives, and how it opens a model.

use std::error::Error;
use std::path::Path;

use gptoss_reference::Check;
use phase1_loading::{Checkpoint, LoadError, YarnRamp};

/// What a gate found in one case.
pub type Checks = Result<Vec<Check>, Box<dyn Error>>;

/// A checkpoint with this ramp in its configuration.
pub(crate) fn open(path: &Path, ramp: YarnRamp) -> Result<Checkpoint, LoadError> {
    let mut checkpoint = Checkpoint::open(path)?;
    checkpoint.config.rope.ramp = ramp;
    Ok(checkpoint)
}
