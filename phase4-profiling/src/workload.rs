//! Runs an engine through the workload to be profiled.

use std::time::{Duration, Instant};

use phase1_loading::GptOssConfig;
use phase2_forward::{BadRequest, Engine, EngineError, Inspect, NoProbe, SequenceId, Want, Work, sample_tokens};
use phase3_kvcache::prefill;

use crate::profile::{Clock, TimedStep, Workload};
use crate::recorder::Recorder;

/// A sequence ID that no workload uses; workloads number their sequences from 0.
const WARM_UP_SEQUENCE: SequenceId = SequenceId::MAX;
/// How long a device is kept busy before recording, so that its clocks reach their full rate.
const BUSY_TIME: Duration = Duration::from_millis(300);

/// Number of unrecorded steps at the start of a workload: the first step compiles kernels and reads weights into memory.
const WARM_UP: usize = 1;

/// Computes `steps` steps of a workload, after one unrecorded step. `progress` is called with the number of steps done,
/// the unrecorded one included.
///
/// # Errors
/// The model's context or the engine's cache cannot hold the workload, or the device fails.
pub fn run(
    engine: &mut dyn Inspect,
    workload: Workload,
    steps: usize,
    recorder: &mut Recorder<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<(Vec<TimedStep>, Clock), EngineError> {
    let GptOssConfig { vocab, context_length: context, .. } = *engine.config();
    let (sequences, new, depth) = match workload {
        Workload::Decode { sequences, depth } => (sequences, 1, depth),
        Workload::Prefill { tokens } => (1, tokens, 0),
    };
    let more = if depth == 0 { new } else { WARM_UP.saturating_add(steps) };
    let length = depth.saturating_add(more);
    if length > context {
        return Err(BadRequest::ContextExceeded { sequence: 0, length, context }.into());
    }
    warm_up(engine)?;
    let (mut recorded, mut clock) = (Vec::new(), Clock::Host);
    for number in 0..WARM_UP + steps {
        // At a depth above 0, sequences continue where the step before ended; at depth 0, each step begins new ones.
        if depth == 0 || number == 0 {
            for sequence in 0..sequences as SequenceId {
                engine.release(sequence);
                fill(engine, sequence, depth)?;
            }
        }
        let tokens = sample_tokens(number, sequences * new, vocab);
        let parts = parts(&tokens, workload, engine.capacity().tokens_per_step);
        if number < WARM_UP {
            for work in &parts {
                engine.inspect(work, &mut NoProbe)?;
            }
        } else {
            recorder.begin();
            for work in &parts {
                engine.inspect(work, recorder)?;
            }
            let (step, measured_by) = recorder.finish();
            recorded.push(step);
            clock = measured_by;
        }
        progress(number + 1);
    }
    (0..sequences as SequenceId).for_each(|sequence| engine.release(sequence));
    Ok((recorded, clock))
}

/// One step of a workload, with the last logits requested, split for an engine that takes at most `most` tokens per step.
fn parts(tokens: &[u32], workload: Workload, most: usize) -> Vec<Vec<Work<'_>>> {
    match workload {
        Workload::Decode { .. } => {
            let decode = |(sequence, tokens)| Work::tokens(sequence, tokens, Want::LastLogits);
            let work: Vec<Work<'_>> = (0..).zip(tokens.chunks(1)).map(decode).collect();
            work.chunks(most).map(<[_]>::to_vec).collect()
        }
        Workload::Prefill { .. } => {
            let chunks = tokens.chunks(most);
            let last = chunks.len() - 1;
            let want = |number| if number == last { Want::LastLogits } else { Want::Nothing };
            chunks.enumerate().map(|(number, tokens)| vec![Work::tokens(0, tokens, want(number))]).collect()
        }
    }
}

/// Decodes for a while in a separate sequence, so that kernels are compiled and clocks rise.
///
/// # Errors
/// As [`Engine::step`].
pub fn warm_up(engine: &mut dyn Engine) -> Result<(), EngineError> {
    let start = Instant::now();
    while start.elapsed() < BUSY_TIME {
        engine.step(&[Work::tokens(WARM_UP_SEQUENCE, &[0], Want::LastLogits)])?;
        engine.release(WARM_UP_SEQUENCE);
    }
    Ok(())
}

fn fill(engine: &mut dyn Engine, sequence: SequenceId, depth: usize) -> Result<(), EngineError> {
    let tokens = sample_tokens(sequence as usize, depth, engine.config().vocab);
    prefill(engine, sequence, &tokens, Want::Nothing)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (sequence, number of tokens, whether logits are requested) of each item of each part.
    fn shapes(tokens: usize, workload: Workload, most: usize) -> Vec<Vec<(SequenceId, usize, bool)>> {
        let tokens = sample_tokens(0, tokens, 1000);
        let shape = |work: &Work<'_>| match work.input {
            phase2_forward::Input::Tokens(tokens) => (work.sequence, tokens.len(), work.want.rows(tokens.len()) == 1),
            phase2_forward::Input::Drawn => unreachable!("tokens are given"),
        };
        parts(&tokens, workload, most).iter().map(|work| work.iter().map(shape).collect()).collect()
    }

    #[test]
    fn long_step_is_split_at_the_engines_limit() {
        let prefill = Workload::Prefill { tokens: 9 };
        assert_eq!(shapes(9, prefill, usize::MAX), [[(0, 9, true)]]);
        assert_eq!(shapes(9, prefill, 4), [[(0, 4, false)], [(0, 4, false)], [(0, 1, true)]]);
        let decode = Workload::Decode { depth: 5, sequences: 3 };
        assert_eq!(shapes(3, decode, 8), [[(0, 1, true), (1, 1, true), (2, 1, true)]]);
        assert_eq!(shapes(3, decode, 2), [vec![(0, 1, true), (1, 1, true)], vec![(2, 1, true)]]);
    }
}
