//! Choosing where a model runs.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{Device, DeviceKind};
use cubecl::client::Client;
use cubecl::wgpu::{WgpuDevice, WgpuDeviceKind, wgpu};

/// What a person asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU that can hold the model, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// A real GPU.
    Gpu,
    /// A software rasterizer, such as lavapipe: for testing GPU kernels without one.
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
    #[error("this program's shaders are SPIR-V, which crash software rasterizers; build it without the feature spirv")]
    SoftwareSpirv,
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

    /// Finds the device for a model that needs `model_bytes` on it.
    ///
    /// # Errors
    /// A device was asked for by name and there is none.
    pub fn find(choice: DeviceChoice, model_bytes: u64) -> Result<ComputeDevice, DeviceError> {
        if choice == DeviceChoice::Cpu {
            return Ok(Self::cpu("asked for by name"));
        }
        if choice == DeviceChoice::Software && cfg!(feature = "spirv") {
            return Err(DeviceError::SoftwareSpirv);
        }
        let adapters = Adapter::all();
        let found = match &*adapters {
            [] => "no graphics adapter".to_owned(),
            adapters => adapters.iter().map(Adapter::to_string).collect::<Vec<_>>().join(", "),
        };
        let gpu = adapters.iter().filter(|adapter| adapter.rank().is_some()).min_by_key(|adapter| adapter.rank());
        let software = adapters.iter().find(|adapter| adapter.info.device_type == wgpu::DeviceType::Cpu);
        match (choice, gpu, software) {
            (DeviceChoice::Gpu, Some(gpu), _) => Ok(gpu.device("asked for by name".into())),
            (DeviceChoice::Gpu, None, _) => Err(DeviceError::NoGpu { found }),
            (DeviceChoice::Software, _, Some(software)) => Ok(software.device("asked for by name".into())),
            (DeviceChoice::Software, _, None) => Err(DeviceError::NoSoftware { found }),
            (_, None, _) => Ok(Self::cpu(format!("no GPU was found ({found})"))),
            (_, Some(gpu), _) => Ok(gpu.unless_too_small(model_bytes)),
        }
    }

    /// The devices that every gate must hold on: the CPU, and a GPU, or a software rasterizer if there is none.
    ///
    /// # Errors
    /// If there is neither a GPU nor a software rasterizer. Gates are never skipped for that.
    pub fn for_gates() -> Result<[ComputeDevice; 2], DeviceError> {
        let gpu = Self::find(DeviceChoice::Gpu, 0).or_else(|_| Self::find(DeviceChoice::Software, 0))?;
        Ok([Self::find(DeviceChoice::Cpu, 0)?, gpu])
    }

    pub fn is_cpu(&self) -> bool {
        self.kind == Kind::Cpu
    }

    /// What launches kernels of our own on the GPU that Burn's tensors live on. `None` on the CPU.
    pub fn client(&self) -> Option<Client> {
        let Kind::Gpu(kind) = &self.kind else { return None };
        Some(cubecl::Device::Wgpu(WgpuDevice::new(kind.clone())).client())
    }
}

/// A graphics adapter of this machine.
struct Adapter {
    info: wgpu::AdapterInfo,
    /// Number among the adapters of its type, which is how CubeCL names it.
    index: usize,
    /// Bytes that it can hold, where the driver says.
    memory: Option<u64>,
}

impl Adapter {
    /// The adapters of the graphics API that CubeCL would use here: Metal, else Vulkan, else DX12.
    fn all() -> Vec<Adapter> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        for backend in [wgpu::Backends::METAL, wgpu::Backends::VULKAN, wgpu::Backends::DX12] {
            let adapters = cubecl::future::block_on(instance.enumerate_adapters(backend));
            if adapters.is_empty() {
                continue;
            }
            let mut listed: Vec<Adapter> = Vec::new();
            for adapter in &adapters {
                let info = adapter.get_info();
                let index = listed.iter().filter(|other| other.info.device_type == info.device_type).count();
                listed.push(Adapter { memory: device_memory(adapter), info, index });
            }
            return listed;
        }
        Vec::new()
    }

    /// Lower is better; `None` for what is not a GPU.
    fn rank(&self) -> Option<u8> {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => Some(0),
            wgpu::DeviceType::IntegratedGpu => Some(1),
            wgpu::DeviceType::VirtualGpu => Some(2),
            wgpu::DeviceType::Other | wgpu::DeviceType::Cpu => None,
        }
    }

    fn device(&self, reason: String) -> ComputeDevice {
        // Burn and CubeCL each have their own name for the same adapter.
        let (burn, kind) = match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => {
                (DeviceKind::DiscreteGpu(self.index), WgpuDeviceKind::DiscreteGpu(self.index))
            }
            wgpu::DeviceType::IntegratedGpu => {
                (DeviceKind::IntegratedGpu(self.index), WgpuDeviceKind::IntegratedGpu(self.index))
            }
            wgpu::DeviceType::VirtualGpu => {
                (DeviceKind::VirtualGpu(self.index), WgpuDeviceKind::VirtualGpu(self.index))
            }
            wgpu::DeviceType::Cpu => (DeviceKind::Cpu, WgpuDeviceKind::Cpu),
            wgpu::DeviceType::Other => (DeviceKind::DefaultDevice, WgpuDeviceKind::DefaultDevice),
        };
        ComputeDevice {
            burn: Device::wgpu(burn),
            name: self.to_string(),
            driver: format!("{} {}", self.info.driver, self.info.driver_info).trim().to_owned(),
            reason,
            memory: self.memory,
            kind: Kind::Gpu(kind),
        }
    }

    fn unless_too_small(&self, model_bytes: u64) -> ComputeDevice {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let need = gb(model_bytes);
        match self.memory {
            Some(memory) if memory < model_bytes => {
                ComputeDevice::cpu(format!("{self} holds {:.1} GB and the model needs {need:.1} GB", gb(memory)))
            }
            Some(memory) => self.device(format!("it holds {:.1} GB and the model needs {need:.1} GB", gb(memory))),
            None => self.device(format!("its driver does not say whether it holds the {need:.1} GB needed")),
        }
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.info.name, self.info.backend)
    }
}

/// The largest device-local heap, from Vulkan. Other APIs do not say through wgpu.
fn device_memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the handle is only asked for its properties, and dropped before the adapter.
    #[cfg(not(target_vendor = "apple"))]
    unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        let memory = instance.get_physical_device_memory_properties(vulkan.raw_physical_device());
        let heaps = &memory.memory_heaps[..memory.memory_heap_count as usize];
        // Flag 1 is VK_MEMORY_HEAP_DEVICE_LOCAL_BIT.
        heaps.iter().filter(|heap| heap.flags.as_raw() & 1 != 0).map(|heap| heap.size).max()
    }
    #[cfg(target_vendor = "apple")]
    {
        let _ = adapter;
        None
    }
}
