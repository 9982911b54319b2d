//! Runs an engine through what is to be profiled.

use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use phase2_forward::{Chunk, Engine, EngineError, LogitsFor, NoProbe, Probe, SequenceId, read_back};

use crate::profile::{Clock, Step, Workload};
use crate::recorder::Recorder;

const SEQUENCE: SequenceId = 0;
const WARM_UP_SEQUENCE: SequenceId = 1;
/// How long a device is kept busy before anything is recorded: its clocks rise within that time.
const BUSY: Duration = Duration::from_millis(300);
/// Earlier tokens that one step takes, which bounds the memory of their attention scores.
const PREFILL_CHUNK: usize = 512;

/// Steps of the workload itself that are not recorded: kernels are compiled and weights paged in by the first.
const WARM_UP: usize = 1;

/// Computes `steps` steps of a workload, after one that is not recorded. `progress` hears how many steps are done.
///
/// # Errors
/// A workload that the model's context cannot hold, or a device that fails.
pub fn run(
    engine: &mut dyn Engine,
    workload: Workload,
    steps: usize,
    recorder: &mut Recorder<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<(Vec<Step>, Clock), EngineError> {
    let vocab = engine.config().vocab;
    warm_up(engine)?;
    let (mut recorded, mut clock) = (Vec::new(), Clock::Host);
    for number in 0..WARM_UP + steps {
        let tokens = match workload {
            Workload::Decode { depth } => {
                // A sequence that has grown by the steps before is deep enough; without depth each begins anew.
                if depth == 0 || number == 0 {
                    engine.release(SEQUENCE);
                    fill(engine, depth)?;
                }
                sample_tokens(number, 1, vocab)
            }
            Workload::Prefill { tokens } => {
                engine.release(SEQUENCE);
                sample_tokens(number, tokens, vocab)
            }
        };
        if number < WARM_UP {
            step(engine, SEQUENCE, &tokens, &mut NoProbe)?.map(read_back).transpose()?;
        } else {
            recorder.begin();
            let logits = step(engine, SEQUENCE, &tokens, recorder)?;
            let (step, measured_by) = recorder.finish(logits)?;
            recorded.push(step);
            clock = measured_by;
        }
        progress(number + 1);
    }
    engine.release(SEQUENCE);
    Ok((recorded, clock))
}

/// Decodes for a while in a sequence of its own: kernels are compiled then, and clocks are up.
///
/// # Errors
/// As the engine's.
pub fn warm_up(engine: &mut dyn Engine) -> Result<(), EngineError> {
    let start = Instant::now();
    while start.elapsed() < BUSY {
        step(engine, WARM_UP_SEQUENCE, &[0], &mut NoProbe)?.map(read_back).transpose()?;
        engine.release(WARM_UP_SEQUENCE);
    }
    Ok(())
}

fn fill(engine: &mut dyn Engine, depth: usize) -> Result<(), EngineError> {
    let tokens = sample_tokens(0, depth, engine.config().vocab);
    for chunk in tokens.chunks(PREFILL_CHUNK) {
        engine.step(&[Chunk { sequence: SEQUENCE, tokens: chunk, logits: LogitsFor::Nothing }], &mut NoProbe)?;
    }
    Ok(())
}

fn step(
    engine: &mut dyn Engine,
    sequence: SequenceId,
    tokens: &[u32],
    probe: &mut dyn Probe,
) -> Result<Option<Tensor<2>>, EngineError> {
    let chunk = Chunk { sequence, tokens, logits: LogitsFor::LastToken };
    Ok(engine.step(&[chunk], probe)?.pop().flatten())
}

/// Tokens all over the vocabulary, the same in every run.
pub fn sample_tokens(seed: usize, count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|index| ((seed * 104_729 + index * 7_919 + 13) % vocab) as u32).collect()
}
