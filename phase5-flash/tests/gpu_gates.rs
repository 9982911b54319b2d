//! Phase 5's gate on a GPU, or on a program that plays one.

use gptoss_reference::Case;
use phase1_loading::YarnRamp;
use phase2_forward::ComputeDevice;
use phase5_flash::gpu::gate;

#[test]
fn fused_kernels_change_nothing() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    for case in Case::committed() {
        for ramp in YarnRamp::ALL {
            let checks = gate::run(&case, &gpu, ramp).expect("the gate runs");
            assert!(!checks.is_empty());
            let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
            assert!(failed.is_empty(), "{}: {failed:#?}", gpu.name);
        }
    }
}
