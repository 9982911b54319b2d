//! Runs of an engine, and the speeds calculated from their times.
//!
//! At each depth the sequences are filled once. Then `--repeat` runs of decoding are timed, each continuing where the last one ended; and,
//! for a single sequence, as many runs of each prompt, all from the same depth. A speed is that of the median run. Decoding draws each
//! token from the logits of the one before, with as many steps in flight as the engine allows. With `--stepwise` each step is fed random
//! tokens instead, and its logits are read back.

mod mixed;

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::Result;
use phase2_forward::{Draw, Engine, EngineError, Outcome, Sampling, SequenceId, Want, Work, sample_tokens};
use phase3_kvcache::{PREFILL_CHUNK, prefill};
use phase4_profiling::{Ceiling, CostModel};
use serde_json::{Value, json};

use crate::args::{Bench, DrawKind};

/// The least length, in tokens, of the prompt that is computed before anything is timed.
const WARM_UP: usize = 128;
/// A sequence that keeps `depth` tokens, from which timed prompts are forked; the other sequences are numbered from 0.
const AT_DEPTH: SequenceId = SequenceId::MAX;

/// The sampling of `--draw sampled`, and the number of log probabilities.
const SAMPLED: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 0.95, min_p: 0.0 };
const LOGPROBS: usize = 5;

/// The greatest length of a sequence in measurements at `depth`.
pub fn longest(args: &Bench, depth: usize) -> usize {
    // Includes the first token at depth 0, and the untimed step and run before the timed runs.
    let decoded = args.repeat.saturating_add(1).saturating_mul(args.generate);
    depth.max(1).saturating_add(decoded.max(longest_prompt(args))).saturating_add(1)
}

fn longest_prompt(args: &Bench) -> usize {
    args.prompt.iter().copied().max().unwrap_or(0)
}

/// The cost of steps that need all logits of a row, and of steps that need only the most likely token.
pub struct Costs {
    pub logits: CostModel,
    pub greedy: CostModel,
}

pub struct Measure<'a> {
    args: &'a Bench,
    engine: &'a mut dyn Engine,
    costs: Costs,
    ceiling: &'a Ceiling,
    /// Seed of the random tokens that were made last.
    seed: usize,
}

