//! The graphics adapters of this machine.

use std::fmt;
use std::sync::LazyLock;

use burn::tensor::{Device, DeviceKind};
use cubecl::wgpu::{WgpuDeviceKind, wgpu};

use super::{AdapterReport, ComputeDevice, DeviceError, Kind, ModelNeeds, runtime};

/// The graphics APIs in which adapters are searched, in this order. OpenGL is not among them: nothing was tested with it.
const BACKENDS: [wgpu::Backends; 3] = [wgpu::Backends::METAL, wgpu::Backends::VULKAN, wgpu::Backends::DX12];

/// A graphics adapter of this machine.
pub(super) struct Adapter {
    info: wgpu::AdapterInfo,
    /// Index among the adapters of its type, by which CubeCL identifies it.
    index: usize,
    /// Its memory in bytes, if the driver reports it.
    memory: Option<u64>,
}

impl Adapter {
    /// The adapters of the first graphics API that has a GPU, or else of the first that has a software rasterizer, as CubeCL chooses too.
    /// The result is cached.
    pub fn all() -> &'static [Adapter] {
        // The instance is kept, so that the driver is not unloaded before the runtime creates its own instance.
        static ALL: LazyLock<(wgpu::Instance, Vec<Adapter>)> = LazyLock::new(|| {
            let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
                backends: BACKENDS.into_iter().collect(),
                ..wgpu::InstanceDescriptor::new_without_display_handle()
            });
            let adapters = Adapter::look(&instance);
            (instance, adapters)
        });
        &ALL.1
    }

    fn look(instance: &wgpu::Instance) -> Vec<Adapter> {
        let mut software = Vec::new();
        for backend in BACKENDS {
            let mut listed: Vec<Adapter> = Vec::new();
            for adapter in cubecl::future::block_on(instance.enumerate_adapters(backend)) {
                let info = adapter.get_info();
                let index = listed.iter().filter(|other| other.info.device_type == info.device_type).count();
                listed.push(Adapter { memory: device_memory(&adapter), info, index });
            }
            if listed.iter().any(|adapter| !adapter.is_software()) {
                return listed;
            }
            if software.is_empty() {
                software = listed;
            }
        }
        software
    }

    /// Preference among GPUs, lower is better; `None` for an adapter that is not a GPU.
    pub fn rank(&self) -> Option<u8> {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => Some(0),
            wgpu::DeviceType::IntegratedGpu => Some(1),
            wgpu::DeviceType::VirtualGpu => Some(2),
            wgpu::DeviceType::Other | wgpu::DeviceType::Cpu => None,
        }
    }

    pub fn report(&self) -> AdapterReport {
        let kind = match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        AdapterReport { name: self.to_string(), kind, driver: self.driver(), memory: self.memory }
    }

    fn driver(&self) -> String {
        format!("{} {}", self.info.driver, self.info.driver_info).trim().to_owned()
    }

    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// The adapter's own name without the driver's addition in parentheses, such as `llvmpipe` for `llvmpipe (LLVM 15.0.6, 256 bits)`.
    pub fn short_name(&self) -> &str {
        self.info.name.split(" (").next().unwrap_or_default()
    }

    /// Starts the adapter's runtime.
    ///
    /// # Errors
    /// The adapter does not provide a device.
    pub fn start(&self, reason: impl Into<String>, needs: ModelNeeds) -> Result<ComputeDevice, DeviceError> {
        // Burn and CubeCL identify the same adapter by different types.
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
        runtime::start(&kind, needs.tasks()).map_err(|reason| DeviceError::Start { name: self.to_string(), reason })?;
        Ok(ComputeDevice {
            burn: Device::wgpu(burn),
            name: self.to_string(),
            driver: self.driver(),
            reason: reason.into(),
            memory: self.memory,
            kind: Kind::Gpu(kind),
        })
    }

    /// Starts the adapter, unless its memory is known to be too small for the model.
    ///
    /// # Errors
    /// Why the adapter is not used, in one sentence.
    pub fn if_it_fits(&self, needs: ModelNeeds) -> Result<ComputeDevice, String> {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let need = gb(needs.bytes);
        let reason = match self.memory {
            Some(memory) if memory < needs.bytes => {
                return Err(format!("{self} holds {:.1} GB and the model needs {need:.1} GB", gb(memory)));
            }
            Some(memory) => format!("it holds {:.1} GB and the model needs {need:.1} GB", gb(memory)),
            None => format!("its driver does not report its memory; the model needs {need:.1} GB"),
        };
        self.start(reason, needs).map_err(|error| error.to_string())
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.info.name, self.info.backend)
    }
}

/// Size of the largest device-local heap, from Vulkan. wgpu does not expose it for other APIs.
fn device_memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the handle is only used to query properties, and is dropped before the adapter.
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
