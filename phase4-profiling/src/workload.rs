//! Runs an engine through what is to be profiled.

use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use phase2_forward::{Chunk, Engine, EngineError, LogitsFor, NoProbe, SequenceId, read_back};
use phase3_kvcache::PREFILL_CHUNK;

use crate::profile::{Clock, Step, Workload};
use crate::recorder::Recorder;

/// A sequence of its own, beside those of a workload, which count from 0.
const WARM_UP_SEQUENCE: SequenceId = SequenceId::MAX;
/// How long a device is kept busy before anything is recorded: its clocks rise within that time.
const BUSY: Duration = Duration::from_millis(300);

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
    let (sequences, new, depth) = match workload {
        Workload::Decode { sequences, depth } => (sequences, 1, depth),
        Workload::Prefill { tokens } => (1, tokens, 0),
    };
    warm_up(engine)?;
    let (mut recorded, mut clock) = (Vec::new(), Clock::Host);
    for number in 0..WARM_UP + steps {
        // Sequences that have grown by the steps before are deep enough; without depth each begins anew.
        if depth == 0 || number == 0 {
            for sequence in 0..sequences as SequenceId {
                engine.release(sequence);
                fill(engine, sequence, depth)?;
            }
        }
        let tokens = sample_tokens(number, sequences * new, vocab);
        let chunk = |(sequence, tokens)| Chunk { sequence, tokens, logits: LogitsFor::LastToken };
        let batch: Vec<Chunk<'_>> = (0..).zip(tokens.chunks(new)).map(chunk).collect();
        if number < WARM_UP {
            read_all(engine.step(&batch, &mut NoProbe)?)?;
        } else {
            recorder.begin();
            let logits = engine.step(&batch, recorder)?;
            let (step, measured_by) = recorder.finish(logits)?;
            recorded.push(step);
            clock = measured_by;
        }
        progress(number + 1);
    }
    (0..sequences as SequenceId).for_each(|sequence| engine.release(sequence));
    Ok((recorded, clock))
}

/// Decodes for a while in a sequence of its own: kernels are compiled then, and clocks are up.
///
/// # Errors
/// As the engine's.
pub fn warm_up(engine: &mut dyn Engine) -> Result<(), EngineError> {
    let start = Instant::now();
    while start.elapsed() < BUSY {
        let chunk = Chunk { sequence: WARM_UP_SEQUENCE, tokens: &[0], logits: LogitsFor::LastToken };
        read_all(engine.step(&[chunk], &mut NoProbe)?)?;
        engine.release(WARM_UP_SEQUENCE);
    }
    Ok(())
}

fn fill(engine: &mut dyn Engine, sequence: SequenceId, depth: usize) -> Result<(), EngineError> {
    let tokens = sample_tokens(sequence as usize, depth, engine.config().vocab);
    for chunk in tokens.chunks(PREFILL_CHUNK) {
        engine.step(&[Chunk { sequence, tokens: chunk, logits: LogitsFor::Nothing }], &mut NoProbe)?;
    }
    Ok(())
}

/// Waits for every logit of a step.
pub(crate) fn read_all(logits: Vec<Option<Tensor<2>>>) -> Result<(), EngineError> {
    logits.into_iter().flatten().try_for_each(|logits| read_back(logits).map(drop))
}

/// Tokens all over the vocabulary, the same in every run.
pub fn sample_tokens(seed: usize, count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|index| ((seed * 104_729 + index * 7_919 + 13) % vocab) as u32).collect()
}
