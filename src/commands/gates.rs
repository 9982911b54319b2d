//! `gptoss gates`: compares loading (phase 1) with the values of the package `gguf`, and the engines of phases 2, 3 and 5, or a peer, with
//! MLX's golden outputs.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use gates::{Check, Gate, Goldens, Limit};
use peers::Peer;
use phase1_loading::{Checkpoint, YarnRamp};
use phase2_forward::{ComputeDevice, DeviceChoice, ModelNeeds};
use serde_json::json;

use crate::args::{EngineArgs, FastArgs, Gates};
use crate::commands::{print, record};
use crate::peer;

/// The format name by which the notebooks recognize records.
const FORMAT: &str = "gptoss gates 1";
/// The limit for llama.cpp, which rounds activations to 8 bits (on a GPU, 16) before products with packed weights. The
/// largest rms error against the golden outputs was 3.4e-2 standard deviations of the tensor, on a Xeon with AVX-512.
const ROUNDED: Limit = Limit { rms: 5e-2, max: 5e-1 };

pub fn run(args: &Gates) -> Result<ExitCode> {
    let goldens = Goldens::open(&args.goldens)?;
    if let Some(peer) = args.engine {
        return run_peer(args, peer, &goldens);
    }
    let device = match args.phase {
        // Weights are decoded on the host, whatever device the later phases use.
        Some(Gate::Loading) => ComputeDevice::find(DeviceChoice::Cpu, ModelNeeds::default())?,
        _ => ComputeDevice::find(args.device, ModelNeeds::default())?,
    };
    eprintln!("device: {} ({})", device.name, device.reason);
    let mut report = Vec::new();
    for gate in args.phase.map_or(Gate::ALL.to_vec(), |gate| vec![gate]) {
        let checks = gates::run(gate, &goldens, &device)?;
        if !show(args, &format!("phase {}", gate.phase()), Some(gate.phase()), &checks, &mut report)? {
            print_report(args, Some(&device.name), &report)?;
            return Ok(ExitCode::FAILURE);
        }
    }
    print_report(args, Some(&device.name), &report)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a peer on all cases, and on the model folders if it supports them.
fn run_peer(args: &Gates, peer: Peer, goldens: &Goldens) -> Result<ExitCode> {
    let (ramps, limit) = match peer {
        Peer::Mlx => (&YarnRamp::ALL[..], Limit::F32),
        Peer::LlamaCpp => (&[YarnRamp::Truncated][..], ROUNDED),
    };
    let mut checks = Vec::new();
    for &ramp in ramps {
        for case in goldens.cases() {
            let (mut engine, checkpoint) = start(args, peer, &case.model(), ramp)?;
            let found = gates::engine::run(case, ramp, &mut engine, &checkpoint, limit);
            checks.extend(found.map_err(|error| anyhow!("{error}")).with_context(|| case.name.clone())?);
        }
        for folder in goldens.folders().iter().filter(|_| peer == Peer::Mlx) {
            let (mut engine, _) = start(args, peer, &folder.path, ramp)?;
            let found = gates::engine::run_folder(folder, ramp, &mut engine, limit);
            checks.push(found.map_err(|error| anyhow!("{error}")).with_context(|| folder.name.clone())?);
        }
    }
    let mut report = Vec::new();
    let passed = show(args, peer.title(), None, &checks, &mut report)?;
    print_report(args, None, &report)?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts a peer with the file or folder of a golden model, as with `--exact`: MLX computes in f32, llama.cpp has a cache in f32.
fn start(args: &Gates, peer: Peer, model: &Path, ramp: YarnRamp) -> Result<(peers::PeerEngine, Checkpoint)> {
    let mut checkpoint = Checkpoint::open(model)?;
    checkpoint.config.rope.ramp = ramp;
    let fast = FastArgs { exact: true, ..FastArgs::default() };
    let engine_args = EngineArgs { device: args.device, fast, ..EngineArgs::reference() };
    let (engine, _) = peer::start(peer, &checkpoint, &engine_args)?;
    Ok((engine, checkpoint))
}

/// Prints checks, or adds them to the report that is printed at the end. Returns whether all passed.
fn show(
    args: &Gates,
    title: &str,
    phase: Option<u8>,
    checks: &[Check],
    report: &mut Vec<serde_json::Value>,
) -> Result<bool> {
    let failed = checks.iter().filter(|check| !check.passed()).count();
    if args.json {
        report.extend(checks.iter().map(|check| to_json(phase, check)));
    } else {
        print(&table(title, checks))?;
    }
    eprintln!("{title}: {} checks, {failed} failed", checks.len());
    Ok(failed == 0)
}

fn table(title: &str, checks: &[Check]) -> String {
    let mut text =
        format!("{title}\n{:9} {:44} {:>9} {:>9} {:>9} {:>9}\n", "case", "tensor", "max", "rms", "max ≤", "rms ≤");
    for check in checks {
        let Check { case, tensor, max, rms, limit } = check;
        let (max_limit, rms_limit) = (limit.max, limit.rms);
        text += &format!("{case:9} {tensor:44} {max:>9.1e} {rms:>9.1e} {max_limit:>9.0e} {rms_limit:>9.0e} ");
        text += if check.passed() { "ok\n" } else { "FAILED\n" };
    }
    text
}

fn to_json(phase: Option<u8>, check: &Check) -> serde_json::Value {
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

/// With `--json`, prints the record of all checks; `device` is `None` for a peer, whose device is not known here.
fn print_report(args: &Gates, device: Option<&str>, checks: &[serde_json::Value]) -> Result<()> {
    if args.json {
        let engine = args.engine.map(Peer::name);
        let mut content = json!({ "format": FORMAT, "engine": engine, "device": device, "checks": checks });
        for (name, value) in record::origin(&[]) {
            content[name] = value;
        }
        print(&format!("{content:#}\n"))?;
    }
    Ok(())
}
