//! `gptoss memory`: where a model's bytes live, predicted and observed.

use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::{Context, Result};
use phase2_forward::{Choice, Chunk, Continuation, Engine, LogitsFor, NoProbe, read_back};
use phase3_kvcache::PREFILL_CHUNK;
use phase4_profiling::{APPLE_16GB_GPU_BUDGET, MemoryPlan, Observed, Place, Setting, sample_tokens};
use serde_json::json;

use crate::args::Memory;
use crate::commands::{print, size};
use crate::session::{self, Session};

pub fn run(args: &Memory) -> Result<ExitCode> {
    let checkpoint = session::open_with(&args.model, &args.engine)?;
    let device = session::find_device(&checkpoint, &args.engine)?;
    let chunk = args.context.min(PREFILL_CHUNK);
    let (phase, cache) = (args.engine.phase(), args.engine.cache_type(&device));
    let screen = session::screen_bytes(&checkpoint, &device, &args.engine).unwrap_or(0);
    let setting = |on_gpu| Setting {
        phase,
        on_gpu,
        cache,
        context: args.context,
        chunk,
        screen: if on_gpu { 0 } else { screen },
    };
    let plan = MemoryPlan::new(&checkpoint, setting(!device.is_cpu()));
    let on_apple = MemoryPlan::new(&checkpoint, setting(true)).at(Place::Device);

    let before = Observed::now(&device.burn);
    let after = match args.observe {
        false => None,
        true => {
            let mut session = Session::start(&checkpoint, &args.engine)?;
            fill(&mut *session.engine, args.context)?;
            Some(Observed::now(&session.device.burn))
        }
    };
    if args.json {
        let report = json!({
            "context": args.context, "device": device.name, "phase": phase, "parts": plan.parts,
            "mapped": plan.at(Place::Mapped), "host": plan.at(Place::Host), "device_bytes": plan.at(Place::Device),
            "before": before, "after": after,
        });
        print(&format!("{report:#}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("{} in phase {} on {}, {} tokens\n", args.model.display(), phase, device.name, args.context);
    for part in &plan.parts {
        text += &format!("  {:28} {:8} {:>10}\n", part.what, place(part.place), size(part.bytes));
    }
    for at in [Place::Mapped, Place::Host, Place::Device] {
        if plan.at(at) > 0 {
            text += &format!("  {:28} {:8} {:>10}\n", "all", place(at), size(plan.at(at)));
        }
    }
    if let Some(after) = after {
        text += &observed_text(&plan, &before, &after);
    }
    text += &apple_text(on_apple);
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Takes a sequence to `context` tokens as generation does: steps for a prompt, and the last token by itself.
fn fill(engine: &mut dyn Engine, context: usize) -> Result<()> {
    let tokens = sample_tokens(0, context, engine.config().vocab);
    let (&token, prompt) = tokens.split_last().context("a context of no tokens")?;
    let step = |engine: &mut dyn Engine, tokens: &[u32]| -> Result<()> {
        let chunk = Chunk { sequence: session::SEQUENCE, tokens, logits: LogitsFor::LastToken };
        for logits in engine.step(&[chunk], &mut NoProbe)?.into_iter().flatten() {
            read_back(logits)?;
        }
        Ok(())
    };
    prompt.chunks(PREFILL_CHUNK).try_for_each(|chunk| step(engine, chunk))?;
    let choice = Choice::LIKELIEST;
    let mut batch = [Continuation { sequence: session::SEQUENCE, token, choice, draws: &mut || 0.0 }];
    match engine.decode(&mut batch, 1, &mut |_| ControlFlow::Continue(())) {
        Some(outcome) => Ok(outcome?),
        None => step(engine, &[token]),
    }
}

/// Predicted beside observed. What the process held before is added to what it was predicted to add.
fn observed_text(plan: &MemoryPlan, before: &Observed, after: &Observed) -> String {
    let mut text = format!("\n{:38} {:>10} {:>10}\n", "", "predicted", "observed");
    let mut row = |what: &str, predicted: Option<u64>, observed: Option<u64>| {
        if let (Some(predicted), Some(observed)) = (predicted, observed) {
            let ratio = observed as f64 / predicted as f64;
            text += &format!("  {what:36} {:>10} {:>10} {ratio:>6.2}\n", size(predicted), size(observed));
        }
    };
    if plan.at(Place::Device) > 0 {
        row("device, in use between steps", Some(plan.resident(Place::Device, false)), after.device_in_use);
        row("device, the allocator's pools", Some(plan.resident(Place::Device, true)), after.device_reserved);
        return text;
    }
    let added = |during_steps| plan.resident(Place::Host, during_steps) + plan.resident(Place::Mapped, during_steps);
    row("resident between steps", before.resident.map(|bytes| bytes + added(false)), after.resident);
    row("resident at most", before.resident.map(|bytes| bytes + added(true)), after.peak_resident);
    let own = before.anonymous.map(|bytes| bytes + plan.resident(Place::Host, false));
    row("of it the process's own", own, after.anonymous);
    text
}

/// What a 16 GB Apple machine would say.
fn apple_text(on_gpu: u64) -> String {
    let (need, budget) = (size(on_gpu), size(APPLE_16GB_GPU_BUDGET));
    if on_gpu <= APPLE_16GB_GPU_BUDGET {
        return format!("\nA 16 GB Apple machine gives its GPU {budget}: the {need} needed there fit.\n");
    }
    let megabytes = on_gpu.div_ceil(1 << 20) + 512;
    format!(
        "\nA 16 GB Apple machine gives its GPU {budget}, and {need} are needed there. Either raise the limit until the next start with\n\
         `sudo sysctl iogpu.wired_limit_mb={megabytes}`, or use --device cpu, which maps the file and needs no copy of it.\n"
    )
}

fn place(place: Place) -> &'static str {
    match place {
        Place::Mapped => "mapped",
        Place::Host => "host",
        Place::Device => "device",
    }
}
