//! The distance of engines from phase 3 in f32 on the CPU, which the gates check against MLX's goldens.

use std::path::Path;

use anyhow::Result;
use gates::{Check, Limit};
use phase1_loading::YarnRamp;
use phase2_forward::{DeviceChoice, Draw, Engine, Want, Work, argmax, sample_tokens};
use phase3_kvcache::prefill_chunk;
use serde_json::{Map, Value, json};

use crate::args::{Compare, EngineArgs, EngineKind};
use crate::session::{self, SEQUENCE, Session};

/// Seed of the tokens whose logits are compared.
const SEED: usize = 7;

/// The reference results, for each YaRN ramp that one of the engines uses.
pub struct References(Vec<Reference>);

struct Reference {
    ramp: YarnRamp,
    computed: Computed,
}

/// The results of an engine for the tokens.
struct Computed {
    /// `[tokens, vocab]`
    logits: Vec<f32>,
    /// The greedy tokens after them.
    greedy: Vec<u32>,
}

impl References {
    pub fn compute(args: &Compare, model: &Path, engines: &[EngineKind]) -> Result<References> {
        let engine_args =
            EngineArgs { engine: Some(EngineKind::Cached), device: DeviceChoice::Cpu, ..EngineArgs::reference() };
        let mut references = Vec::new();
        for ramp in YarnRamp::ALL {
            if ramp == YarnRamp::Truncated && !engines.contains(&EngineKind::LlamaCpp) {
                continue;
            }
            let mut checkpoint = session::open(model)?;
            checkpoint.config.rope.ramp = ramp;
            let mut session = Session::start(&checkpoint, &engine_args)?;
            references.push(Reference { ramp, computed: Computed::by(args, &mut *session.engine)? });
        }
        Ok(References(references))
    }

    /// The distance of an engine from each reference, by the name of its ramp.
    pub fn agreement(&self, args: &Compare, engine: &mut dyn Engine) -> Result<Value> {
        let vocab = engine.config().vocab;
        let found = Computed::by(args, engine)?;
        let mut agreement = Map::new();
        for Reference { ramp, computed } in &self.0 {
            let check = Check::values("", "", &computed.logits, &found.logits, Limit::F32);
            let rows = computed.logits.chunks_exact(vocab).zip(found.logits.chunks_exact(vocab));
            let likeliest = rows.filter(|(exact, found)| argmax(exact) == argmax(found)).count();
            let equal = computed.greedy.iter().zip(&found.greedy).take_while(|(exact, found)| exact == found).count();
            let distance = json!({
                "rms": check.rms, "max": check.max, "tokens": args.check, "likeliest_equal": likeliest,
                "greedy": args.greedy, "greedy_equal": equal,
            });
            agreement.insert(ramp.name().into(), distance);
        }
        Ok(agreement.into())
    }
}

impl Computed {
    fn by(args: &Compare, engine: &mut dyn Engine) -> Result<Computed> {
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
}
