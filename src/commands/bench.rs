//! `gptoss bench`: speeds of the engines, on random tokens.
//!
//! At each depth the sequences are filled once. Then `--repeat` runs of decoding are timed, and for one sequence as many of
//! prefilling; each run goes on where the last ended, so that depths are those of the first run. A speed is the runs' median.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use phase1_loading::{Checkpoint, GptOssConfig};
use phase2_forward::{Chunk, Engine, LogitsFor, NoProbe};
use phase3_kvcache::CacheType;
use phase4_profiling::{Ceiling, CostModel, ceiling, process};
use serde_json::{Value, json};

use crate::args::{Bench, EngineArgs, FastArgs, RopeArg};
use crate::commands::print;
use crate::session::{self, Session};

/// Tokens that a step takes while a sequence is filled.
const CHUNK: usize = 512;
/// Tokens of the prompt that comes before anything is timed.
const WARM_UP: usize = 128;

pub fn run(args: &Bench) -> Result<ExitCode> {
    let checkpoint = session::open(&args.model)?;
    let context = checkpoint.config.context_length;
    for &depth in &args.depth {
        let prompts = if depth == 0 { 1 } else { args.repeat };
        let longest = depth + 2 + args.repeat * args.generate + prompts * args.prompt;
        if longest > context {
            bail!("depth {depth} and {} runs reach {longest} tokens; the model's context holds {context}", args.repeat);
        }
    }
    let mut phases = Vec::new();
    for &phase in &args.phase {
        let start = Instant::now();
        // Earlier phases have none of these choices.
        let fast = if phase == 5 { args.fast.clone() } else { FastArgs::default() };
        let engine_args = EngineArgs { phase: Some(phase), device: args.device, rope: RopeArg::Exact, fast };
        let mut session = Session::start(&checkpoint, &engine_args)?;
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let ceiling = ceiling(&session.device)?;
        let costs = CostModel::new(&checkpoint, session.cache);
        let cache = session.cache;
        let engine = &mut *session.engine;
        let mut bench = Run { args, checkpoint: &checkpoint, engine, cache, costs, ceiling: &ceiling, random: 1 };
        bench.warm_up()?;
        let mut results = Vec::new();
        for &depth in &args.depth {
            for &batch in &args.batch {
                results.extend(bench.at(depth, batch).with_context(|| format!("phase {phase}, depth {depth}"))?);
            }
        }
        phases.push(json!({
            "phase": phase,
            "device": session.device.name,
            "load_ms": load_ms,
            "ceiling": ceiling,
            "results": results,
            "peak_rss_bytes": process::peak_resident_bytes(),
            "anonymous_bytes": process::anonymous_resident_bytes(),
        }));
    }
    let report = if args.json { format!("{:#}\n", Value::from(phases)) } else { table(&phases) };
    print(&report)?;
    Ok(ExitCode::SUCCESS)
}

struct Run<'a> {
    args: &'a Bench,
    checkpoint: &'a Checkpoint,
    engine: &'a mut dyn Engine,
    cache: CacheType,
    costs: CostModel,
    ceiling: &'a Ceiling,
    random: u64,
}

