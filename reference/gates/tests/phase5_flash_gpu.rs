//! Phase 5's gate, a comparison with MLX's golden outputs, on a GPU or a software rasterizer.

mod committed;

use gates::flash_gpu;
use phase2_forward::ComputeDevice;

#[test]
fn fused_kernels_equal_mlx() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    committed::pass(|case, ramp| flash_gpu::run(case, &gpu, ramp));
}
