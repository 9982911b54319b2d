//! The gate of phase 5 on a GPU: everything that phase 3 is held to.

use std::error::Error;

use gptoss_reference::{Case, Check, RopeMode};
use phase1_loading::Checkpoint;
use phase2_forward::ComputeDevice;
use phase3_kvcache::gate::check_engine;

use super::{GpuEngine, Options};

/// Loads the case's model and checks the engine: in one piece, in chunks, its cache and its own generation.
///
/// # Errors
/// A model or golden that cannot be read, or a device that fails.
pub fn run(case: &Case, device: &ComputeDevice, rope: RopeMode) -> Result<Vec<Check>, Box<dyn Error>> {
    let checkpoint = Checkpoint::open(&case.model())?;
    let mut engine = GpuEngine::load(&checkpoint, device, rope, Options::default(), &mut |_, _| ())?;
    check_engine(case, rope, &mut engine, &checkpoint)
}
