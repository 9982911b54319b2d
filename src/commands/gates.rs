//! `gptoss gates`: every phase against MLX.

use std::process::ExitCode;

use anyhow::Result;
use gates::{Check, Gate, Goldens};
use phase2_forward::{ComputeDevice, DeviceChoice, ModelNeeds};
use serde_json::json;

use crate::args::Gates;
use crate::commands::print;

pub fn run(args: &Gates) -> Result<ExitCode> {
    let goldens = Goldens::open(&args.goldens)?;
    let device = match args.phase {
        // The host decodes weights, whatever device the later phases run on.
        Some(Gate::Loading) => ComputeDevice::find(DeviceChoice::Cpu, ModelNeeds::default())?,
        _ => ComputeDevice::find(args.device, ModelNeeds::default())?,
    };
    eprintln!("device: {} ({})", device.name, device.reason);
    let mut report = Vec::new();
    for gate in args.phase.map_or(Gate::ALL.to_vec(), |gate| vec![gate]) {
        let (phase, checks) = (gate.phase(), gates::run(gate, &goldens, &device)?);
        let failed = checks.iter().filter(|check| !check.passed()).count();
        if args.json {
            report.extend(checks.iter().map(|check| to_json(phase, check)));
        } else {
            print(&phase_text(phase, &checks))?;
        }
        eprintln!("phase {phase}: {} checks, {failed} failed", checks.len());
        if failed > 0 {
            print_report(args, &report)?;
            return Ok(ExitCode::FAILURE);
        }
    }
    print_report(args, &report)?;
    Ok(ExitCode::SUCCESS)
}

fn phase_text(phase: u8, checks: &[Check]) -> String {
    let mut text = format!(
        "phase {phase}\n{:9} {:44} {:>9} {:>9} {:>9} {:>9}\n",
        "case", "tensor", "max", "rms", "max ≤", "rms ≤"
    );
    for check in checks {
        let Check { case, tensor, max, rms, limit } = check;
        let (max_limit, rms_limit) = (limit.max, limit.rms);
        text += &format!("{case:9} {tensor:44} {max:>9.1e} {rms:>9.1e} {max_limit:>9.0e} {rms_limit:>9.0e} ");
        text += if check.passed() { "ok\n" } else { "FAILED\n" };
    }
    text
}

fn to_json(phase: u8, check: &Check) -> serde_json::Value {
    json!({
        "phase": phase,
        "case": check.case,
        "tensor": check.tensor,
        "max": check.max,
        "rms": check.rms,
        "max_limit": check.limit.max,
        "rms_limit": check.limit.rms,
        "passed": check.passed(),
    })
}

fn print_report(args: &Gates, report: &[serde_json::Value]) -> Result<()> {
    if args.json {
        print(&format!("{:#}\n", serde_json::Value::from(report)))?;
    }
    Ok(())
}
