//! `gptoss gates`: every phase against MLX.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use gptoss_reference::{Case, Check, Folder};
use phase1_loading::YarnRamp;
use phase2_forward::{ComputeDevice, DeviceChoice};
use serde_json::json;

use crate::args::Gates;
use crate::commands::print;

pub fn run(args: &Gates) -> Result<ExitCode> {
    let goldens = Goldens { cases: Case::all(&args.goldens)?, folders: Folder::all(&args.goldens)? };
    let device = match args.phase {
        // The host decodes weights, whatever device the later phases run on.
        Some(1) => ComputeDevice::find(DeviceChoice::Cpu, 0)?,
        _ => ComputeDevice::find(args.device, 0)?,
    };
    eprintln!("device: {} ({})", device.name, device.reason);
    let all = vec![1, 2, 3, 5];
    let phases = args.phase.map_or(all, |phase| vec![phase]);
    let mut report = Vec::new();
    for phase in phases {
        let checks = run_phase(phase, &goldens, &device)?;
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

struct Goldens {
    cases: Vec<Case>,
    folders: Vec<Folder>,
}

fn run_phase(phase: u8, goldens: &Goldens, device: &ComputeDevice) -> Result<Vec<Check>> {
    let in_case = |name: &str, error: Box<dyn std::error::Error>| anyhow!("phase {phase}, case {name}: {error}");
    let mut checks = Vec::new();
    for case in &goldens.cases {
        let in_case = |error| in_case(&case.name, error);
        if phase == 1 {
            checks.extend(phase1_loading::gate::run(case).map_err(in_case)?);
            continue;
        }
        for ramp in YarnRamp::ALL {
            let found = match phase {
                2 => phase2_forward::gate::run(case, device, ramp),
                3 => phase3_kvcache::gate::run(case, device, ramp),
                _ if device.is_cpu() => phase5_flash::cpu::gate::run(case, ramp),
                _ => phase5_flash::gpu::gate::run(case, device, ramp),
            };
            checks.extend(found.map_err(in_case)?);
        }
    }
    // The shapes that checkpoints come in differ in their weights' storage, which phase 2 is the first to compute with.
    if phase == 2 {
        let scratch = std::env::temp_dir().join(format!("gptoss-gates-{}", std::process::id()));
        std::fs::create_dir_all(&scratch)?;
        for folder in &goldens.folders {
            for ramp in YarnRamp::ALL {
                let result = phase2_forward::gate::run_folder(folder, device, ramp, &scratch);
                checks.extend(result.map_err(|error| in_case(&folder.name, error))?);
            }
        }
        std::fs::remove_dir_all(&scratch)?;
    }
    Ok(checks)
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
