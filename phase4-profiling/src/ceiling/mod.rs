//! The ceiling of the roofline: a device's peak memory bandwidth and arithmetic rate, measured once and stored with machine and date.

mod cpu;

use std::io::Write;
use std::path::PathBuf;

use cubecl::ir::{ElemType, FloatKind};
use cubecl::throughput::{CmmaDims, ComputeCmmaConfig, MemoryAccess, ThroughputKey, ThroughputMode};
use phase1_loading::write_whole;
use phase2_forward::ComputeDevice;

use crate::machine::{cache_directory, machine, today};
use crate::profile::Ceiling;

/// Why the ceiling could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum CeilingError {
    #[error("the {what} of {device} could not be measured: {reason}; `gptoss roofline` tries again")]
    NotMeasured { device: String, what: &'static str, reason: String },
}

/// The stored ceiling of this machine and device. If none is stored, measures it, which takes a few seconds, and stores it.
///
/// # Errors
/// The GPU cannot run the benchmark.
pub fn ceiling(device: &ComputeDevice) -> Result<Ceiling, CeilingError> {
    match kept(device) {
        Some(ceiling) => Ok(ceiling),
        None => measure(device),
    }
}

/// Measures the ceiling, and stores the result if the cache directory is writable.
///
/// # Errors
/// As [`ceiling`].
pub fn measure(device: &ComputeDevice) -> Result<Ceiling, CeilingError> {
    let (read_bandwidth, f32_rate, packed_rate) =
        if device.is_cpu() { (cpu::read_bandwidth(), cpu::f32_rate(), cpu::packed_rate()) } else { gpu(device)? };
    let ceiling = Ceiling {
        read_bandwidth,
        f32_rate,
        packed_rate,
        machine: machine(),
        device: device.name.clone(),
        date: today(),
    };
    if let Some(path) = path(device)
        && let Some(directory) = path.parent()
        && std::fs::create_dir_all(directory).is_ok()
    {
        let json = serde_json::to_vec_pretty(&ceiling).expect("numbers and strings");
        // If the ceiling cannot be stored, it is measured again next time.
        let _ = write_whole(&path, |out| out.write_all(&json));
    }
    Ok(ceiling)
}

/// Read bandwidth, f32 rate and matrix unit rate, measured with CubeCL's kernels.
fn gpu(device: &ComputeDevice) -> Result<(f64, f64, f64), CeilingError> {
    let config = ComputeCmmaConfig {
        accumulator_type: ElemType::Float(FloatKind::F32),
        cmma_dims: CmmaDims { m: 16, n: 16, k: 16 },
    };
    let keys = [
        ThroughputKey { mode: ThroughputMode::memory(MemoryAccess::Read) },
        ThroughputKey { mode: ThroughputMode::ComputeDirect { dtype: ElemType::Float(FloatKind::F32) } },
        ThroughputKey { mode: ThroughputMode::ComputeCmma { dtype: ElemType::Float(FloatKind::F16), config } },
    ];
    let stats = device.burn.performance_stats(&keys);
    let value = |index: usize, what| {
        let error = |reason: String| CeilingError::NotMeasured { device: device.name.clone(), what, reason };
        let stat = stats.get(index).ok_or_else(|| error("its backend has no benchmark".into()))?;
        stat.value.as_ref().map_err(|why| error(why.to_string()))
    };
    let read = value(0, "read bandwidth")?.bytes_per_s(&keys[0]);
    let f32_rate = value(1, "f32 rate")?.ops_per_s();
    // 0 for an adapter without matrix units.
    let matrix_rate = value(2, "rate of matrix units").map_or(0.0, |stat| stat.ops_per_s());
    Ok((read, f32_rate, matrix_rate))
}

fn kept(device: &ComputeDevice) -> Option<Ceiling> {
    let ceiling: Ceiling = serde_json::from_slice(&std::fs::read(path(device)?).ok()?).ok()?;
    (ceiling.machine == machine() && ceiling.device == device.name).then_some(ceiling)
}

/// The file with the ceiling of a device, in the user's cache directory.
fn path(device: &ComputeDevice) -> Option<PathBuf> {
    let name: String = device.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Some(cache_directory()?.join(format!("ceiling-{name}.json")))
}
