//! Chooses the device that a model runs on.

use super::adapter::Adapter;
use super::{AdapterReport, ComputeDevice, DeviceError, ModelNeeds};

/// The device that the user requested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU that can hold the model, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// A hardware GPU.
    Gpu,
    /// A software rasterizer such as lavapipe, which runs GPU kernels on the CPU: for tests without a GPU.
    Software,
}

impl DeviceChoice {
    pub const ALL: [DeviceChoice; 4] =
        [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Gpu, DeviceChoice::Software];

    pub fn name(self) -> &'static str {
        match self {
            DeviceChoice::Auto => "auto",
            DeviceChoice::Cpu => "cpu",
            DeviceChoice::Gpu => "gpu",
            DeviceChoice::Software => "software",
        }
    }
}

impl ComputeDevice {
    /// Finds the device for a model and starts it.
    ///
    /// # Errors
    /// There is no device of the requested kind, or it does not start.
    pub fn find(choice: DeviceChoice, needs: ModelNeeds) -> Result<ComputeDevice, DeviceError> {
        if choice == DeviceChoice::Cpu {
            return Ok(Self::cpu("selected with --device"));
        }
        let adapters = Adapter::all();
        let found = match adapters {
            [] => "no graphics adapter".to_owned(),
            adapters => adapters.iter().map(Adapter::to_string).collect::<Vec<_>>().join(", "),
        };
        let gpu = adapters.iter().filter(|adapter| adapter.rank().is_some()).min_by_key(|adapter| adapter.rank());
        let software = adapters.iter().find(|adapter| adapter.is_software());
        match (choice, gpu, software) {
            (DeviceChoice::Gpu, Some(gpu), _) => gpu.start("selected with --device", needs),
            (DeviceChoice::Gpu, None, _) => Err(DeviceError::NoGpu { found }),
            (DeviceChoice::Software, _, Some(software)) => software.start("selected with --device", needs),
            (DeviceChoice::Software, _, None) => Err(DeviceError::NoSoftware { found }),
            (_, None, Some(software)) => {
                Ok(Self::cpu(format!("no GPU was found, only the software rasterizer {}", software.short_name())))
            }
            (_, None, None) => Ok(Self::cpu(format!("no GPU was found: {found}"))),
            (_, Some(gpu), _) => Ok(gpu.if_it_fits(needs).unwrap_or_else(Self::cpu)),
        }
    }

    /// The graphics adapters of this machine. Starts none of them.
    pub fn adapters() -> Vec<AdapterReport> {
        Adapter::all().iter().map(Adapter::report).collect()
    }

    /// The devices on which every gate (comparison with the goldens) must pass: the CPU, and a GPU or, without one, a software rasterizer.
    ///
    /// # Errors
    /// Neither a GPU nor a software rasterizer can be started. Gates fail then; they are not skipped.
    pub fn for_gates() -> Result<[ComputeDevice; 2], DeviceError> {
        let find = |choice| Self::find(choice, ModelNeeds::default());
        let gpu = find(DeviceChoice::Gpu).or_else(|_| find(DeviceChoice::Software))?;
        Ok([find(DeviceChoice::Cpu)?, gpu])
    }
}
