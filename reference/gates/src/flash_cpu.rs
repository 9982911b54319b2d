//! Phase 5's gate on the CPU: with `exact` the same as phase 3's, and wider limits for the logits of the fast mode.

use gptoss_reference::{Case, Check, Limit};
use phase1_loading::YarnRamp;
use phase2_forward::Engine;
use phase3_kvcache::CacheType;
use phase5_flash::cpu::Isa;
use phase5_flash::{CpuEngine, CpuOptions};

use crate::checks::{Checks, open};
use crate::kv_cache::{CHUNKS, check_chunked, check_engine};

/// The allowed error of 16-bit activations and a cache in f32 or f16, relative to the standard deviation of the logits.
const FAST: Limit = Limit { rms: 1e-2, max: 1e-1 };
/// The allowed error of 8-bit keys and values with the random weights of these models: 5e-2 was measured, and a bug gives about 1.
const ROUNDED_TO_8_BITS: Limit = Limit { rms: 1e-1, max: 1.0 };

/// Loads the case's model and checks the engine on every instruction set of this machine: first with `exact` as phase 3 is checked, then
/// the logits of the fast mode with each type of cache.
///
/// # Errors
/// A model or golden file cannot be read, or the engine fails.
pub fn run(case: &Case, ramp: YarnRamp) -> Checks {
    let checkpoint = open(&case.model(), ramp)?;
    let mut checks = Vec::new();
    for isa in Isa::all() {
        // Three threads on any machine: more than one, and not a divisor of powers of two, so that tasks are shared unevenly.
        let options = CpuOptions { threads: Some(3), exact: true, isa: Some(isa), ..CpuOptions::default() };
        let mut engine = CpuEngine::load(&checkpoint, options)?;
        let mut exact = check_engine(case, ramp, &mut engine, &checkpoint)?;
        for kv in CacheType::ALL {
            let mut engine = CpuEngine::load(&checkpoint, CpuOptions { exact: false, kv: Some(kv), ..options })?;
            let limit = if kv == CacheType::Q8_0 { ROUNDED_TO_8_BITS } else { FAST };
            for chunk in CHUNKS {
                let mut check = check_chunked(case, ramp, &mut engine, chunk, limit)?;
                check.tensor = format!("{kv} fast {}", check.tensor);
                exact.push(check);
                engine.release(0);
            }
        }
        checks.extend(exact.into_iter().map(|check| Check { tensor: format!("{isa} {}", check.tensor), ..check }));
    }
    Ok(checks)
}
