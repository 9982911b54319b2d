//! Runs of an engine and what their times say.
//!
//! At each depth the sequences are filled once. Then `--repeat` runs of decoding are timed, each going on where the last ended, and
//! for one sequence as many of each prompt, every one from the same depth. A speed is that of the median run. An engine that
//! goes on by itself is measured so, unless `--stepwise` is given: that is what a user gets who asks for the likeliest tokens. Otherwise each step takes random tokens and its logits are read back.

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context, Result};
use phase2_forward::{Choice, Chunk, Continuation, Engine, LogitsFor, NoProbe, SequenceId, read_back};
use phase3_kvcache::PREFILL_CHUNK;
use phase4_profiling::{Ceiling, CostModel, Work, sample_tokens};
use serde_json::{Value, json};

use crate::args::Bench;

/// The least tokens of the prompt that comes before anything is timed.
const WARM_UP: usize = 128;

/// The most tokens that a sequence reaches in measurements at `depth`.
pub fn longest(args: &Bench, depth: usize) -> usize {
    // One token comes before an empty depth, and one run and one step before the timed ones.
    depth.max(1) + ((args.repeat + 1) * args.generate + 1).max(longest_prompt(args) + 1)
}

fn longest_prompt(args: &Bench) -> usize {
    args.prompt.iter().copied().max().unwrap_or(0)
}

/// What steps cost, and what they cost an engine that goes on by itself.
pub struct Costs {
    pub stepping: CostModel,
    pub alone: CostModel,
}

pub struct Measure<'a> {
    args: &'a Bench,
    engine: &'a mut dyn Engine,
    costs: Costs,
    ceiling: &'a Ceiling,
    /// Of the tokens taken last.
    seed: usize,
}

impl Measure<'_> {
    /// Begins with a prompt long enough to reach every expert: pages are mapped and kernels compiled by it.
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

    /// Decoding and, for a single sequence, prefilling at that depth.
    pub fn at(&mut self, depth: usize, batch: usize) -> Result<Vec<Value>> {
        for sequence in 0..batch as u64 {
            // At depth 0 one token comes before, as in a conversation.
            self.fill(sequence, depth.max(1))?;
        }
        let prompts: Vec<usize> = self.args.prompt.iter().copied().filter(|&n| n > 0 && batch == 1).collect();
        let filled = if prompts.is_empty() || depth == 0 { None } else { self.engine.save(0) };
        let generate = self.args.generate;
        // What an engine that goes on by itself prepares for a run, it prepares once.
        let (_, alone) = self.decode(batch, 1)?;
        if alone {
            self.decode(batch, generate)?;
        }
        let mut seconds = Vec::new();
        for _ in 0..self.args.repeat {
            seconds.push(self.decode(batch, generate)?.0 / generate as f64);
        }
        let mut decoding =
            self.summary(if alone { &self.costs.alone } else { &self.costs.stepping }, depth, batch, 1, &seconds);
        decoding["what"] = json!("decode");
        decoding["tokens"] = json!(generate);
        decoding["alone"] = json!(alone);
        let mut results = vec![decoding];
        for prompt in prompts {
            let mut seconds = Vec::new();
            for _ in 0..self.args.repeat {
                match &filled {
                    Some(filled) => self.engine.restore(0, filled)?,
                    None => {
                        self.engine.release(0);
                        self.fill(0, depth)?;
                    }
                }
                if depth > 0 {
                    // What fills the cache may still be on its way to a device: this token waits for it.
                    self.prefill(1)?;
                }
                seconds.push(self.prefill(prompt)?);
            }
            let mut prefilling = self.summary(&self.costs.stepping, depth, 1, prompt, &seconds);
            prefilling["what"] = json!("prefill");
            prefilling["tokens"] = json!(prompt);
            results.push(prefilling);
        }
        (0..batch as u64).for_each(|sequence| self.engine.release(sequence));
        Ok(results)
    }

    fn fill(&mut self, sequence: SequenceId, depth: usize) -> Result<()> {
        for tokens in self.tokens(depth).chunks(PREFILL_CHUNK) {
            self.engine.step(&[Chunk { sequence, tokens, logits: LogitsFor::Nothing }], &mut NoProbe)?;
        }
        Ok(())
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        self.seed += 1;
        sample_tokens(self.seed, count, self.engine.config().vocab)
    }

    /// Seconds that `steps` more tokens of every sequence take, and whether the engine went on by itself.
    fn decode(&mut self, batch: usize, steps: usize) -> Result<(f64, bool)> {
        let tokens = self.tokens(batch * steps);
        // The likeliest token is not drawn; numbers are asked for all the same.
        let mut draws = vec![|| 0.0; batch];
        let mut going_on: Vec<Continuation<'_>> = (0..)
            .zip(&tokens)
            .zip(&mut draws)
            .map(|((sequence, &token), draws)| Continuation { sequence, token, choice: Choice::LIKELIEST, draws })
            .collect();
        let start = Instant::now();
        if !self.args.stepwise
            && let Some(outcome) = self.engine.decode(&mut going_on, steps, &mut |_| ControlFlow::Continue(()))
        {
            outcome?;
            return Ok((start.elapsed().as_secs_f64(), true));
        }
        for tokens in tokens.chunks_exact(batch) {
            let chunk = |(sequence, tokens)| Chunk { sequence: sequence as u64, tokens, logits: LogitsFor::LastToken };
            let chunks: Vec<Chunk<'_>> = tokens.chunks_exact(1).enumerate().map(chunk).collect();
            for logits in self.engine.step(&chunks, &mut NoProbe)? {
                read_back(logits.context("logits were asked for")?)?;
            }
        }
        Ok((start.elapsed().as_secs_f64(), false))
    }

    /// Seconds until the logits after `count` new tokens of sequence 0 are there.
    fn prefill(&mut self, count: usize) -> Result<f64> {
        let tokens = self.tokens(count);
        let start = Instant::now();
        let chunks = tokens.chunks(PREFILL_CHUNK);
        let last = chunks.len() - 1;
        for (number, tokens) in chunks.enumerate() {
            let logits = if number == last { LogitsFor::LastToken } else { LogitsFor::Nothing };
            let logits = self.engine.step(&[Chunk { sequence: 0, tokens, logits }], &mut NoProbe)?;
            for logits in logits.into_iter().flatten() {
                read_back(logits)?;
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// The speed of steps in which `batch` sequences of `depth` tokens get `new` more, from the seconds of each run.
    fn summary(&self, costs: &CostModel, depth: usize, batch: usize, new: usize, seconds: &[f64]) -> Value {
        let median = median(seconds);
        let fastest = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let slowest = seconds.iter().copied().fold(0.0, f64::max);
        let tokens = (batch * new) as f64;
        let work = costs.step(batch, new, depth);
        let bytes: u64 = work.iter().map(|work| work.bytes).sum();
        let floor: f64 = work.into_iter().map(|work: Work| work.floor(self.ceiling)).sum();
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
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}
