//! Phase 5's gate on a GPU, or on a program that plays one.

use gptoss_reference::{Case, RopeMode};
use phase2_forward::ComputeDevice;
use phase5_flash::gpu::gate;

#[test]
fn fused_kernels_change_nothing() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    for case in Case::committed() {
        for rope in RopeMode::ALL {
            let checks = gate::run(&case, &gpu, rope).expect("the gate runs");
            assert!(!checks.is_empty());
            let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
            assert!(failed.is_empty(), "{}: {failed:#?}", gpu.name);
        }
    }
}
