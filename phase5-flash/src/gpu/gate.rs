//! The gate of phase 5 on a GPU: everything that phase 3 is held to, in f32; and products in tiles for matrix units within what
//! 16-bit floats may cost.

use std::error::Error;

use gptoss_reference::{Case, Check, Limit};
use phase1_loading::{Checkpoint, YarnRamp};
use phase2_forward::gate::check_values;
use phase2_forward::{ComputeDevice, Engine};
use phase3_kvcache::gate::{CHUNKS, check_chunked, check_engine};

use super::device::Gpu;
use super::kernels::fragments::Planes;
use super::tuning::Tuning;
use super::{GpuEngine, Options};

/// What 16-bit weights and inputs may cost, in shares of a tensor's deviation.
const HALVES: Limit = Limit { rms: 5e-3, max: 5e-2 };

/// Loads the case's model and checks the engine: in one piece, in chunks, its cache and its own generation. Then, with every product
/// in tiles for matrix units, values and the choice of experts in one piece, and logits in chunks; an adapter that has no such units
/// plays them, in f32.
///
/// # Errors
/// A model or golden that cannot be read, or a device that fails.
pub fn run(case: &Case, device: &ComputeDevice, ramp: YarnRamp) -> Result<Vec<Check>, Box<dyn Error>> {
    let mut checkpoint = Checkpoint::open(&case.model())?;
    checkpoint.config.rope.ramp = ramp;
    let options = Options { exact: true, ..Options::default() };
    let mut engine = GpuEngine::load(&checkpoint, device, options, &mut |_, _| ())?;
    let mut checks = check_engine(case, ramp, &mut engine, &checkpoint)?;

    let gpu = Gpu::new(device)?;
    let planes = gpu.planes.unwrap_or(Planes::PLAYED);
    let (limit, name) = if planes.fragments { (HALVES, "16-bit tiles") } else { (Limit::F32, "played tiles") };
    let tuning = Tuning { single_rows: 1, tiled_rows: 2, tiled_slots: 1, ..Tuning::default() };
    let (gpu, options) = (Gpu { planes: Some(planes), ..gpu }, Options { tuning: Some(tuning), ..Options::default() });
    let mut engine = GpuEngine::load_on(gpu, device.burn.clone(), &checkpoint, options, &mut |_, _| ())?;
    let (mut tiled, _) = check_values(case, ramp, &mut engine, limit)?;
    for chunk in CHUNKS {
        tiled.push(check_chunked(case, ramp, &mut engine, chunk, limit)?);
        engine.release(0);
    }
    checks.extend(tiled.into_iter().map(|check| Check { tensor: format!("{name} {}", check.tensor), ..check }));
    Ok(checks)
}
