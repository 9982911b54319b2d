//! Compares phase 3's engine, which has a KV cache, with MLX's golden outputs, on the CPU and on a GPU.

mod committed;

use gates::kv_cache;
use phase2_forward::ComputeDevice;

#[test]
fn cached_forward_equals_mlx_on_the_cpu() {
    let [cpu, _] = ComputeDevice::for_gates().expect("both devices");
    committed::pass(|case, ramp| kv_cache::run(case, &cpu, ramp));
}

#[test]
fn cached_forward_equals_mlx_on_a_gpu() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    committed::pass(|case, ramp| kv_cache::run(case, &gpu, ramp));
}
