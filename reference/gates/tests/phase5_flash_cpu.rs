//! Phase 5's gate on the CPU.

use gates::flash_cpu;
use gptoss_reference::Case;
use phase1_loading::YarnRamp;

#[test]
fn every_instruction_set_computes_what_mlx_computes() {
    for case in Case::committed() {
        for ramp in YarnRamp::ALL {
            let checks = flash_cpu::run(&case, ramp).expect("the gate runs");
            assert!(!checks.is_empty());
            let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
            assert!(failed.is_empty(), "{failed:#?}");
        }
    }
}
