//! `gptoss inspect`: the contents of a model file, and the memory that the model needs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use phase1_loading::{AttentionKind, Checkpoint, Format, GptOssConfig, check_values};
use phase3_kvcache::{CacheLayout, CacheType};
use serde_json::{Value, json};

use crate::args::Inspect;
use crate::commands::{print, size};
use crate::model;

/// The contexts for which memory is shown; the model's own context in place of longer ones.
const CONTEXTS: [usize; 2] = [4096, 8192];

pub fn run(args: &Inspect) -> Result<ExitCode> {
    let checkpoint = model::open(&args.model)?;
    if args.check {
        for (name, tensor) in &checkpoint.tensors {
            check_values(&checkpoint.path, name, tensor)?;
        }
        eprintln!("{}: every weight is finite", checkpoint.path.display());
    }
    let report =
        if args.json { format!("{:#}\n", to_json(&checkpoint, args.kv)?) } else { to_text(&checkpoint, args.kv)? };
    print(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// [`CONTEXTS`], each limited to the model's own context, without duplicates.
fn contexts(config: &GptOssConfig) -> Vec<usize> {
    let mut contexts = CONTEXTS.map(|context| context.min(config.context_length)).to_vec();
    contexts.dedup();
    contexts
}

/// Number of tensors and bytes per storage format.
fn by_format(checkpoint: &Checkpoint) -> BTreeMap<Format, (usize, u64)> {
    let mut sizes = BTreeMap::new();
    for tensor in checkpoint.tensors.values() {
        let (count, bytes) = sizes.entry(tensor.format).or_default();
        *count += 1;
        *bytes += tensor.bytes() as u64;
    }
    sizes
}

fn attention_names(config: &GptOssConfig) -> Vec<&'static str> {
    let name = |kind: &AttentionKind| match kind {
        AttentionKind::Sliding => "sliding",
        AttentionKind::Full => "full",
    };
    config.attention.iter().map(name).collect()
}

/// A short text if sliding and full layers alternate, otherwise the kind of every layer.
fn attention_text(config: &GptOssConfig) -> String {
    let names = attention_names(config);
    let alternating = (0..names.len()).all(|layer| names[layer] == ["sliding", "full"][layer % 2]);
    if alternating { "sliding and full in turn".into() } else { names.join(" ") }
}

fn to_text(checkpoint: &Checkpoint, kv: CacheType) -> Result<String> {
    let mut out = String::new();
    let config = &checkpoint.config;
    let rope = &config.rope;
    writeln!(out, "{}", checkpoint.path.display())?;
    writeln!(out, "  layers          {} ({})", config.layers(), attention_text(config))?;
    writeln!(out, "  hidden          {}", config.hidden)?;
    writeln!(out, "  heads           {} query, {} key/value, of {}", config.heads, config.kv_heads, config.head_dim)?;
    writeln!(
        out,
        "  experts         {}, {} a token, {} wide",
        config.experts, config.experts_per_token, config.expert_width
    )?;
    writeln!(out, "  vocabulary      {}", config.vocab)?;
    writeln!(out, "  context         {}, sliding window {}", config.context_length, config.sliding_window)?;
    writeln!(out, "  rope            theta {}, YaRN × {} from {}", rope.theta, rope.factor, rope.original_context)?;
    writeln!(out, "  rms epsilon     {}", config.rms_eps)?;

    let tokenizer = checkpoint.tokenizer()?;
    let stops: Vec<String> = tokenizer.stops().iter().map(|&t| format!("{} {t}", tokenizer.decode(&[t]))).collect();
    writeln!(out, "\ntokenizer         byte-level BPE, {} tokens; stops at {}", tokenizer.vocab(), stops.join(", "))?;

    writeln!(out, "\nweights")?;
    for (format, (count, bytes)) in by_format(checkpoint) {
        writeln!(out, "  {:6} {count:>5} tensors {:>10}", format.name(), size(bytes))?;
    }
    writeln!(out, "  {:6} {:>5} tensors {:>10}", "all", checkpoint.tensors.len(), size(checkpoint.weight_bytes()))?;

    writeln!(out, "\nmemory            weights      cache        both")?;
    let layout = CacheLayout::new(config, kv);
    for context in contexts(config) {
        let (weights, cache) = (checkpoint.weight_bytes(), layout.occupied_bytes(context));
        writeln!(
            out,
            "  context {context:>5} {:>10} {:>10} {:>11}",
            size(weights),
            size(cache),
            size(weights + cache)
        )?;
    }

    writeln!(out, "\ntensors")?;
    for (name, tensor) in &checkpoint.tensors {
        writeln!(
            out,
            "  {name:36} {:6} {:>20} {:>10}",
            tensor.format.name(),
            format!("{:?}", tensor.shape),
            size(tensor.bytes() as u64)
        )?;
    }
    Ok(out)
}

fn to_json(checkpoint: &Checkpoint, kv: CacheType) -> Result<Value> {
    let config = &checkpoint.config;
    let tokenizer = checkpoint.tokenizer()?;
    let formats: BTreeMap<&str, Value> = by_format(checkpoint)
        .into_iter()
        .map(|(format, (tensors, bytes))| (format.name(), json!({ "tensors": tensors, "bytes": bytes })))
        .collect();
    let layout = CacheLayout::new(config, kv);
    let memory: Vec<Value> = contexts(config)
        .into_iter()
        .map(|context| {
            let (weights, cache) = (checkpoint.weight_bytes(), layout.occupied_bytes(context));
            json!({ "context": context, "weights": weights, "cache": cache, "total": weights + cache })
        })
        .collect();
    let tensors: Vec<Value> = checkpoint
        .tensors
        .iter()
        .map(|(name, tensor)| {
            let format = tensor.format.name();
            json!({ "name": name, "format": format, "shape": tensor.shape, "bytes": tensor.bytes() })
        })
        .collect();
    Ok(json!({
        "path": checkpoint.path,
        "config": {
            "layers": config.layers(),
            "attention": attention_names(config),
            "hidden": config.hidden,
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "experts": config.experts,
            "experts_per_token": config.experts_per_token,
            "expert_width": config.expert_width,
            "vocab": config.vocab,
            "context_length": config.context_length,
            "sliding_window": config.sliding_window,
            "rms_eps": config.rms_eps,
            "rope": {
                "theta": config.rope.theta,
                "factor": config.rope.factor,
                "original_context": config.rope.original_context,
            },
        },
        "tokenizer": { "vocab": tokenizer.vocab(), "stops": tokenizer.stops() },
        "weights": { "bytes": checkpoint.weight_bytes(), "formats": formats },
        "memory": memory,
        "tensors": tensors,
    }))
}
