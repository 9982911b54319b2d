//! `gptoss logits`: what the model computes, for other programs to compare with.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use phase1_loading::write_whole;
use phase2_forward::{Chunk, Dump, LogitsFor, NoProbe, Probe, read_back};
use safetensors::{Dtype, View};

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
    let views = tensors.iter().map(|(name, (shape, values))| (name, Values { shape, values }));
    let file = safetensors::serialize(views, None)?;
    write_whole(&args.out, |out| out.write_all(&file)).with_context(|| format!("writing {}", args.out.display()))
}

/// One tensor of the file; its bytes are made only when they are written.
struct Values<'a> {
    shape: &'a [usize; 2],
    values: &'a [f32],
}

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}
