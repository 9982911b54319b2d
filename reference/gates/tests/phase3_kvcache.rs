//! Phase 3's gate, on the CPU and on a GPU.

use gates::kv_cache;
use gptoss_reference::Case;
use phase1_loading::YarnRamp;
use phase2_forward::ComputeDevice;

fn run(device: &ComputeDevice) {
    for case in Case::committed() {
        for ramp in YarnRamp::ALL {
            let checks = kv_cache::run(&case, device, ramp).expect("the gate runs");
            assert!(!checks.is_empty());
            let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
            assert!(failed.is_empty(), "{}: {failed:#?}", device.name);
        }
    }
}

#[test]
fn the_cache_changes_nothing_on_the_cpu() {
    let [cpu, _] = ComputeDevice::for_gates().expect("both devices");
    run(&cpu);
}

#[test]
fn the_cache_changes_nothing_on_a_gpu() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    run(&gpu);
}
