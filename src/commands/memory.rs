//! `gptoss memory`: predicts where a model's bytes are stored, and with `--observe` measures the memory in use.

use std::process::ExitCode;

use anyhow::{Result, bail};
use phase2_forward::{Draw, Engine, Outcome, Want, Work, sample_tokens};
use phase3_kvcache::{PREFILL_CHUNK, prefill};
use phase4_profiling::{APPLE_16GB_GPU_BUDGET, EngineSetup, MemoryKind, MemoryPlan, Observed};
use phase5_flash::cache_bytes;
use serde_json::json;

use crate::args::{EngineKind, Memory};
use crate::commands::{print, record, size};
use crate::model::{self, LoadedModel, SEQUENCE};

/// The format name by which the notebooks recognize records.
const FORMAT: &str = "gptoss memory 1";

pub fn run(args: &Memory) -> Result<ExitCode> {
    let kind = args.engine.kind();
    let Some(phase) = kind.phase() else {
        bail!(
            "only the memory of gptoss's own engines is planned; `gptoss bench --engine {0}` measures that of {0}",
            kind.name()
        );
    };
    let checkpoint = model::open_with(&args.model, &args.engine)?;
    let longest = checkpoint.config.context_length;
    let context = args.context.unwrap_or(longest.min(model::USUAL_CONTEXT));
    if context > longest {
        bail!("--context {context}: the model's context holds {longest} tokens");
    }
    let device = model::find_device(&checkpoint, &args.engine)?;
    let chunk = context.min(PREFILL_CHUNK);
    let cache = args.engine.cache_type(&device);
    let shortlist = model::shortlist_bytes(&checkpoint, &device, &args.engine).unwrap_or(0);
    let kv_memory = args.engine.fast.kv_memory;
    let flash = kind == EngineKind::Flash;
    // On a GPU, weights are allocated first, and the cache takes at most nine tenths of the rest.
    let left = device.memory.map(|bytes| bytes.saturating_sub(checkpoint.weight_bytes()) / 10 * 9);
    let cache_at_most = flash.then(|| cache_bytes(&checkpoint.config, cache, kv_memory, left));
    let setup = |on_gpu| EngineSetup {
        phase,
        on_gpu,
        cache,
        context,
        // On the CPU, pages of the cache take memory only when they are written.
        pool: cache_at_most.filter(|_| on_gpu),
        chunk,
        shortlist: if on_gpu { 0 } else { shortlist },
    };
    let plan = MemoryPlan::new(&checkpoint, setup(!device.is_cpu()));

    let before = Observed::now(&device.burn);
    let after = match args.observe {
        false => None,
        true => {
            let mut loaded = LoadedModel::start(&checkpoint, &args.engine)?;
            fill(&mut *loaded.engine, context)?;
            Some(Observed::now(&loaded.device.burn))
        }
    };
    if args.json {
        let mut report = json!({
            "format": FORMAT,
            "context": context, "device": device.name, "engine": kind.name(), "phase": phase, "parts": plan.parts,
            "cache_at_most": cache_at_most,
            "mapped": plan.at(MemoryKind::Mapped), "host": plan.at(MemoryKind::Host),
            "device_bytes": plan.at(MemoryKind::Device),
            "before": before, "after": after, "model": record::model(&args.model, &checkpoint),
        });
        for (name, value) in record::origin(std::slice::from_ref(&args.model)) {
            report[name] = value;
        }
        print(&format!("{report:#}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("{} in phase {} on {}, {context} tokens\n", args.model.display(), phase, device.name);
    for part in &plan.parts {
        text += &format!("  {:32} {:8} {:>10}\n", part.what, kind_name(part.place), size(part.bytes));
    }
    for at in [MemoryKind::Mapped, MemoryKind::Host, MemoryKind::Device] {
        if plan.at(at) > 0 {
            text += &format!("  {:32} {:8} {:>10}\n", "all", kind_name(at), size(plan.at(at)));
        }
    }
    if let Some(cache_at_most) = cache_at_most.filter(|_| device.is_cpu()) {
        text += &format!(
            "  {:32} {:8} {:>10}\n",
            "cache at most, as it is used",
            kind_name(MemoryKind::Host),
            size(cache_at_most)
        );
    }
    if let Some(after) = after {
        text += &observed_text(&plan, &before, &after);
    }
    if cfg!(target_os = "macos") {
        // Without --kv-memory, the cache takes the memory that is left, so only the size of this context is planned.
        let given = kv_memory.filter(|_| flash);
        let plan = MemoryPlan::new(&checkpoint, EngineSetup { pool: given, ..setup(true) });
        text += &apple_text(plan.at(MemoryKind::Device));
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Extends a sequence to `context` tokens like generation does: prompt steps, and a step for the last token.
fn fill(engine: &mut dyn Engine, context: usize) -> Result<()> {
    let prompt = sample_tokens(0, context.max(2) - 1, engine.config().vocab);
    prefill(engine, SEQUENCE, &prompt, Want::Token(Draw::GREEDY))?.map(Outcome::token).transpose()?;
    if context > 1 {
        engine.step(&[Work::decode(SEQUENCE, Draw::GREEDY)])?.remove(0).token()?;
    }
    Ok(())
}

/// Predicted and observed memory. On the CPU, the memory that the process used before is added to the prediction.
fn observed_text(plan: &MemoryPlan, before: &Observed, after: &Observed) -> String {
    let mut text = format!("\n{:38} {:>10} {:>10}\n", "", "predicted", "observed");
    let mut row = |what: &str, predicted: Option<u64>, observed: Option<u64>| {
        if let (Some(predicted), Some(observed)) = (predicted, observed) {
            let ratio = observed as f64 / predicted as f64;
            text += &format!("  {what:36} {:>10} {:>10} {ratio:>6.2}\n", size(predicted), size(observed));
        }
    };
    if plan.at(MemoryKind::Device) > 0 {
        row("device, in use between steps", Some(plan.resident(MemoryKind::Device, false)), after.device_in_use);
        row("device, the allocator's pools", Some(plan.resident(MemoryKind::Device, true)), after.device_reserved);
        return text;
    }
    let added =
        |during_steps| plan.resident(MemoryKind::Host, during_steps) + plan.resident(MemoryKind::Mapped, during_steps);
    row("resident between steps", before.resident.map(|bytes| bytes + added(false)), after.resident);
    row("peak resident", before.resident.map(|bytes| bytes + added(true)), after.peak_resident);
    let own = before.anonymous.map(|bytes| bytes + plan.resident(MemoryKind::Host, false));
    row("of it anonymous memory", own, after.anonymous);
    text
}

/// Whether the model fits a 16 GB Apple machine.
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

fn kind_name(kind: MemoryKind) -> &'static str {
    match kind {
        MemoryKind::Mapped => "mapped",
        MemoryKind::Host => "host",
        MemoryKind::Device => "device",
    }
}
