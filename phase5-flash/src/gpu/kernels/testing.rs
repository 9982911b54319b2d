//! What the kernels' tests share.

use cubecl::Device;
use cubecl::wgpu::{RuntimeOptions, WgpuSetup, init_device, wgpu};
use phase2_forward::ComputeDevice;

use crate::gpu::device::{Buffer, Gpu};

/// A GPU, played by a program if there is no real one.
pub fn gpu() -> Gpu {
    let [_, gpu] = ComputeDevice::for_gates().expect("a GPU, or a program that plays one");
    Gpu::new(&gpu).expect("a client")
}

/// A device that no other test uses.
pub struct OwnDevice {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub gpu: Gpu,
}

impl OwnDevice {
    /// A device with `shared` bytes of shared memory.
    pub fn new(shared: u32) -> OwnDevice {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapters = cubecl::future::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let adapter = adapters.into_iter().next().expect("a GPU, or a program that plays one");
        let request = wgpu::DeviceDescriptor {
            required_features: adapter.features() & !wgpu::Features::all_experimental_mask(),
            required_limits: wgpu::Limits { max_compute_workgroup_storage_size: shared, ..adapter.limits() },
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = cubecl::future::block_on(adapter.request_device(&request)).expect("a device");
        let backend = adapter.get_info().backend;
        let setup = WgpuSetup { instance, adapter, device: device.clone(), queue: queue.clone(), backend };
        let cube = Device::Wgpu(init_device(setup, RuntimeOptions { tasks_max: 256, ..RuntimeOptions::default() }));
        OwnDevice { device, queue, gpu: Gpu::reached_by(cube.client(), cube, None).expect("runs") }
    }
}

/// A buffer that no kernel has written.
pub fn poisoned(gpu: &Gpu, len: usize) -> Buffer {
    gpu.upload_f32(&vec![f32::NAN; len])
}

/// Fresh numbers, the same again for the same seed.
#[derive(Debug)]
pub struct Random {
    /// Where the numbers began: for a failure's message.
    #[allow(dead_code, reason = "it is printed")]
    seed: u64,
    state: u64,
}

impl Random {
    pub fn fresh() -> Random {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let seed = now.as_nanos() as u64 | 1;
        Random { seed, state: seed }
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((self.state >> 33) % end as u64) as usize
    }

    /// Uniform on `[−spread, spread]`.
    pub fn values(&mut self, count: usize, spread: f32) -> Vec<f32> {
        (0..count).map(|_| (self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0) * spread).collect()
    }
}

/// `size` is the sum of the terms' magnitudes: rounding errors are relative to it.
#[track_caller]
pub fn assert_close(found: f32, expected: f64, size: f64, context: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= 2e-6 * size + 1e-30, "{context}: {found}, expected {expected} (error {error:e}, size {size:e})");
}
