//! How long the stages of loading took.

use std::time::{Duration, Instant};

use gpu_kernels::UploadTimes;

/// How long the stages of [`GpuEngine::load`](super::GpuEngine::load) took, in their order; and `warm_up`, which runs beside the upload.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadTimes {
    /// Running a first kernel, to find out what the device supports.
    pub probe: Duration,
    /// Allocating weights and cache, and uploading the tensors that are not matrices.
    pub allocation: Duration,
    /// Packing and copying the matrices. `total` is the time of the whole stage, the other times are parts of it.
    pub upload: UploadTimes,
    /// From the last copy to the end of the warm-up, which stops after the kernel that it is compiling.
    pub warm_up_end: Duration,
    /// Running the model with one token: this compiles the kernels of a decoding step that the warm-up did not reach.
    pub first_step: Duration,
    /// Compiling kernels during the upload.
    pub warm_up: Compiled,
}

/// What a warm-up compiled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compiled {
    pub time: Duration,
    /// Number of launches, several of which may use the same kernel.
    pub launches: usize,
    /// Whether every launch of the warm-up was compiled before the upload ended.
    pub is_complete: bool,
}

/// Measures consecutive stages.
pub(super) struct StageClock(Instant);

impl StageClock {
    pub fn start() -> StageClock {
        StageClock(Instant::now())
    }

    /// The time since the end of the previous stage.
    pub fn end_stage(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}
