//! Choosing where a model runs.

mod adapter;
mod runtime;

use std::str::FromStr;

use burn::tensor::Device;
use cubecl::client::Client;
use cubecl::wgpu::{WgpuDevice, WgpuDeviceKind};

use adapter::Adapter;
pub use runtime::register;

/// What a person asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU that can hold the model, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// A real GPU.
    Gpu,
    /// A software rasterizer such as lavapipe, which runs GPU kernels on the CPU: for tests without a GPU.
    Software,
}

impl DeviceChoice {
    pub const NAMES: [&str; 4] = ["auto", "cpu", "gpu", "software"];
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "gpu" => Ok(DeviceChoice::Gpu),
            "software" => Ok(DeviceChoice::Software),
            _ => Err(format!("expected one of {}", DeviceChoice::NAMES.join(", "))),
        }
    }
}

/// What a model needs of a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelNeeds {
    /// Bytes of its weights on the device.
    pub bytes: u64,
    pub layers: usize,
}

impl ModelNeeds {
    /// Launches that go to a GPU in one submission: as many as a decoding step of phase 5 has, so that a captured step is one.
    fn tasks(self) -> usize {
        (10 * self.layers + 24).max(256)
    }
}

/// A device that was found, and why it was chosen.
#[derive(Clone, Debug)]
pub struct ComputeDevice {
    pub burn: Device,
    /// `cpu`, or the adapter's own name and its graphics API.
    pub name: String,
    /// The driver of a GPU and its version; empty for the CPU.
    pub driver: String,
    /// Why this one, in one sentence for a person.
    pub reason: String,
    /// Bytes that a GPU holds, where its driver says.
    pub memory: Option<u64>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Cpu,
    Gpu(WgpuDeviceKind),
}

/// Why no device serves.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("no GPU was found ({found}); use --device cpu, or install the GPU's Vulkan driver")]
    NoGpu { found: String },
    #[error(
        "no software rasterizer was found ({found}); install one (Debian: apt install mesa-vulkan-drivers) or use --device cpu"
    )]
    NoSoftware { found: String },
    #[error("{name} does not start: {reason}; update its driver, or use --device cpu")]
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

    /// Finds the device for a model and starts it.
    ///
    /// # Errors
    /// A device was asked for by name, and there is none or it does not start.
    pub fn find(choice: DeviceChoice, needs: ModelNeeds) -> Result<ComputeDevice, DeviceError> {
        if choice == DeviceChoice::Cpu {
            return Ok(Self::cpu("asked for by name"));
        }
        let adapters = Adapter::all();
        let found = match adapters {
            [] => "no graphics adapter".to_owned(),
            adapters => adapters.iter().map(Adapter::to_string).collect::<Vec<_>>().join(", "),
        };
        let gpu = adapters.iter().filter(|adapter| adapter.rank().is_some()).min_by_key(|adapter| adapter.rank());
        let software = adapters.iter().find(|adapter| adapter.is_software());
        match (choice, gpu, software) {
            (DeviceChoice::Gpu, Some(gpu), _) => gpu.start("asked for by name", needs),
            (DeviceChoice::Gpu, None, _) => Err(DeviceError::NoGpu { found }),
            (DeviceChoice::Software, _, Some(software)) => software.start("asked for by name", needs),
            (DeviceChoice::Software, _, None) => Err(DeviceError::NoSoftware { found }),
            (_, None, _) => Ok(Self::cpu(format!("no GPU was found ({found})"))),
            (_, Some(gpu), _) => Ok(gpu.if_it_fits(needs).unwrap_or_else(Self::cpu)),
        }
    }

    /// The devices that every gate must hold on: the CPU, and a GPU or else a software rasterizer.
    ///
    /// # Errors
    /// If there is neither a GPU nor a software rasterizer. Gates are never skipped for that.
    pub fn for_gates() -> Result<[ComputeDevice; 2], DeviceError> {
        let find = |choice| Self::find(choice, ModelNeeds::default());
        let gpu = find(DeviceChoice::Gpu).or_else(|_| find(DeviceChoice::Software))?;
        Ok([find(DeviceChoice::Cpu)?, gpu])
    }

    pub fn is_cpu(&self) -> bool {
        self.kind == Kind::Cpu
    }

    /// What kernels are compiled to: `spirv`, `wgsl` or `msl`; empty on the CPU.
    pub fn shaders(&self) -> &'static str {
        let name = self.client().map_or("", |client| client.name());
        name.strip_prefix("wgpu<").and_then(|name| name.strip_suffix('>')).unwrap_or(name)
    }

    /// What launches kernels of our own on the GPU that Burn's tensors live on. `None` on the CPU.
    pub fn client(&self) -> Option<Client> {
        let Kind::Gpu(kind) = &self.kind else { return None };
        Some(cubecl::Device::Wgpu(WgpuDevice::new(kind.clone())).client())
    }
}
