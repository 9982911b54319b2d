//! Phase 3's gate, a comparison with MLX's golden outputs: with a cache and in chunks, logits and cache contents still equal MLX's.

use std::error::Error;
use std::ops::ControlFlow;

use gptoss_reference::{Case, Check, Limit};
use phase1_loading::{Checkpoint, YarnRamp};
use phase2_forward::{ComputeDevice, Engine, GptOss, Inspect};
use phase3_kvcache::{CachedEngine, GenerationParams, ReadCache, generate};

use crate::checks::{Checks, open};
use crate::forward::check_forward;

/// Chunk lengths for the golden tokens: single tokens, and two lengths that divide neither the window nor the number of tokens of any case.
pub const CHUNKS: [usize; 3] = [1, 5, 17];

/// Loads the case's model and checks the cached engine.
///
/// # Errors
/// A model or golden file cannot be read, or the engine refuses the tokens.
pub fn run(case: &Case, device: &ComputeDevice, ramp: YarnRamp) -> Checks {
    let checkpoint = open(&case.model(), ramp)?;
    let mut engine = CachedEngine::new(GptOss::load(&checkpoint, device.clone(), &mut |_, _| ())?);
    check_engine(case, ramp, &mut engine, &checkpoint)
}

/// Checks an engine that has loaded the case's model: in one step, in chunks, its cache and its generated tokens.
///
/// # Errors
/// A golden file cannot be read, or the engine refuses the tokens.
pub fn check_engine<E: Inspect + ReadCache>(
    case: &Case,
    ramp: YarnRamp,
    engine: &mut E,
    checkpoint: &Checkpoint,
) -> Checks {
    let mut checks = check_forward(case, ramp, engine)?;
    for chunk in CHUNKS {
        checks.push(check_chunked(case, ramp, engine, chunk, Limit::F32)?);
        checks.extend(check_cache(case, ramp, engine, chunk)?);
        engine.release(0);
    }
    checks.push(check_generation(case, ramp, engine, checkpoint)?);
    Ok(checks)
}

/// Compares the logits of the golden tokens, fed `chunk` at a time.
///
/// # Errors
/// As [`check_engine`].
pub fn check_chunked(
    case: &Case,
    ramp: YarnRamp,
    engine: &mut dyn Engine,
    chunk: usize,
    limit: Limit,
) -> Result<Check, Box<dyn Error>> {
    let golden = case.golden(ramp.name())?;
    let mut logits: Vec<f32> = Vec::new();
    for tokens in golden.u32s("tokens")?.chunks(chunk) {
        logits.extend(engine.all_logits(0, tokens)?);
    }
    let label = format!("logits in chunks of {chunk} ({})", ramp.name());
    Ok(Check::values(&case.name, label, &golden.f32s("logits")?, &logits, limit))
}

/// Compares the contents of the cache after the golden tokens, in order of position.
fn check_cache(case: &Case, ramp: YarnRamp, engine: &dyn ReadCache, chunk: usize) -> Checks {
    let golden = case.golden(ramp.name())?;
    let mut checks = Vec::new();
    for layer in 0..engine.config().layers() {
        let (positions, keys, values) = engine.read_cache(0, layer).expect("the sequence is cached");
        for (kind, tensor) in [("cache_k", keys), ("cache_v", values)] {
            let [heads, slots, dim] = tensor.dims();
            let stored: Vec<f32> = tensor.into_data().try_to_vec()?;
            let mut order: Vec<usize> = (0..slots).collect();
            order.sort_by_key(|&slot| positions[slot]);
            let rows = (0..heads).flat_map(|head| order.iter().map(move |slot| head * slots + slot));
            let ordered: Vec<f32> = rows.flat_map(|row| &stored[row * dim..(row + 1) * dim]).copied().collect();
            let name = format!("layers.{layer}.{kind}");
            let label = format!("{name} in chunks of {chunk} ({})", ramp.name());
            checks.push(Check::values(&case.name, label, &golden.f32s(&name)?, &ordered, Limit::F32));
        }
    }
    Ok(checks)
}

/// Generates greedily from the golden prompt. Where the window is shorter than the whole text, the ring buffers of sliding layers wrap
/// around.
pub(crate) fn check_generation(
    case: &Case,
    ramp: YarnRamp,
    engine: &mut dyn Engine,
    checkpoint: &Checkpoint,
) -> Result<Check, Box<dyn Error>> {
    let golden = case.golden(ramp.name())?;
    let tokens = golden.u32s("tokens")?;
    let (prompt, expected) = tokens.split_at(golden.number("prompt_len")?);
    let params = GenerationParams { max_tokens: expected.len(), prefill_chunk: 7, ..GenerationParams::default() };
    let tokenizer = checkpoint.tokenizer()?;
    let generation = generate(engine, &tokenizer, 0, &[], prompt, &params, &mut |_| ControlFlow::Continue(()))?;
    engine.release(0);
    Ok(Check::ids(&case.name, format!("generated tokens ({})", ramp.name()), expected, &generation.tokens))
}
