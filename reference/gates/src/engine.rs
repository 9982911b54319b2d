//! A gate (comparison with MLX's golden outputs) for any engine, which uses only its public interface: logits in one step and in chunks,
//! and generated tokens.

use std::error::Error;

use gptoss_reference::{Case, Check, Folder, Limit};
use phase1_loading::{Checkpoint, YarnRamp};
use phase2_forward::Engine;

use crate::checks::Checks;
use crate::kv_cache::{CHUNKS, check_chunked, check_generation};

/// Longer than any golden case, and within the step limit of every engine.
const WHOLE: usize = 512;

/// Checks an engine that has loaded the case's model, `checkpoint`. Greedy tokens are compared only if `limit` is not above that of f32.
///
/// # Errors
/// A golden file cannot be read, or the engine refuses the tokens.
pub fn run(case: &Case, ramp: YarnRamp, engine: &mut dyn Engine, checkpoint: &Checkpoint, limit: Limit) -> Checks {
    let mut checks = Vec::new();
    for chunk in [WHOLE].into_iter().chain(CHUNKS) {
        checks.push(check_chunked(case, ramp, engine, chunk, limit)?);
        engine.release(0);
    }
    if limit.max <= Limit::F32.max {
        checks.push(check_generation(case, ramp, engine, checkpoint)?);
    }
    Ok(checks)
}

/// Checks the logits of an engine that has loaded one of the golden model folders.
///
/// # Errors
/// As [`run`].
pub fn run_folder(
    folder: &Folder,
    ramp: YarnRamp,
    engine: &mut dyn Engine,
    limit: Limit,
) -> Result<Check, Box<dyn Error>> {
    let golden = folder.golden()?;
    let logits = engine.all_logits(0, &golden.u32s("tokens")?)?;
    engine.release(0);
    let (name, label) = (format!("logits.{}", ramp.name()), format!("logits of the folder ({})", ramp.name()));
    Ok(Check::values(&folder.name, label, &golden.f32s(&name)?, &logits, limit))
}
