//! Phase 4: profiles the time and the memory that the engine of any phase takes, on any device and with any model.

mod ceiling;
mod cost;
mod host;
mod machine;
mod memory;
mod numerics;
pub mod process;
mod profile;
mod recorder;
pub mod report;
mod workload;

pub use ceiling::{CeilingError, ceiling, measure as measure_ceiling};
pub use cost::CostModel;
pub use host::{HostMemory, Processors};
pub use machine::{cache_directory, machine, today};
pub use memory::{
    APPLE_16GB_GPU_BUDGET, EngineSetup, MemoryKind, MemoryPlan, Observed, Part, PlannedWeight, Residency,
};
pub use numerics::{F16Range, Numerics, NumericsProbe};
pub use profile::{Bound, Ceiling, Clock, Cost, LAUNCH, Profile, READBACK, Row, TimedSpan, TimedStep, Workload};
pub use recorder::Recorder;
pub use workload::{run, warm_up};
