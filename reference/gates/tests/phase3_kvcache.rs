//! Phase 3's gate, on the CPU and on a GPU.

mod committed;

use gates::kv_cache;
use phase2_forward::ComputeDevice;

#[test]
fn the_cache_changes_nothing_on_the_cpu() {
    let [cpu, _] = ComputeDevice::for_gates().expect("both devices");
    committed::pass(|case, ramp| kv_cache::run(case, &cpu, ramp));
}

#[test]
fn the_cache_changes_nothing_on_a_gpu() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    committed::pass(|case, ramp| kv_cache::run(case, &gpu, ramp));
}
