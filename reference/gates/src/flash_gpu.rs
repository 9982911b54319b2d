//! Phase 5's gate on a GPU, a comparison with MLX's golden values: with the option `exact`, the same checks as phase 3's; then with every
//! product in tiles for matrix units, within the error of 16-bit floats.

use gptoss_reference::{Case, Check, Limit};
use phase1_loading::YarnRamp;
use phase2_forward::{ComputeDevice, Engine};
use phase5_flash::gpu::{GpuEngine, Options, Tiles};

use crate::checks::{Checks, open};
use crate::forward::check_values;
use crate::kv_cache::{CHUNKS, check_chunked, check_engine};

/// The allowed error of 16-bit weights and inputs, relative to a tensor's standard deviation.
const HALVES: Limit = Limit { rms: 5e-3, max: 5e-2 };

/// Loads the case's model and checks the engine: in one step, in chunks, its cache and its generated tokens. Then, with every product in
/// tiles for matrix units, checks activations and the choice of experts in one step, and logits in one step and in chunks. An adapter
/// without matrix units emulates them in f32, and must then keep f32's limit.
///
/// # Errors
/// A model or golden file cannot be read, or the device fails.
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
