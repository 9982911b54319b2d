//! Phase 5's gate on the CPU: phase 3's, unchanged with `exact`, and the fast mode's logits within wider limits.

use gptoss_reference::{Case, Check, Limit};
use phase1_loading::YarnRamp;
use phase2_forward::Engine;
use phase3_kvcache::CacheType;
use phase5_flash::cpu::Isa;
use phase5_flash::{CpuEngine, CpuOptions};

use crate::checks::{Checks, open};
use crate::kv_cache::{CHUNKS, check_chunked, check_engine};

/// What 16-bit activations and a rounded cache may cost, in shares of the logits' deviation.
const FAST: Limit = Limit { rms: 1e-2, max: 1e-1 };
/// What keys and values of 8 bits cost these models of random weights: 5e-2 was measured, a mistake costs 1.
const ROUNDED_TO_8_BITS: Limit = Limit { rms: 1e-1, max: 1.0 };

/// Loads the case's model and checks the engine on every instruction set of this machine: exactly as phase 3 is checked, then
/// the fast mode's logits with each type of cache.
///
/// # Errors
/// A model or golden that cannot be read.
pub fn run(case: &Case, ramp: YarnRamp) -> Checks {
    let checkpoint = open(&case.model(), ramp)?;
    let mut checks = Vec::new();
    for isa in Isa::all() {
        // Three threads on any machine: more than one, and no divisor of anything.
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