impl Run<'_> {
    /// One prompt long enough to reach every expert: pages are mapped and kernels compiled by it.
    fn warm_up(&mut self) -> Result<()> {
        self.prefill(WARM_UP)?;
        self.engine.release(0);
        Ok(())
    }

    /// Decoding and, for a single sequence, prefilling at that depth.
    fn at(&mut self, depth: usize, batch: usize) -> Result<Vec<Value>> {
        let mut results = Vec::new();
        for sequence in 0..batch as u64 {
            // At depth 0 one token comes before, as in a conversation.
            let tokens = self.tokens(depth.max(1));
            for tokens in tokens.chunks(CHUNK) {
                self.engine.step(&[Chunk { sequence, tokens, logits: LogitsFor::Nothing }], &mut NoProbe)?;
            }
        }
        self.decode(batch, 1)?;
        let mut seconds = Vec::new();
        for _ in 0..self.args.repeat {
            seconds.push(self.decode(batch, self.args.generate)? / self.args.generate as f64);
        }
        let mut decoding = summary("decode", depth, batch, batch as f64, &seconds);
        let bytes = self.bytes_read(depth, batch);
        decoding["gb_s"] = json!(bytes / median(&seconds) / 1e9);
        decoding["roofline"] = json!(self.costs.step_floor(batch, 1, depth, self.ceiling) / median(&seconds));
        results.push(decoding);
        if batch == 1 && self.args.prompt > 0 {
            let mut seconds = Vec::new();
            for _ in 0..self.args.repeat {
                if depth == 0 {
                    self.engine.release(0);
                }
                seconds.push(self.prefill(self.args.prompt)?);
            }
            let mut prefilling = summary("prefill", depth, 1, self.args.prompt as f64, &seconds);
            let floor = self.costs.step_floor(1, self.args.prompt, depth, self.ceiling);
            prefilling["roofline"] = json!(floor / median(&seconds));
            results.push(prefilling);
        }
        (0..batch as u64).for_each(|sequence| self.engine.release(sequence));
        Ok(results)
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        let vocab = self.engine.config().vocab as u64;
        let mut next = || {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.random >> 33) % vocab) as u32
        };
        (0..count).map(|_| next()).collect()
    }

    /// Seconds that `steps` steps of all sequences take, logits read back.
    fn decode(&mut self, batch: usize, steps: usize) -> Result<f64> {
        let tokens = self.tokens(batch * steps);
        let start = Instant::now();
        for tokens in tokens.chunks_exact(batch) {
            let chunk = |(sequence, tokens)| Chunk { sequence: sequence as u64, tokens, logits: LogitsFor::LastToken };
            let chunks: Vec<Chunk<'_>> = tokens.chunks_exact(1).enumerate().map(chunk).collect();
            for logits in self.engine.step(&chunks, &mut NoProbe)? {
                read_back(logits.context("logits were asked for")?)?;
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds until the logits after `count` new tokens of sequence 0 are there.
    fn prefill(&mut self, count: usize) -> Result<f64> {
        let tokens = self.tokens(count);
        let start = Instant::now();
        let chunks = tokens.chunks(CHUNK);
        let last = chunks.len() - 1;
        for (number, tokens) in chunks.enumerate() {
            let logits = if number == last { LogitsFor::LastToken } else { LogitsFor::Nothing };
            let logits = self.engine.step(&[Chunk { sequence: 0, tokens, logits }], &mut NoProbe)?;
            logits.into_iter().flatten().try_for_each(read_back)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Bytes of weights and cache that a step of decoding reads, if each token's experts are drawn evenly.
    fn bytes_read(&self, depth: usize, batch: usize) -> f64 {
        let GptOssConfig { experts, experts_per_token, .. } = self.checkpoint.config;
        let unused = (1.0 - experts_per_token as f64 / experts as f64).powi(batch as i32);
        let weights = self.checkpoint.tensors.iter().map(|(name, tensor)| match name.as_str() {
            "token_embd.weight" => 0.0,
            name if name.contains("_exps.") => tensor.bytes() as f64 * (1.0 - unused),
            _ => tensor.bytes() as f64,
        });
        let config = &self.checkpoint.config;
        let cache = config.cache_bytes(depth, self.cache.row_bytes(config.head_dim));
        weights.sum::<f64>() + batch as f64 * cache as f64
    }
}

fn read_back(logits: burn::tensor::Tensor<2>) -> Result<()> {
    logits.try_into_data().context("reading the logits back")?;
    Ok(())
}

fn summary(what: &str, depth: usize, batch: usize, tokens: f64, seconds: &[f64]) -> Value {
    let fastest = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let slowest = seconds.iter().copied().fold(0.0, f64::max);
    json!({
        "what": what,
        "depth": depth,
        "batch": batch,
        "tok_s": tokens / median(seconds),
        "tok_s_min": tokens / slowest,
        "tok_s_max": tokens / fastest,
        "ms_per_token": median(seconds) / tokens * 1e3,
    })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn table(phases: &[Value]) -> String {
    let mut text = format!(
        "{:5} {:8} {:>6} {:>5} {:>9} {:>19} {:>9} {:>6} {:>12}\n",
        "phase", "what", "depth", "batch", "tok/s", "from – to", "ms/token", "GB/s", "of roofline"
    );
    for phase in phases {
        for result in phase["results"].as_array().into_iter().flatten() {
            let number = |name: &str| result[name].as_f64().unwrap_or(f64::NAN);
            let spread = format!("{:.2} – {:.2}", number("tok_s_min"), number("tok_s_max"));
            let bandwidth = result["gb_s"].as_f64().map_or("–".into(), |gb_s| format!("{gb_s:.1}"));
            text += &format!(
                "{:<5} {:8} {:>6} {:>5} {:>9.2} {spread:>19} {:>9.2} {bandwidth:>6} {:>10.1} %\n",
                phase["phase"].as_u64().unwrap_or_default(),
                result["what"].as_str().unwrap_or_default(),
                number("depth"),
                number("batch"),
                number("tok_s"),
                number("ms_per_token"),
                100.0 * number("roofline"),
            );
        }
        let gigabytes =
            |name: &str| phase[name].as_f64().map_or("–".into(), |bytes| format!("{:.2} GB", bytes / 1e9));
        let (peak, own) = (gigabytes("peak_rss_bytes"), gigabytes("anonymous_bytes"));
        text += &format!("phase {}: {peak} resident at most, {own} of its own\n", phase["phase"]);
    }
    text
}
