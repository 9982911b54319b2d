//! The gate to phase 6 on the CPU: phase 3's, in f32 as it stands there, and in the fast mode within what a fast mode may lose.

use std::error::Error;
use std::ops::ControlFlow;

use cpu_kernels::Isa;
use gptoss_reference::{Case, Check, Limit, RopeMode};
use phase1_loading::Checkpoint;
use phase2_forward::gate::check_forward;
use phase2_forward::{Chunk, Engine, LogitsFor, NoProbe};
use phase3_kvcache::{CacheType, GenerationParams, generate};

use super::engine::{CpuEngine, CpuOptions};

/// Chunk lengths to feed the golden tokens in, as in phase 3.
const CHUNKS: [usize; 3] = [1, 5, 17];

/// What 16-bit activations and a rounded cache may cost, in shares of the logits' deviation.
const FAST: Limit = Limit { rms: 1e-2, max: 1e-1 };
/// What keys and values of 8 bits cost these models of random weights: 5e-2 was measured, a mistake costs 1.
const ROUNDED_TO_8_BITS: Limit = Limit { rms: 1e-1, max: 1.0 };

/// Loads the case's model and checks the engine on every instruction set of this machine: exactly as phase 3 is checked, then
/// the fast mode's logits with each type of cache.
///
/// # Errors
/// A model or golden that cannot be read.
pub fn run(case: &Case, rope: RopeMode) -> Result<Vec<Check>, Box<dyn Error>> {
    let checkpoint = Checkpoint::open(&case.model())?;
    let mut checks = Vec::new();
    for isa in Isa::all() {
        // Three threads on any machine: more than one, and no divisor of anything.
        let options = CpuOptions { threads: Some(3), exact: true, isa: Some(isa), kv: None };
        let mut engine = CpuEngine::load(&checkpoint, rope, options)?;
        let mut exact = check_forward(case, rope, &mut engine)?;
        for chunk in CHUNKS {
            exact.push(check_chunked(case, rope, &mut engine, chunk, Limit::F32)?);
            exact.extend(check_cache(case, rope, &engine, chunk)?);
            engine.release(0);
        }
        exact.push(check_generation(case, rope, &mut engine, &checkpoint)?);
        for kv in CacheType::ALL {
            let mut engine = CpuEngine::load(&checkpoint, rope, CpuOptions { exact: false, kv: Some(kv), ..options })?;
            let limit = if kv == CacheType::Q8_0 { ROUNDED_TO_8_BITS } else { FAST };
            for chunk in CHUNKS {
                let mut check = check_chunked(case, rope, &mut engine, chunk, limit)?;
                check.tensor = format!("{kv} fast {}", check.tensor);
                exact.push(check);
                engine.release(0);
            }
        }
        checks.extend(exact.into_iter().map(|check| Check { tensor: format!("{isa} {}", check.tensor), ..check }));
    }
    Ok(checks)
}

fn check_chunked(
    case: &Case,
    rope: RopeMode,
    engine: &mut CpuEngine,
    chunk: usize,
    limit: Limit,
) -> Result<Check, Box<dyn Error>> {
    let golden = case.golden(rope)?;
    let mut logits: Vec<f32> = Vec::new();
    for tokens in golden.u32s("tokens")?.chunks(chunk) {
        let step = Chunk { sequence: 0, tokens, logits: LogitsFor::EveryToken };
        let rows = engine.step(&[step], &mut NoProbe)?.pop().flatten().expect("logits were asked for");
        logits.extend(rows.into_data().try_to_vec::<f32>()?);
    }
    let label = format!("logits in chunks of {chunk} ({})", rope.name());
    Ok(Check::values(&case.name, label, &golden.f32s("logits")?, &logits, limit))
}

/// Compares what the cache holds after the golden tokens.
fn check_cache(case: &Case, rope: RopeMode, engine: &CpuEngine, chunk: usize) -> Result<Vec<Check>, Box<dyn Error>> {
    let golden = case.golden(rope)?;
    let mut checks = Vec::new();
    for layer in 0..engine.config().layers() {
        let (_, keys, values) = engine.cache(0, layer).expect("the sequence is cached");
        for (kind, found) in [("cache_k", keys), ("cache_v", values)] {
            let name = format!("layers.{layer}.{kind}");
            let label = format!("{name} in chunks of {chunk} ({})", rope.name());
            checks.push(Check::values(&case.name, label, &golden.f32s(&name)?, &found, Limit::F32));
        }
    }
    Ok(checks)
}

/// Generates greedily from the golden prompt, as a user would.
fn check_generation(
    case: &Case,
    rope: RopeMode,
    engine: &mut CpuEngine,
    checkpoint: &Checkpoint,
) -> Result<Check, Box<dyn Error>> {
    let golden = case.golden(rope)?;
    let tokens = golden.u32s("tokens")?;
    let (prompt, expected) = tokens.split_at(golden.number("prompt_len")?);
    let params = GenerationParams { max_tokens: expected.len(), prefill_chunk: 7, ..GenerationParams::default() };
    let tokenizer = checkpoint.tokenizer()?;
    let generation = generate(engine, &tokenizer, 0, prompt, &params, &mut |_| ControlFlow::Continue(()))?;
    engine.release(0);
    Ok(Check::ids(&case.name, format!("generated tokens ({})", rope.name()), expected, &generation.tokens))
}
