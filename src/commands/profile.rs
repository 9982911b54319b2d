//! `gptoss profile`: measures the time of each operation of a step, and compares it with the least time that the operation's bytes and
//! arithmetic need on this device. With `--numerics`, compares an engine's activations with those of phase 2 instead.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use phase1_loading::write_whole;
use phase2_forward::{EngineError, Probe, Want, Work, sample_tokens};
use phase4_profiling::report::{compare, flame, html, table, trace};
use phase4_profiling::{
    F16Range, Numerics, NumericsProbe, Profile, Recorder, Workload, ceiling, machine, run as run_workload, today,
    warm_up,
};
use serde_json::json;

use crate::args::{self, EngineArgs};
use crate::commands::print;
use crate::model::{self, LoadedModel, SEQUENCE};

pub fn run(args: &args::Profile) -> Result<ExitCode> {
    if let Some(files) = &args.compare {
        return compare_files(&files[0], &files[1]);
    }
    if args.numerics {
        return numerics(args);
    }
    let profiles = match &args.from {
        Some(file) => read(file)?,
        None => measure(args)?,
    };
    for (path, content) in [(&args.trace, trace as fn(&Profile) -> String), (&args.flame, flame), (&args.html, html)] {
        if let Some(path) = path {
            let text = content(&profiles[0]);
            write_whole(path, |out| out.write_all(text.as_bytes()))
                .with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("wrote {}", path.display());
        }
    }
    let text = if args.json {
        format!("{:#}\n", serde_json::to_value(&profiles)?)
    } else {
        profiles.iter().map(table).collect::<Vec<_>>().join("\n")
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The requested workloads; by default decoding steps at depth 0.
fn workloads(args: &args::Profile) -> Vec<Workload> {
    let depths = if args.decode.is_empty() && args.prefill.is_empty() { &[0][..] } else { &args.decode };
    let at = |&depth: &usize| args.batch.iter().map(move |&sequences| Workload::Decode { depth, sequences });
    let prefill = args.prefill.iter().map(|&tokens| Workload::Prefill { tokens });
    depths.iter().flat_map(at).chain(prefill).collect()
}

fn measure(args: &args::Profile) -> Result<Vec<Profile>> {
    let kind = args.engine.kind();
    let phase = kind.phase().with_context(|| {
        format!("{} does not report the times of operations; `gptoss bench` measures whole steps", kind.title())
    })?;
    let (checkpoint, workloads) = (model::open_with(&args.model, &args.engine)?, workloads(args));
    let mut loaded = LoadedModel::start(&checkpoint, &args.engine)?;
    // Before the ceiling is measured: a GPU that waits while kernels are compiled lowers its clock rate.
    warm_up(&mut *loaded.engine)?;
    let ceiling = ceiling(&loaded.device)?;
    let costs = loaded.costs(&checkpoint);
    let mut recorder = Recorder::new(&loaded.device, &costs);
    let bar = ProgressBar::new((workloads.len() * (1 + args.steps)) as u64);
    let mut profiles = Vec::new();
    for workload in workloads {
        let progress = &mut |_| bar.inc(1);
        let (steps, clock) = run_workload(&mut *loaded.engine, workload, args.steps, &mut recorder, progress)?;
        profiles.push(Profile {
            model: args.model.display().to_string(),
            device: loaded.device.name.clone(),
            machine: machine(),
            date: today(),
            phase,
            workload,
            clock,
            ceiling: ceiling.clone(),
            steps,
        });
    }
    bar.finish_and_clear();
    Ok(profiles)
}

fn compare_files(a: &Path, b: &Path) -> Result<ExitCode> {
    let (before, after) = (read(a)?, read(b)?);
    let pairs =
        before.iter().filter_map(|before| Some((before, after.iter().find(|p| p.workload == before.workload)?)));
    let texts: Vec<String> = pairs.map(|(before, after)| compare(before, after).to_string()).collect();
    if texts.is_empty() {
        bail!("{} and {} have no workload in common", a.display(), b.display());
    }
    print(&texts.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Vec<Profile>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let profiles: Vec<Profile> = serde_json::from_slice(&text).with_context(|| {
        format!("{} does not contain profiles as written by `gptoss profile --json`", path.display())
    })?;
    if profiles.iter().any(|profile| profile.steps.is_empty()) || profiles.is_empty() {
        bail!("{} contains no profiles, or a profile without steps", path.display());
    }
    Ok(profiles)
}

/// Runs the same tokens through the engine and through the reference engine of phase 2 on the CPU, and compares the activations.
fn numerics(args: &args::Profile) -> Result<ExitCode> {
    let checkpoint = &model::open_with(&args.model, &args.engine)?;
    let tokens = match workloads(args)[0] {
        Workload::Decode { depth, .. } => depth + 1,
        Workload::Prefill { tokens } => tokens,
    };
    let tokens = sample_tokens(0, tokens, checkpoint.config.vocab);
    let reference = LoadedModel::start(checkpoint, &EngineArgs::reference())?;
    let reference = watch(reference, &tokens)?;
    let seen = watch(LoadedModel::start(checkpoint, &args.engine)?, &tokens)?;
    let rows = seen.against(Some(&reference));
    print(&if args.json { format!("{:#}\n", json!(rows)) } else { numerics_text(&rows) })?;
    Ok(ExitCode::SUCCESS)
}

fn watch(mut loaded: LoadedModel, tokens: &[u32]) -> Result<NumericsProbe> {
    let mut probe = NumericsProbe::default();
    let work = Work::tokens(SEQUENCE, tokens, Want::AllLogits);
    match loaded.engine.inspect(&[work], &mut probe)?.remove(0).logits() {
        Ok(logits) => {
            let shape = [tokens.len(), loaded.engine.config().vocab];
            probe.observe(&|| "logits".into(), &|| (shape, logits.clone()));
        }
        // The activations recorded before the NaN show where it first occurred.
        Err(error @ EngineError::NotANumber { .. }) => eprintln!("{error}"),
        Err(error) => return Err(error.into()),
    }
    Ok(probe)
}

fn numerics_text(rows: &[Numerics]) -> String {
    let mut text =
        format!("{:28} {:>12} {:>6} {:>6} {:>10} {:>10}\n", "result", "largest", "nan", "inf", "f16", "error");
    for Numerics { name, largest, nans, infinities, f16, error } in rows {
        let f16 = match f16 {
            F16Range::Safe => "safe",
            F16Range::Risk => "risk",
            F16Range::Overflow => "overflow",
        };
        let error = error.map_or(String::new(), |error| format!("{error:.1e}"));
        text += &format!("{name:28} {largest:>12.4} {nans:>6} {infinities:>6} {f16:>10} {error:>10}\n");
    }
    text
}
