//! Times whole steps of a model on a GPU as a caller of the engine sees them: `steps MODEL.gguf [small] [software] [f16|q8_0]`.
//!
//! Prompts, generation at several depths, and several sequences at once, greedy and drawn. `gptoss bench` has medians and the
//! CPU; here a step outside the loop on the device stands beside one in it, and the choice of tokens is timed too.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use phase1_loading::Checkpoint;
use phase2_forward::{
    Choice, Chunk, ComputeDevice, Continuation, DeviceChoice, Engine, EngineError, LogitsFor, ModelNeeds, NoProbe,
    read_back,
};
use phase3_kvcache::CacheType;
use phase4_profiling::sample_tokens;
use phase5_flash::gpu::{GpuEngine, Options};

const DRAWN: Choice = Choice { temperature: 1.0, top_k: 0, top_p: 0.9, min_p: 0.0 };
/// Tokens of a prompt that a step takes.
const CHUNK: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let given = |word: &str| std::env::args().any(|argument| argument == word);
    let model =
        std::env::args().find(|argument| argument.ends_with(".gguf")).ok_or("name a model: steps MODEL.gguf")?;
    let choice = if given("software") { DeviceChoice::Software } else { DeviceChoice::Gpu };
    let kv = CacheType::ALL.into_iter().find(|kind| given(kind.name())).unwrap_or_default();
    let (depths, most): (&[usize], u64) = if given("small") { (&[1, 300], 4) } else { (&[1, 4096, 16_384], 64) };

    let device = ComputeDevice::find(choice, ModelNeeds::default())?;
    let checkpoint = Checkpoint::open(Path::new(&model))?;
    let start = Instant::now();
    let engine = GpuEngine::load(&checkpoint, &device, Options { kv, ..Options::default() }, &mut |_, _| ())?;
    eprintln!("{}: loaded in {:.1} s, cache {kv}", device.name, start.elapsed().as_secs_f64());
    let mut steps = Steps { engine, seed: 0 };
    steps.prompts()?;
    steps.depths(depths)?;
    for sequences in [1, 2, 4, 10, 16, 32, 64].into_iter().filter(|&sequences| sequences <= most) {
        steps.sequences(sequences)?;
    }
    Ok(())
}

struct Steps {
    engine: GpuEngine,
    /// Of the tokens taken last.
    seed: usize,
}

impl Steps {
    fn prompts(&mut self) -> Result<(), EngineError> {
        for _ in 0..3 {
            let tokens = self.tokens(CHUNK);
            report("prompt", &format!("{CHUNK} tokens"), self.step(&[(0, &tokens)])?, CHUNK);
            self.engine.release(0);
        }
        Ok(())
    }

    /// One sequence, ever longer.
    fn depths(&mut self, depths: &[usize]) -> Result<(), EngineError> {
        let count = 256;
        let mut depth = 0;
        for &wanted in depths {
            let (before, mut seconds) = (depth, 0.0);
            while depth < wanted {
                let tokens = self.tokens((wanted - depth).min(CHUNK));
                seconds += self.step(&[(1, &tokens)])?;
                depth += tokens.len();
            }
            if depth > before {
                report("prompt", &format!("from {before} to {depth}"), seconds, depth - before);
            }
            for round in ["first", "second", "third", "fourth"] {
                let tokens = self.tokens(1);
                let seconds = self.decode(&[(1, tokens[0])], Choice::LIKELIEST, count)?;
                report("generation", &format!("depth {depth}, {round}"), seconds, count);
                depth += count;
            }
        }
        self.engine.release(1);
        Ok(())
    }

    fn sequences(&mut self, sequences: u64) -> Result<(), EngineError> {
        let count = sequences as usize;
        let mut best = f64::MAX;
        for _ in 0..5 {
            let tokens = self.tokens(count);
            let batch: Vec<(u64, &[u32])> = (0..sequences).zip(tokens.chunks(1)).collect();
            best = best.min(self.step(&batch)?);
        }
        report("step", &format!("{sequences} sequences"), best, count);
        for (choice, how) in [(Choice::LIKELIEST, "greedy"), (DRAWN, "drawn with top-p")] {
            let inputs: Vec<(u64, u32)> = (0..sequences).zip(self.tokens(count)).collect();
            // The first call captures the step.
            self.decode(&inputs, choice, 4)?;
            let seconds = self.decode(&inputs, choice, 64)?;
            report("generation", &format!("{sequences} sequences, {how}"), seconds, 64 * count);
        }
        (0..sequences).for_each(|sequence| self.engine.release(sequence));
        Ok(())
    }

    /// Seconds until the logits after these tokens are there.
    fn step(&mut self, batch: &[(u64, &[u32])]) -> Result<f64, EngineError> {
        let chunk = |&(sequence, tokens)| Chunk { sequence, tokens, logits: LogitsFor::LastToken };
        let batch: Vec<Chunk<'_>> = batch.iter().map(chunk).collect();
        let start = Instant::now();
        for logits in self.engine.step(&batch, &mut NoProbe)?.into_iter().flatten() {
            read_back(logits)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds that the next `count` tokens of these sequences take.
    fn decode(&mut self, inputs: &[(u64, u32)], choice: Choice, count: usize) -> Result<f64, EngineError> {
        let mut draws = vec![|| 0.5; inputs.len()];
        let mut batch: Vec<_> = inputs
            .iter()
            .zip(&mut draws)
            .map(|(&(sequence, token), draws)| Continuation { sequence, token, choice, draws })
            .collect();
        let start = Instant::now();
        self.engine.decode(&mut batch, count, &mut |_| ControlFlow::Continue(())).transpose()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        self.seed += 1;
        sample_tokens(self.seed, count, self.engine.config().vocab)
    }
}

fn report(what: &str, how: &str, seconds: f64, tokens: usize) {
    println!("{what:10} {how:40} {:>12.2} ms {:>9.1} tok/s", seconds * 1e3, tokens as f64 / seconds);
}
