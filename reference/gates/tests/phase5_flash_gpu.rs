//! Phase 5's gate on a GPU, or on a software rasterizer.

use gates::flash_gpu;
use gptoss_reference::Case;
use phase1_loading::YarnRamp;
use phase2_forward::ComputeDevice;

#[test]
fn fused_kernels_change_nothing() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    for case in Case::committed() {
        for ramp in YarnRamp::ALL {
            let checks = flash_gpu::run(&case, &gpu, ramp).expect("the gate runs");
            assert!(!checks.is_empty());
            let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
            assert!(failed.is_empty(), "{}: {failed:#?}", gpu.name);
        }
    }
}
