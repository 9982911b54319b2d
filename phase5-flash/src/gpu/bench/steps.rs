//! Times whole steps of a model, as a caller of the engine sees them.

use std::ops::ControlFlow;
use std::time::Instant;

use gptoss_reference::RopeMode;
use phase1_loading::Checkpoint;
use phase2_forward::{Choice, Chunk, ComputeDevice, Continuation, Engine, LogitsFor, NoProbe};
use phase3_kvcache::CacheType;

use super::{Measurement, next};
use crate::gpu::{GpuEngine, GpuError, Options};

/// Measures whole steps of a model: prompts, generation at several depths, and several sequences at once.
///
/// # Errors
/// A device that is no GPU or fails, or a model that it cannot hold.
pub fn steps(
    checkpoint: &Checkpoint,
    device: &ComputeDevice,
    kv: CacheType,
    depths: &[usize],
    describe: &mut dyn FnMut(&str),
    report: &mut dyn FnMut(&Measurement),
) -> Result<(), GpuError> {
    let start = Instant::now();
    let mut engine = GpuEngine::load(checkpoint, device, RopeMode::Exact, Options { kv }, &mut |_, _| ())?;
    describe(&format!("{}: loaded in {:.1} s, cache {kv}", device.name, start.elapsed().as_secs_f64()));
    let vocab = checkpoint.config.vocab as u64;
    let mut seed = 8;
    let mut tokens = |count: usize| (0..count).map(|_| (next(&mut seed) % vocab) as u32).collect::<Vec<u32>>();
    let measured = |name: String, variant: String, seconds: f64, tokens: usize| Measurement {
        name,
        variant,
        seconds,
        bytes: 0,
        tokens,
        error: None,
    };
    let failed = |error: phase2_forward::EngineError| GpuError::Device(error.to_string());
    let step = |engine: &mut GpuEngine, batch: &[(u64, Vec<u32>)], logits: LogitsFor| {
        let chunk = |(sequence, tokens): &'_ (u64, Vec<u32>)| (*sequence, tokens.clone());
        let owned: Vec<_> = batch.iter().map(chunk).collect();
        let batch: Vec<Chunk<'_>> =
            owned.iter().map(|(sequence, tokens)| Chunk { sequence: *sequence, tokens, logits }).collect();
        let start = Instant::now();
        engine.step(&batch, &mut NoProbe).map_err(failed)?;
        engine.gpu.sync()?;
        Ok::<_, GpuError>(start.elapsed().as_secs_f64())
    };

    let likeliest = Choice { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    let decode = |engine: &mut GpuEngine, inputs: &[(u64, u32)], choice: Choice, count: usize| {
        let mut draws = vec![|| 0.5; inputs.len()];
        let mut batch: Vec<_> = inputs
            .iter()
            .zip(&mut draws)
            .map(|(&(sequence, token), draws)| Continuation { sequence, token, choice, draws })
            .collect();
        let start = Instant::now();
        engine.decode(&mut batch, count, &mut |_| ControlFlow::Continue(())).transpose().map_err(failed)?;
        Ok::<_, GpuError>(start.elapsed().as_secs_f64())
    };

    for _ in 0..3 {
        let seconds = step(&mut engine, &[(0, tokens(512))], LogitsFor::LastToken)?;
        report(&measured("prompt".into(), "512 tokens".into(), seconds, 512));
        engine.release(0);
    }
    let mut depth = 1;
    step(&mut engine, &[(1, tokens(1))], LogitsFor::LastToken)?;
    for &wanted in depths {
        let mut seconds = 0.0;
        let before = depth;
        while depth < wanted {
            let count = (wanted - depth).min(512);
            seconds += step(&mut engine, &[(1, tokens(count))], LogitsFor::Nothing)?;
            depth += count;
        }
        if depth > before {
            report(&measured("prompt".into(), format!("from {before} to {depth}"), seconds, depth - before));
        }
        for round in ["first", "second", "third", "fourth"] {
            let count = 256;
            let seconds = decode(&mut engine, &[(1, tokens(1)[0])], likeliest, count)?;
            report(&measured("generation".into(), format!("depth {depth}, {round}"), seconds, count));
            depth += count;
        }
    }
    engine.release(1);
    for sequences in [1, 2, 4, 10, 16, 32, 64] {
        let mut best = f64::MAX;
        for _ in 0..5 {
            let batch: Vec<_> = (0..sequences).map(|sequence| (sequence, tokens(1))).collect();
            best = best.min(step(&mut engine, &batch, LogitsFor::LastToken)?);
        }
        let count = sequences as usize;
        report(&measured("step".into(), format!("{sequences} sequences"), best, count));
        let drawn = Choice { temperature: 1.0, top_p: 0.9, ..likeliest };
        for (choice, how) in [(likeliest, "greedy"), (drawn, "drawn with top-p")] {
            let inputs: Vec<_> = (0..sequences).zip(tokens(count)).collect();
            // The first call captures the step.
            decode(&mut engine, &inputs, choice, 4)?;
            let seconds = decode(&mut engine, &inputs, choice, 64)?;
            report(&measured("generation".into(), format!("{sequences} sequences, {how}"), seconds, 64 * count));
        }
    }
    Ok(())
}
