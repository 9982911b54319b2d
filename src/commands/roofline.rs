//! `gptoss roofline`: measures a device's peak memory bandwidth and arithmetic rate.

use std::process::ExitCode;

use anyhow::Result;
use phase2_forward::{ComputeDevice, ModelNeeds};
use phase4_profiling::{Ceiling, measure_ceiling};

use crate::args::Roofline;
use crate::commands::print;

pub fn run(args: &Roofline) -> Result<ExitCode> {
    let device = ComputeDevice::find(args.device, ModelNeeds::default())?;
    eprintln!("device: {} ({})", device.name, device.reason);
    let ceiling = measure_ceiling(&device)?;
    print(&if args.json {
        format!("{:#}\n", serde_json::to_value(&ceiling)?)
    } else {
        to_text(&ceiling, device.is_cpu())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn to_text(ceiling: &Ceiling, cpu: bool) -> String {
    let Ceiling { read_bandwidth, f32_rate, packed_rate, machine, device, date } = ceiling;
    let giga = |rate: f64| rate / 1e9;
    let mut text = format!("{device}, {machine}, {date}\n");
    text += &format!("  read   {:>10.1} GB/s\n", giga(*read_bandwidth));
    text += &format!("  f32    {:>10.1} GFLOP/s\n", giga(*f32_rate));
    if *packed_rate > 0.0 {
        text += &format!(
            "  packed {:>10.1} GOP/s ({})\n",
            giga(*packed_rate),
            if cpu { "8-bit dot products" } else { "16-bit floats in matrix units" }
        );
    }
    text
}
