//! Phase 5's gate on a GPU: phase 3's, unchanged with `exact`; and with every product in tiles, within what 16-bit floats cost.

use gptoss_reference::{Case, Check, Limit};
use phase1_loading::YarnRamp;
use phase2_forward::{ComputeDevice, Engine};
use phase5_flash::gpu::{GpuEngine, Options, Tiles};

use crate::checks::{Checks, open};
use crate::forward::check_values;
use crate::kv_cache::{CHUNKS, check_chunked, check_engine};

/// What 16-bit weights and inputs may cost, in shares of a tensor's deviation.
const HALVES: Limit = Limit { rms: 5e-3, max: 5e-2 };

/// Loads the case's model and checks the engine: in one piece, in chunks, its cache and its own generation. Then, with every
/// product in tiles for matrix units, values and the choice of experts in one piece, and logits in chunks. An adapter without
/// matrix units emulates them in f32.
///
/// # Errors
/// A model or golden that cannot be read, or a device that fails.
pub fn run(case: &Case, device: &ComputeDevice, ramp: YarnRamp) -> Checks {
    let checkpoint = open(&case.model(), ramp)?;
    let load = |options| GpuEngine::load(&checkpoint, device, options, &mut |_, _| ());
    let mut engine = load(Options { exact: true, ..Options::default() })?;
    let mut checks = check_engine(case, ramp, &mut engine, &checkpoint)?;

    let mut engine = load(Options { tiles: Tiles::Always, ..Options::default() })?;
    let (limit, name) =
        if engine.has_matrix_units() { (HALVES, "16-bit tiles") } else { (Limit::F32, "emulated tiles") };
    let (mut tiled, _) = check_values(case, ramp, &mut engine, limit)?;
    for chunk in CHUNKS {
        tiled.push(check_chunked(case, ramp, &mut engine, chunk, limit)?);
        engine.release(0);
    }
    checks.extend(tiled.into_iter().map(|check| Check { tensor: format!("{name} {}", check.tensor), ..check }));
    Ok(checks)
}
