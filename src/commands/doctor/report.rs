//! The findings as text and as JSON.

use std::fmt::Write;
use std::path::PathBuf;

use peers::Peer;
use phase2_forward::AdapterReport;
use serde_json::{Value, json};

use super::advice::advice;
use super::findings::{Findings, Fit, FoundModel, Plan};
use crate::commands::size;

/// The column at which values begin.
const INDENT: usize = 12;

pub(super) fn text(findings: &Findings) -> String {
    let (processors, memory, plan) = (&findings.processors, &findings.memory, &findings.plan);
    let mut out =
        format!("gptoss {} on {}, {}\n\n", env!("CARGO_PKG_VERSION"), std::env::consts::OS, processors.architecture);
    let mut section = |title: &str, lines: &[String]| {
        for (number, line) in lines.iter().enumerate() {
            let title = if number == 0 { title } else { "" };
            writeln!(out, "{title:INDENT$}{line}").expect("a string takes all");
        }
    };

    let of_machine = processors.of_machine.map_or(String::new(), |all| format!(" of {all}"));
    let quota = processors.quota.map_or(String::new(), |quota| format!(", a quota of {quota:.1} processors"));
    section(
        "processor",
        &[
            processors.name.clone().unwrap_or_else(|| "(unknown processor)".into()),
            format!(
                "{}{of_machine} usable hardware threads{quota}; the CPU engine uses {}",
                processors.usable, findings.threads
            ),
            format!("it has {}; kernels: {}", or_none(&processors.features), findings.kernels[0]),
        ],
    );
    let part = |bytes: Option<u64>, what: &str| bytes.map(|bytes| format!("{}{what}", size(bytes)));
    let parts = [
        part(memory.total, ""),
        part(memory.available, " available"),
        part(memory.limit, " granted by the control group"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    section("memory", &[if parts.is_empty() { "(unknown on this system)".into() } else { parts.join(", ") }]);
    let adapters: Vec<String> = findings.adapters.iter().map(|adapter| adapter_text(adapter, plan)).collect();
    section("graphics", &if adapters.is_empty() { vec!["no adapter".into()] } else { adapters });
    let models = findings.models.iter().map(model_text);
    section("models", &[vec!["embedded, inside the program".to_owned()], models.collect()].concat());
    section("peers", &findings.peers.iter().map(|(peer, python)| peer_text(*peer, python)).collect::<Vec<_>>());

    let assumed = if plan.is_assumed { " (not downloaded)" } else { "" };
    section("plan", &[format!("{}{assumed}, with {} tokens", plan.model, plan.context), cpu_text(plan)]);
    let (engine, phase) = (findings.engine.name(), findings.phase);
    let choice = match &findings.choice {
        Ok((device, reason)) => format!("on {device}: {reason}"),
        Err(error) => format!("does not run: {error}"),
    };
    section("engine", &[format!("{engine} (phase {phase}) {choice}")]);
    out.push('\n');
    for sentence in advice(findings) {
        writeln!(out, "- {sentence}").expect("a string takes all");
    }
    out
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "no vector instructions that kernels use".into() } else { names.join(" ") }
}

fn adapter_text(adapter: &AdapterReport, plan: &Plan) -> String {
    let AdapterReport { name, kind, driver, memory } = adapter;
    let memory = memory.map_or(String::new(), |bytes| format!(", {}", size(bytes)));
    let need = size(plan.on_gpu);
    // The driver's name often repeats the adapter's.
    let first_word = name.split(' ').next().unwrap_or_default();
    let driver = driver.strip_prefix(first_word).map(str::trim_start).filter(|rest| !rest.is_empty()).unwrap_or(driver);
    let fits = match (*kind, plan.fits(adapter)) {
        ("software" | "other", _) => "for tests only".to_owned(),
        (_, Some(true)) => format!("{need} fit"),
        (_, Some(false)) => format!("{need} do not fit"),
        (_, None) => format!("{need} are needed"),
    };
    let driver = if driver.is_empty() { String::new() } else { format!("; driver {driver}") };
    format!("{name}, {kind}{memory}{driver}; {fits}")
}

fn model_text(model: &FoundModel) -> String {
    let FoundModel { name, path, opened } = model;
    match opened {
        Ok(bytes) => format!("{name}, {}, {}", size(*bytes), path.display()),
        Err(error) => format!("{name}, cannot be opened: {error}"),
    }
}

fn peer_text(peer: Peer, python: &Result<PathBuf, String>) -> String {
    match python {
        Ok(python) => format!("{} in {}", peer.title(), python.display()),
        Err(reason) => format!("{reason}; needed only for comparisons"),
    }
}

fn cpu_text(plan: &Plan) -> String {
    let fits = match plan.on_cpu {
        Some(Fit::Yes) => "fits",
        Some(Fit::FromDisk) => "does not fit completely; it runs at the speed of the disk",
        Some(Fit::No) => "does not fit",
        None => "it is unknown on this system whether that fits",
    };
    let (all, file) = (size(plan.own.saturating_add(plan.mapped)), size(plan.mapped));
    format!("on the CPU {all}, of which {file} are pages of the model's file: {fits}")
}

pub(super) fn json(findings: &Findings) -> Value {
    let plan = &findings.plan;
    let fits_on_cpu = plan.on_cpu.map(|fit| match fit {
        Fit::Yes => "yes",
        Fit::FromDisk => "from_disk",
        Fit::No => "no",
    });
    let adapters = findings.adapters.iter().map(|adapter| {
        let AdapterReport { name, kind, driver, memory } = adapter;
        json!({ "name": name, "kind": kind, "driver": driver, "memory": memory, "fits": plan.fits(adapter) })
    });
    let models = findings.models.iter().map(|model| {
        let (bytes, error) = (model.opened.as_ref().ok(), model.opened.as_ref().err());
        json!({ "name": model.name, "path": model.path.display().to_string(), "bytes": bytes, "error": error })
    });
    let peers = findings.peers.iter().map(|(peer, python)| {
        let (python, missing) = (python.as_ref().ok(), python.as_ref().err());
        json!({ "name": peer.name(), "python": python.map(|python| python.display().to_string()), "missing": missing })
    });
    let (device, reason) = match &findings.choice {
        Ok((device, reason)) => (Some(device), reason),
        Err(error) => (None, error),
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "system": std::env::consts::OS,
        "processors": findings.processors,
        "threads": findings.threads,
        "kernels": findings.kernels,
        "memory": findings.memory,
        "adapters": adapters.collect::<Vec<_>>(),
        "models": models.collect::<Vec<_>>(),
        "peers": peers.collect::<Vec<_>>(),
        "plan": {
            "model": plan.model,
            "assumed": plan.is_assumed,
            "context": plan.context,
            "cpu": { "own": plan.own, "mapped": plan.mapped, "fits": fits_on_cpu },
            "gpu": { "bytes": plan.on_gpu, "bytes_for_auto": plan.for_auto },
        },
        "engine": {
            "engine": findings.engine.name(),
            "phase": findings.phase,
            "device": device,
            "reason": reason,
        },
        "advice": advice(findings),
    })
}
