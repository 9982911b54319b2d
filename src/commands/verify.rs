//! `gptoss verify`: compares two checkpoints.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use phase1_loading::{ModelComparison, TensorComparison, Verdict};
use serde_json::json;

use crate::args::Verify;
use crate::commands::print;
use crate::model::{self, bytes_bar};

pub fn run(args: &Verify) -> Result<ExitCode> {
    let (a, b) = (model::open(&args.a)?, model::open(&args.b)?);
    let bar = bytes_bar("comparing", 0);
    let comparison = phase1_loading::verify(&a, &b, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    print(&if args.json { format!("{:#}\n", to_json(&comparison)) } else { to_text(&comparison)? })?;
    Ok(if comparison.same() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Identical => "identical",
        Verdict::Rounded => "equal within quantization",
        Verdict::Different => "different",
    }
}

fn to_text(comparison: &ModelComparison) -> Result<String> {
    let mut out = String::new();
    for difference in &comparison.differences {
        writeln!(out, "{difference}")?;
    }
    for tensor in comparison.tensors.iter().filter(|tensor| tensor.verdict != Verdict::Identical) {
        let TensorComparison { name, formats: [a, b], rms, verdict } = tensor;
        let (a, b, verdict) = (a.name(), b.name(), verdict_name(*verdict));
        writeln!(out, "{name:36} {a:7} {b:7} {verdict}, rms error {:.3} %", rms * 100.0)?;
    }
    let count = |verdict| comparison.tensors.iter().filter(|tensor| tensor.verdict == verdict).count();
    writeln!(
        out,
        "{} tensors identical, {} equal within quantization, {} different; {}",
        count(Verdict::Identical),
        count(Verdict::Rounded),
        count(Verdict::Different),
        match comparison.differences.len() {
            0 => "configuration and tokenizer equal".into(),
            n => format!("{n} other differences"),
        }
    )?;
    writeln!(out, "{}", if comparison.same() { "the same model" } else { "not the same model" })?;
    Ok(out)
}

fn to_json(comparison: &ModelComparison) -> serde_json::Value {
    let tensors: Vec<_> = comparison
        .tensors
        .iter()
        .map(|TensorComparison { name, formats, rms, verdict }| {
            json!({
                "name": name,
                "formats": formats.map(|format| format.name()),
                "rms": rms,
                "verdict": verdict_name(*verdict),
            })
        })
        .collect();
    json!({ "same": comparison.same(), "differences": comparison.differences, "tensors": tensors })
}
