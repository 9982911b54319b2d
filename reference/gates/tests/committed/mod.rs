//! Runs a gate, a comparison of an engine with MLX's golden outputs, on the committed golden cases.

use gates::{Check, Checks};
use gptoss_reference::Case;
use phase1_loading::YarnRamp;

/// Runs a gate on each case with each ramp. All checks must pass; returns them.
pub fn pass(run: impl Fn(&Case, YarnRamp) -> Checks) -> Vec<Check> {
    let mut all = Vec::new();
    for case in Case::committed() {
        for ramp in YarnRamp::ALL {
            let checks = run(&case, ramp).expect("the gate runs");
            assert!(!checks.is_empty());
            let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
            assert!(failed.is_empty(), "{failed:#?}");
            all.extend(checks);
        }
    }
    all
}
