//! The gates: compare what each phase computes on the golden cases with what MLX computes, and what phase 1 decodes with what the `gguf`
//! Python package decodes.
//!
//! There is one module each for phases 1, 2 and 3, two for phase 5, and [`engine`] for any engine. [`run`] runs a gate on all cases;
//! `gptoss gates` and the tests call it or the modules. [`seam`] is a stress test of the trait `Engine`, [`refusals`] a list of invalid
//! requests, and [`nan`] a test of NaN logits; these three need no golden files. No engine depends on this crate.

mod checks;
pub mod engine;
pub mod flash_cpu;
pub mod flash_gpu;
pub mod forward;
pub mod kv_cache;
pub mod loading;
pub mod nan;
pub mod refusals;
pub mod seam;

use std::error::Error;
use std::path::Path;

pub use checks::Checks;
use gptoss_reference::GoldenError;
pub use gptoss_reference::{Case, Check, Folder, Limit};
use phase1_loading::YarnRamp;
use phase2_forward::ComputeDevice;

/// The gates: one for each phase except 4, which measures and computes nothing to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Loading = 1,
    Forward = 2,
    KvCache = 3,
    Flash = 5,
}

impl Gate {
    /// All gates, in the order in which they must pass.
    pub const ALL: [Gate; 4] = [Gate::Loading, Gate::Forward, Gate::KvCache, Gate::Flash];

    /// The phase's number.
    pub const fn phase(self) -> u8 {
        self as u8
    }
}

/// The golden cases and the golden model folders.
pub struct Goldens {
    cases: Vec<Case>,
    folders: Vec<Folder>,
}

impl Goldens {
    /// # Errors
    /// As [`Case::all`].
    pub fn open(path: &Path) -> Result<Goldens, GoldenError> {
        Ok(Goldens { cases: Case::all(path)?, folders: Folder::all(path)? })
    }

    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    pub fn folders(&self) -> &[Folder] {
        &self.folders
    }
}

/// A gate that could not be completed.
#[derive(Debug, thiserror::Error)]
#[error("phase {phase}, case {case}: {reason}")]
pub struct GateError {
    phase: u8,
    case: String,
    reason: String,
}

/// Runs a gate on all cases on a device, and phase 2's also on all folders. Phase 1 always decodes on the host.
///
/// # Errors
/// A model or golden file cannot be read, or the engine fails.
pub fn run(gate: Gate, goldens: &Goldens, device: &ComputeDevice) -> Result<Vec<Check>, GateError> {
    let in_case = |case: &str, reason: &dyn Error| GateError {
        phase: gate.phase(),
        case: case.to_owned(),
        reason: reason.to_string(),
    };
    let mut checks = Vec::new();
    for case in &goldens.cases {
        checks.extend(run_case(gate, case, device).map_err(|error| in_case(&case.name, &*error))?);
    }
    // The folders test how weights are stored, which one gate suffices for: phase 2's, the first that computes with the weights.
    if gate == Gate::Forward {
        let scratch = std::env::temp_dir().join(format!("gptoss-gates-{}", std::process::id()));
        for folder in &goldens.folders {
            let in_folder = |error: &dyn Error| in_case(&folder.name, error);
            std::fs::create_dir_all(&scratch).map_err(|error| in_folder(&error))?;
            let found = with_each_ramp(|ramp| forward::run_folder(folder, device, ramp, &scratch));
            std::fs::remove_dir_all(&scratch).map_err(|error| in_folder(&error))?;
            checks.extend(found.map_err(|error| in_folder(&*error))?);
        }
    }
    Ok(checks)
}

fn run_case(gate: Gate, case: &Case, device: &ComputeDevice) -> Checks {
    match gate {
        Gate::Loading => loading::run(case),
        Gate::Forward => with_each_ramp(|ramp| forward::run(case, device, ramp)),
        Gate::KvCache => with_each_ramp(|ramp| kv_cache::run(case, device, ramp)),
        Gate::Flash if device.is_cpu() => with_each_ramp(|ramp| flash_cpu::run(case, ramp)),
        Gate::Flash => with_each_ramp(|ramp| flash_gpu::run(case, device, ramp)),
    }
}

fn with_each_ramp(run: impl Fn(YarnRamp) -> Checks) -> Checks {
    let mut checks = Vec::new();
    for ramp in YarnRamp::ALL {
        checks.extend(run(ramp)?);
    }
    Ok(checks)
}