impl Measure<'_> {
    /// Computes a prompt that is long enough to use nearly every expert, so that pages are mapped and kernels compiled.
    pub fn new<'a>(
        args: &'a Bench,
        engine: &'a mut dyn Engine,
        costs: Costs,
        ceiling: &'a Ceiling,
    ) -> Result<Measure<'a>> {
        let mut this = Measure { args, engine, costs, ceiling, seed: 0 };
        this.prefill(longest_prompt(args).clamp(WARM_UP, PREFILL_CHUNK))?;
        this.engine.release(0);
        Ok(this)
    }

    /// Measures decoding and, for a single sequence, prefill at this depth.
    pub fn at(&mut self, depth: usize, batch: usize) -> Result<Vec<Value>> {
        for sequence in 0..batch as SequenceId {
            // At depth 0 the sequence has one token, as in a conversation.
            self.fill(sequence, depth.max(1))?;
        }
        let prompts: Vec<usize> = self.args.prompt.iter().copied().filter(|&n| n > 0 && batch == 1).collect();
        // An engine that cannot fork a sequence of this length computes it again for each prompt.
        let is_kept = depth > 0
            && !prompts.is_empty()
            && match self.engine.fork(0, AT_DEPTH, depth) {
                Ok(()) => true,
                Err(EngineError::Unsupported(_)) => false,
                Err(error) => return Err(error.into()),
            };
        let mut results = vec![self.decoding(depth, batch)?];
        for prompt in prompts {
            results.push(self.prefilling(depth, prompt, is_kept)?);
        }
        (0..batch as SequenceId).chain([AT_DEPTH]).for_each(|sequence| self.engine.release(sequence));
        Ok(results)
    }

    fn decoding(&mut self, depth: usize, batch: usize) -> Result<Value> {
        let generate = self.args.generate;
        self.decode(batch, 1)?;
        if !self.args.stepwise {
            // An untimed run, because engines prepare for drawing in their first run.
            self.decode(batch, generate)?;
        }
        let mut seconds = Vec::new();
        for _ in 0..self.args.repeat {
            seconds.push(self.decode(batch, generate)? / generate as f64);
        }
        let mut decoding = self.summary(depth, batch, 1, &seconds);
        decoding["what"] = json!("decode");
        decoding["tokens"] = json!(generate);
        decoding["draw"] = json!((!self.args.stepwise).then(|| self.args.draw.name()));
        decoding["steps_in_flight"] = json!(self.steps_in_flight());
        Ok(decoding)
    }

    /// Measures prompts at a depth. If `is_kept`, [`AT_DEPTH`] has the tokens before the prompt; otherwise they are computed again.
    fn prefilling(&mut self, depth: usize, prompt: usize, is_kept: bool) -> Result<Value> {
        let mut seconds = Vec::new();
        for _ in 0..self.args.repeat {
            self.engine.release(0);
            if depth > 0 {
                match is_kept {
                    true => self.engine.fork(AT_DEPTH, 0, depth)?,
                    false => self.fill(0, depth)?,
                }
                // Data that fills the cache may still be in transfer to the device: this token waits for it.
                self.prefill(1)?;
            }
            seconds.push(self.prefill(prompt)?);
        }
        let mut prefilling = self.summary(depth, 1, prompt, &seconds);
        prefilling["what"] = json!("prefill");
        prefilling["tokens"] = json!(prompt);
        Ok(prefilling)
    }

    fn fill(&mut self, sequence: SequenceId, depth: usize) -> Result<()> {
        let tokens = self.tokens(depth);
        prefill(self.engine, sequence, &tokens, Want::Nothing)?;
        Ok(())
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        self.seed += 1;
        sample_tokens(self.seed, count, self.engine.config().vocab)
    }

    /// The draw of a sequence's next token.
    fn draw(&self, sequence: SequenceId) -> Draw<'static> {
        match self.args.draw {
            DrawKind::Greedy => Draw::GREEDY,
            DrawKind::Sampled => Draw { sampling: SAMPLED, seed: sequence, logprobs: Some(LOGPROBS), ..Draw::GREEDY },
        }
    }

    /// The result to request after a sequence's last new token.
    fn want(&self, sequence: SequenceId) -> Want<'static> {
        match self.args.stepwise {
            true => Want::LastLogits,
            false => Want::Token(self.draw(sequence)),
        }
    }

    /// Number of decoding steps in flight. Without drawing, each step waits for the logits of the one before.
    fn steps_in_flight(&self) -> usize {
        if self.args.stepwise { 1 } else { self.engine.capacity().steps_in_flight }
    }

    /// Seconds for `steps` more tokens of every sequence. The first token of each is random; later ones are the drawn ones or, with
    /// `--stepwise`, random too.
    fn decode(&mut self, batch: usize, steps: usize) -> Result<f64> {
        let tokens = self.tokens(batch * steps);
        let wants: Vec<Want<'static>> = (0..batch as SequenceId).map(|sequence| self.want(sequence)).collect();
        let most = self.steps_in_flight();
        let mut in_flight = VecDeque::new();
        let start = Instant::now();
        for (step, tokens) in tokens.chunks_exact(batch).enumerate() {
            if in_flight.len() == most
                && let Some(ticket) = in_flight.pop_front()
            {
                check(self.engine.collect(ticket)?)?;
            }
            let work = |((sequence, token), want): ((SequenceId, _), &Want<'static>)| match want {
                Want::Token(draw) if step > 0 => Work::decode(sequence, *draw),
                _ => Work::tokens(sequence, token, *want),
            };
            let work: Vec<Work<'_>> = (0..).zip(tokens.chunks_exact(1)).zip(&wants).map(work).collect();
            in_flight.push_back(self.engine.submit(&work)?);
        }
        for ticket in in_flight {
            check(self.engine.collect(ticket)?)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds until the result after `count` new tokens of sequence 0 is available.
    fn prefill(&mut self, count: usize) -> Result<f64> {
        let (tokens, want) = (self.tokens(count), self.want(0));
        let start = Instant::now();
        check(prefill(self.engine, 0, &tokens, want)?.into_iter().collect())?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// The cost model of a step with the requested result.
    fn costs(&self) -> &CostModel {
        match self.args.stepwise || self.args.draw == DrawKind::Sampled {
            true => &self.costs.logits,
            false => &self.costs.greedy,
        }
    }

    /// The speed of steps in which `batch` sequences of `depth` tokens get `new` more each, from the seconds of a step in each run.
    fn summary(&self, depth: usize, batch: usize, new: usize, seconds: &[f64]) -> Value {
        let work = self.costs().step(batch, new, depth);
        let bytes = work.iter().map(|work| work.bytes).sum();
        let floor = work.into_iter().map(|work| work.floor(self.ceiling)).sum();
        speed(depth, batch, batch * new, seconds, bytes, floor)
    }
}

/// The speed of `tokens` tokens of `batch` sequences at `depth`, with the least bytes and the least seconds of a step.
fn speed(depth: usize, batch: usize, tokens: usize, seconds: &[f64], bytes: u64, floor: f64) -> Value {
    let median = median(seconds);
    let fastest = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let slowest = seconds.iter().copied().fold(0.0, f64::max);
    let tokens = tokens as f64;
    json!({
        "depth": depth,
        "batch": batch,
        "tok_s": tokens / median,
        "tok_s_min": tokens / slowest,
        "tok_s_max": tokens / fastest,
        "ms_per_token": median / tokens * 1e3,
        "gb_s": bytes as f64 / median / 1e9,
        "roofline": floor / median,
    })
}

/// # Errors
/// A row of logits has a NaN.
fn check(outcomes: Vec<Outcome>) -> Result<(), EngineError> {
    let nan = outcomes.into_iter().find_map(|outcome| match outcome {
        Outcome::NotANumber { position } => Some(EngineError::NotANumber { position }),
        _ => None,
    });
    nan.map_or(Ok(()), Err)
}

/// The median: the middle value, or the mean of the two middle values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}
