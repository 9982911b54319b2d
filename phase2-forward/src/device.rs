//! Compute devices: the CPU, or a GPU through wgpu.

mod adapter;
mod choice;
mod runtime;

use burn::tensor::Device;
use cubecl::client::Client;
use cubecl::wgpu::{WgpuDevice, WgpuDeviceKind, wgpu};

pub use choice::DeviceChoice;
pub use runtime::register;

/// A model's requirements on a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelNeeds {
    /// Bytes of its weights on the device.
    pub bytes: u64,
    pub layers: usize,
}

impl ModelNeeds {
    /// Kernel launches per GPU submission: enough for a whole decode step of phase 5's GPU engine, so that replaying a captured step
    /// takes one submission.
    pub fn tasks(self) -> usize {
        (10 * self.layers + 24).max(256)
    }
}

/// A device, and why it was chosen.
#[derive(Clone, Debug)]
pub struct ComputeDevice {
    pub burn: Device,
    /// `cpu`, or the adapter's own name and its graphics API.
    pub name: String,
    /// The driver of a GPU and its version; empty for the CPU.
    pub driver: String,
    /// Why this device was chosen, in one sentence for the user.
    pub reason: String,
    /// Memory of a GPU in bytes, if its driver reports it.
    pub memory: Option<u64>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Cpu,
    Gpu(WgpuDeviceKind),
}

/// A graphics adapter as its driver describes it, whether it is usable or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterReport {
    /// The adapter's own name and its graphics API.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// The driver and its version.
    pub driver: String,
    /// Its memory in bytes, if the driver reports it.
    pub memory: Option<u64>,
}

/// Why no device can be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("no GPU was found ({found}); use --device cpu, or install the GPU's Vulkan driver")]
    NoGpu { found: String },
    #[error(
        "no software rasterizer was found ({found}); install one (Debian: apt install mesa-vulkan-drivers) or use --device cpu"
    )]
    NoSoftware { found: String },
    #[error("{name} cannot be started: {reason}; update its driver, or use --device cpu")]
    Start { name: String, reason: String },
}

impl ComputeDevice {
    pub fn cpu(reason: impl Into<String>) -> ComputeDevice {
        ComputeDevice {
            burn: Device::flex(),
            name: "cpu".into(),
            driver: String::new(),
            reason: reason.into(),
            memory: None,
            kind: Kind::Cpu,
        }
    }

    pub fn is_cpu(&self) -> bool {
        self.kind == Kind::Cpu
    }

    /// Whether the device is a software rasterizer such as lavapipe, which runs GPU kernels on the CPU.
    pub fn is_software(&self) -> bool {
        self.kind == Kind::Gpu(WgpuDeviceKind::Cpu)
    }

    /// The shader language that kernels are compiled to: `spirv`, `wgsl` or `msl`; empty on the CPU.
    pub fn shaders(&self) -> &'static str {
        let name = self.client().map_or("", |client| client.name());
        name.strip_prefix("wgpu<").and_then(|name| name.strip_suffix('>')).unwrap_or(name)
    }

    /// The client that launches gptoss's own kernels on the GPU that holds Burn's tensors. `None` on the CPU.
    pub fn client(&self) -> Option<Client> {
        let Kind::Gpu(kind) = &self.kind else { return None };
        Some(cubecl::Device::Wgpu(WgpuDevice::new(kind.clone())).client())
    }

    /// The wgpu device and queue of the client's runtime. Commands submitted to the queue run in order with those that the client submits.
    /// `None` on the CPU.
    pub fn queue(&self) -> Option<(wgpu::Device, wgpu::Queue)> {
        let Kind::Gpu(kind) = &self.kind else { return None };
        runtime::queue(kind)
    }
}
