//! The difference of an engine's results from those of phase 3 in f32 on the CPU, which `gptoss gates` compares with MLX's golden values.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use gates::{Check, Limit};
use phase1_loading::YarnRamp;
use phase2_forward::{DeviceChoice, Draw, Engine, Want, Work, argmax, sample_tokens};
use phase3_kvcache::prefill_chunk;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::args::{Compare, EngineArgs, EngineKind};
use crate::model::{self, LoadedModel, SEQUENCE};

/// Seed of the tokens whose logits are compared.
const SEED: usize = 7;

/// The reference results: for the exact YaRN ramp, and for each other ramp that one of the engines uses.
pub struct References {
    vocab: usize,
    all: Vec<Reference>,
}

struct Reference {
    ramp: YarnRamp,
    computed: Computed,
}

/// The results of an engine that are compared: logits of random tokens, and greedy tokens.
pub struct Computed {
    /// `[tokens, vocab]`
    logits: Vec<f32>,
    /// The greedy tokens after the random ones.
    greedy: Vec<u32>,
}

/// The first line of a child process's output; the logits follow it.
#[derive(Serialize, Deserialize)]
struct Head {
    greedy: Vec<u32>,
    /// Number of logits that follow.
    logits: usize,
}

impl References {
    pub fn compute(args: &Compare, model: &Path, engines: &[EngineKind]) -> Result<References> {
        let engine_args =
            EngineArgs { engine: Some(EngineKind::Cached), device: DeviceChoice::Cpu, ..EngineArgs::reference() };
        let mut checkpoint = model::open(model)?;
        let (own, vocab) = (checkpoint.config.rope.ramp, checkpoint.config.vocab);
        let mut all = Vec::new();
        for ramp in YarnRamp::ALL {
            let llama_cpp_has_it = ramp == YarnRamp::Truncated && engines.contains(&EngineKind::LlamaCpp);
            if ramp != YarnRamp::Exact && ramp != own && !llama_cpp_has_it {
                continue;
            }
            checkpoint.config.rope.ramp = ramp;
            let mut loaded = LoadedModel::start(&checkpoint, &engine_args)?;
            all.push(Reference { ramp, computed: Computed::by(args, &mut *loaded.engine)? });
        }
        Ok(References { vocab, all })
    }

    /// The differences of an engine's results from each reference, by the name of the reference's ramp.
    pub fn agreement(&self, args: &Compare, found: &Computed) -> Value {
        let mut agreement = Map::new();
        for Reference { ramp, computed } in &self.all {
            let check = Check::values("", "", &computed.logits, &found.logits, Limit::F32);
            let rows = computed.logits.chunks_exact(self.vocab).zip(found.logits.chunks_exact(self.vocab));
            let likeliest = rows.filter(|(exact, found)| argmax(exact) == argmax(found)).count();
            let equal = computed.greedy.iter().zip(&found.greedy).take_while(|(exact, found)| exact == found).count();
            let distance = json!({
                "rms": check.rms, "max": check.max, "tokens": args.check, "likeliest_equal": likeliest,
                "greedy": args.greedy, "greedy_equal": equal,
            });
            agreement.insert(ramp.name().into(), distance);
        }
        agreement.into()
    }
}

impl Computed {
    /// Feeds an engine `args.check` tokens, and then its own greedy tokens.
    pub fn by(args: &Compare, engine: &mut dyn Engine) -> Result<Computed> {
        let tokens = sample_tokens(SEED, args.check, engine.config().vocab);
        let mut logits = Vec::new();
        for tokens in tokens.chunks(prefill_chunk(engine)) {
            logits.extend(engine.all_logits(SEQUENCE, tokens)?);
        }
        let mut greedy = vec![argmax(&logits[logits.len() - engine.config().vocab..])];
        while greedy.len() < args.greedy {
            let last = greedy[greedy.len() - 1];
            let work = Work::tokens(SEQUENCE, std::slice::from_ref(&last), Want::Token(Draw::GREEDY));
            greedy.push(engine.step(&[work])?.remove(0).token()?.id);
        }
        engine.release(SEQUENCE);
        Ok(Computed { logits, greedy })
    }

    /// Writes a line of JSON and the logits as little-endian f32.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let head = Head { greedy: self.greedy.clone(), logits: self.logits.len() };
        writeln!(out, "{}", serde_json::to_string(&head)?)?;
        let logits: Vec<u8> = self.logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        out.write_all(&logits)
    }

    /// Reads the output of [`Computed::write`], and returns the remaining bytes too. If the line has an `error` instead, returns that
    /// error.
    pub fn read(bytes: &[u8]) -> Result<(Computed, &[u8])> {
        let end = bytes.iter().position(|&byte| byte == b'\n').context("its process wrote nothing")?;
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        let line: Value = serde_json::from_slice(line).context("its process wrote no JSON")?;
        if let Some(error) = line["error"].as_str() {
            bail!("{error}");
        }
        let Head { greedy, logits } = serde_json::from_value(line).context("its process wrote no logits")?;
        let split = logits.checked_mul(size_of::<f32>()).and_then(|bytes| rest.split_at_checked(bytes));
        let (logits, rest) = split.context("its process wrote too few logits")?;
        let value = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok((Computed { logits: logits.chunks_exact(size_of::<f32>()).map(value).collect(), greedy }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_logits_are_read_back() {
        let computed = Computed { logits: vec![1.5, -0.0, f32::MAX, 10.0], greedy: vec![7, 10] };
        let mut bytes = Vec::new();
        computed.write(&mut bytes).expect("writing to a Vec does not fail");
        bytes.extend(b"{}\n");
        let (read, rest) = Computed::read(&bytes).expect("the output is complete");
        let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
        assert_eq!((bits(&read.logits), read.greedy), (bits(&computed.logits), computed.greedy));
        assert_eq!(rest, b"{}\n");
    }

    #[test]
    fn incomplete_logits_are_refused() {
        for (bytes, expected) in [
            (&b""[..], "its process wrote nothing"),
            (b"hello\n", "its process wrote no JSON"),
            (b"{}\n", "its process wrote no logits"),
            (b"{\"greedy\":[1],\"logits\":2}\n1234567", "its process wrote too few logits"),
            (b"{\"greedy\":[1],\"logits\":18446744073709551615}\n", "its process wrote too few logits"),
            (b"{\"error\":\"no room\"}\n", "no room"),
        ] {
            let error = Computed::read(bytes).err().expect("the output is incomplete");
            assert_eq!(error.to_string(), expected);
        }
    }
}
