//! `gptoss logits`: writes the model's logits, for comparison with other programs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use phase1_loading::write_whole;
use phase2_forward::{Activation, Dump, Want, Work};
use safetensors::{Dtype, View};

use crate::args::Logits;
use crate::model::{self, LoadedModel, SEQUENCE};

pub fn run(args: &Logits) -> Result<ExitCode> {
    let checkpoint = model::open_with(&args.model, &args.engine)?;
    let tokens = match &args.input.prompt {
        Some(prompt) => checkpoint.tokenizer()?.encode_with_control(prompt),
        None => args.input.tokens.clone(),
    };
    if tokens.is_empty() {
        bail!("the prompt is empty; a model needs at least one token");
    }
    let mut loaded = LoadedModel::start(&checkpoint, &args.engine)?;
    let tensors = compute(&mut loaded, &tokens, args.dump)?;
    write(&tensors, args)?;
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    eprintln!("{}: {} tokens; {}", args.out.display(), tokens.len(), names.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// The logits of every position and, with `dump`, the activations. A text with more tokens than a step of the engine
/// can take is computed in several steps.
fn compute(loaded: &mut LoadedModel, tokens: &[u32], dump: bool) -> Result<BTreeMap<String, Activation>> {
    let vocab = loaded.engine.config().vocab;
    let mut tensors: BTreeMap<String, Activation> = BTreeMap::new();
    for tokens in tokens.chunks(loaded.engine.capacity().tokens_per_step) {
        let mut seen = Dump::default();
        let logits = match dump {
            true => {
                let work = Work::tokens(SEQUENCE, tokens, Want::AllLogits);
                loaded.engine.inspect(&[work], &mut seen)?.remove(0).logits()?
            }
            false => loaded.engine.all_logits(SEQUENCE, tokens)?,
        };
        let logits = ("logits".to_owned(), ([tokens.len(), vocab], logits));
        for (name, ([rows, width], values)) in seen.tensors.into_iter().chain([logits]) {
            let (shape, all) = tensors.entry(name).or_insert(([0, width], Vec::new()));
            shape[0] += rows;
            all.extend(values);
        }
    }
    Ok(tensors)
}

fn write(tensors: &BTreeMap<String, Activation>, args: &Logits) -> Result<()> {
    let views = tensors.iter().map(|(name, (shape, values))| (name, Values { shape, values }));
    let file = safetensors::serialize(views, None)?;
    write_whole(&args.out, |out| out.write_all(&file)).with_context(|| format!("writing {}", args.out.display()))
}

/// One tensor of the file; its bytes are created when they are written.
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
