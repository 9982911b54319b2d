//! `gptoss logits`: what the model computes, for other programs to compare with.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result};
use phase2_forward::{Chunk, Dump, LogitsFor, NoProbe, Probe, read_back};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::args::Logits;
use crate::session::{self, Session};

pub fn run(args: &Logits) -> Result<ExitCode> {
    let checkpoint = session::open_with(&args.model, &args.engine)?;
    let tokens = match &args.input.prompt {
        Some(prompt) => checkpoint.tokenizer()?.encode_with_control(prompt),
        None => args.input.tokens.clone(),
    };
    let mut session = Session::start(&checkpoint, &args.engine)?;
    let mut dump = Dump::default();
    let probe: &mut dyn Probe = if args.dump { &mut dump } else { &mut NoProbe };
    let chunk = Chunk { sequence: 0, tokens: &tokens, logits: LogitsFor::EveryToken };
    let logits = session.engine.step(&[chunk], probe)?.pop().flatten().expect("logits were asked for");
    let mut tensors = dump.tensors;
    let shape = logits.dims();
    tensors.insert("logits".into(), (shape, read_back(logits)?));
    write(&tensors, args)?;
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    eprintln!("{}: {} tokens; {}", args.out.display(), tokens.len(), names.join(", "));
    Ok(ExitCode::SUCCESS)
}

fn write(tensors: &BTreeMap<String, ([usize; 2], Vec<f32>)>, args: &Logits) -> Result<()> {
    let bytes: Vec<(&str, [usize; 2], Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name.as_str(), *shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, data)| Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), data)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    safetensors::serialize_to_file(views, None, &args.out).with_context(|| format!("writing {}", args.out.display()))
}
