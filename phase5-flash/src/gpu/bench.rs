//! Times single operations of the engine, launched as the engine launches them.
//!
//! Launches cycle through a model's layers, so that weights come from memory as they do in a step. A time is that of a replayed launch,
//! including its share of the host's work.

use std::time::{Duration, Instant};

use cubecl::client::Graph;
use gpu_kernels::sampling::Filters;
use gpu_kernels::{Error, KvRow, Row};
use phase1_loading::{AttentionKind, Checkpoint};
use phase2_forward::{
    ComputeDevice, Draw, Engine, EngineError, NoProbe, Operation, Sampling, Span, Want, Work, sample_tokens,
};
use phase3_kvcache::CacheType;

use super::cache::Cache;
use super::choice::DrawFeatures;
use super::engine::{GpuEngine, Options};
use super::error::GpuError;
use super::forward::Forward;
use super::plan::Pass;
use super::step::Runner;
use super::tuning::MAX_ROWS;

/// The most launches that are captured together.
const MAX_LAUNCHES: usize = 48;
/// The most rows whose logits are computed.
const MAX_LOGITS: usize = 64;

/// A model whose operations can be launched one by one.
pub struct Kernels {
    engine: GpuEngine,
}

/// One operation on some rows.
pub struct Case<'a> {
    /// The operation as `gptoss profile` names it, or `choice` for the choice of tokens, which profiles do not report.
    pub operation: &'static str,
    /// Distinguishes the cases of an operation.
    pub name: String,
    /// The span that a probe would receive; `None` for the choice of tokens.
    pub span: Option<Span>,
    forward: &'a Forward,
    rows: &'a [Row],
    /// Launches the operation; the argument is the number of the launch.
    launch: &'a dyn Fn(usize),
}

/// A case that is compiled and captured.
pub struct Captured<'a> {
    case: &'a Case<'a>,
    graph: Graph,
    launches: usize,
}

/// Called with each case.
type Visit<'a> = dyn FnMut(&Case<'_>) -> Result<(), GpuError> + 'a;

impl Kernels {
    /// # Errors
    /// As [`GpuEngine::load`].
    pub fn load(checkpoint: &Checkpoint, device: &ComputeDevice) -> Result<Kernels, GpuError> {
        let engine = GpuEngine::load(checkpoint, device, Options::default(), &mut |_, _| ())?;
        Ok(Kernels { engine })
    }

    /// Visits every operation of a pass of `rows` new tokens of one sequence, and the logits after each token if there are at most 64.
    ///
    /// # Errors
    /// The device fails, a cache format does not support the heads, the cache that fits into the device's memory has too few pages, or
    /// `visit` returns an error.
    pub fn all(&mut self, rows: usize, visit: &mut Visit<'_>) -> Result<(), GpuError> {
        let placed = self.fill(CacheType::default(), rows, 0)?;
        let pass = self.engine.runner.forward.set_rows(&placed);
        let Runner { forward, choices, .. } = &self.engine.runner;
        let name = counted(rows);
        let mut outside = |operation: Operation, launch: &dyn Fn(usize)| {
            let span = Some(Span { operation, layer: None, tokens: rows, sequences: 1, keys: 0 });
            visit(&Case { operation: operation.name(), name: name.clone(), span, forward, rows: &placed, launch })
        };
        outside(Operation::Embed, &|_| forward.embed(rows))?;
        if rows <= MAX_LOGITS {
            outside(Operation::HeadNorm, &|_| forward.head_norm(rows, &forward.buffers.every_row))?;
            outside(Operation::Head, &|_| forward.head(rows, &choices.logits))?;
        }
        let all: Vec<usize> = (0..forward.config.layers()).collect();
        for operation in pass.operations(forward.tuning()).filter(|&operation| operation != Operation::Attention) {
            of_layers(forward, operation, &all, pass, &name, &placed, visit)?;
        }
        attention(forward, pass, &placed, visit)
    }

    /// Visits five ways to choose tokens. A launch chooses a token for each of `rows` rows of logits, of at most 64.
    ///
    /// # Errors
    /// As [`Kernels::all`].
    pub fn choices(&mut self, rows: usize, visit: &mut Visit<'_>) -> Result<(), GpuError> {
        let placed = self.fill(CacheType::default(), rows.min(MAX_LOGITS), 0)?;
        let rows = placed.len();
        let Runner { forward, choices, .. } = &mut self.engine.runner;
        forward.set_rows(&placed);
        forward.logits(rows, &forward.buffers.every_row, &choices.logits, &mut NoProbe);
        let sampling = Sampling { temperature: 1.0, top_k: 50, top_p: 0.9, min_p: 0.0 };
        let draw = Draw { sampling, seed: 1, logprobs: Some(5), ..Draw::GREEDY };
        choices.prepare(&forward.gpu.device, &vec![&draw; rows], rows);
        let Runner { forward, choices, .. } = &self.engine.runner;
        let drawn = |top_k, top_p| DrawFeatures { filters: Some(Filters { top_k, top_p }), ..DrawFeatures::GREEDY };
        for (what, features) in [
            ("greedy", DrawFeatures::GREEDY),
            ("greedy with log probabilities", DrawFeatures { logprobs: true, ..DrawFeatures::GREEDY }),
            ("drawn", drawn(false, false)),
            ("drawn by top-p", drawn(false, true)),
            ("drawn by top-k and top-p", drawn(true, true)),
        ] {
            let launch = &|_| {
                choices.launch(&forward.gpu.device, features, &forward.buffers.row_words, &forward.drawn, rows);
            };
            let name = format!("{what}, {}", counted(rows));
            visit(&Case { operation: "choice", name, span: None, forward, rows: &placed, launch })?;
        }
        Ok(())
    }

    /// Visits the operations that access the cache, in format `kv`, in a pass that extends a sequence from `depth` to `depth + rows`
    /// positions.
    ///
    /// # Errors
    /// As [`Kernels::all`].
    pub fn cached(&mut self, kv: CacheType, rows: usize, depth: usize, visit: &mut Visit<'_>) -> Result<(), GpuError> {
        let placed = self.fill(kv, rows, depth)?;
        let forward = &mut self.engine.runner.forward;
        let pass = forward.set_rows(&placed);
        let all: Vec<usize> = (0..forward.config.layers()).collect();
        if pass.operations(forward.tuning()).any(|operation| operation == Operation::CacheAppend) {
            of_layers(forward, Operation::CacheAppend, &all, pass, &after(forward, pass), &placed, visit)?;
        }
        attention(forward, pass, &placed, visit)
    }

    /// Fills a cache with `depth + rows` positions, and returns the descriptions of the last `rows` of them. The buffers
    /// then hold the results of these rows.
    fn fill(&mut self, kv: CacheType, rows: usize, depth: usize) -> Result<Vec<Row>, GpuError> {
        let engine = &mut self.engine;
        let Runner { forward, choices, .. } = &mut engine.runner;
        let (device, config) = (&forward.gpu.device, &forward.config);
        let row = KvRow::new(kv, config.kv_heads, config.head_dim).map_err(GpuError::CacheFormat)?;
        let pages = Cache::count(device, config, row, None)?;
        forward.cache = Cache::new(device, config, row, pages, MAX_ROWS);
        forward.epoch += 1;
        choices.reserve(device, rows.min(MAX_LOGITS));
        let tokens = sample_tokens(0, depth + rows, config.vocab);
        for tokens in tokens[..depth].chunks(MAX_ROWS).chain(tokens[depth..].chunks(MAX_ROWS)) {
            let failed = |error: EngineError| GpuError::from(Error::Device(error.to_string()));
            engine.step(&[Work::tokens(0, tokens, Want::Nothing)]).map_err(failed)?;
        }
        let slot = engine.runner.forward.cache.slot(0);
        let row = |i: usize| Row { token: Some(tokens[i]), position: i as u32, slot };
        Ok((depth..engine.length(0)).map(row).collect())
    }
}

/// Visits `operation`, cycling through `layers`.
fn of_layers(
    forward: &Forward,
    operation: Operation,
    layers: &[usize],
    pass: Pass,
    name: &str,
    rows: &[Row],
    visit: &mut Visit<'_>,
) -> Result<(), GpuError> {
    let launch = &|i: usize| forward.launch(operation, layers[i % layers.len()], pass);
    let span = Some(forward.span(operation, layers[0], pass));
    visit(&Case { operation: operation.name(), name: name.to_owned(), span, forward, rows, launch })
}

/// Visits attention in full layers and in sliding layers.
fn attention(forward: &Forward, pass: Pass, rows: &[Row], visit: &mut Visit<'_>) -> Result<(), GpuError> {
    for (kind, what) in [(AttentionKind::Full, "full"), (AttentionKind::Sliding, "sliding")] {
        let of_kind = |&layer: &usize| forward.config.attention[layer] == kind;
        let layers: Vec<usize> = (0..forward.config.layers()).filter(of_kind).collect();
        if !layers.is_empty() {
            let name = format!("{what}, {}", after(forward, pass));
            of_layers(forward, Operation::Attention, &layers, pass, &name, rows, visit)?;
        }
    }
    Ok(())
}

fn counted(rows: usize) -> String {
    format!("{rows} {}", if rows == 1 { "row" } else { "rows" })
}

fn after(forward: &Forward, pass: Pass) -> String {
    format!("{}, {} to {}", forward.cache.row.format(), counted(pass.rows), pass.keys)
}

impl Case<'_> {
    /// Compiles the operation and captures `launches` launches of it, at most 48. With more launches per replay, the cost of a replay
    /// itself affects the time of a launch less.
    ///
    /// # Errors
    /// The device fails, or the operation needs more shared memory or larger cubes than the device allows.
    pub fn capture(&self, launches: usize) -> Result<Captured<'_>, GpuError> {
        let (client, launches) = (self.forward.gpu.device.client(), launches.min(MAX_LAUNCHES));
        client.graph_prepare().map_err(Error::from)?;
        (0..launches).for_each(self.launch);
        client.start_capture().map_err(Error::from)?;
        (0..launches).for_each(self.launch);
        Ok(Captured { case: self, graph: client.stop_capture().map_err(Error::from)?, launches })
    }
}

impl Captured<'_> {
    /// The time of `launches` launches, measured with replays of all captured launches.
    ///
    /// # Errors
    /// The device fails.
    pub fn time(&self, launches: u64) -> Result<Duration, GpuError> {
        let Case { forward, rows, .. } = self.case;
        let replays = launches.div_ceil(self.launches as u64).max(1);
        forward.gpu.device.sync()?;
        let start = Instant::now();
        for _ in 0..replays {
            // Choosing a token changes the rows to those of the next step; this restores the first ones before every replay.
            forward.write_rows(rows);
            // SAFETY: the engine owns every buffer of the launches, and is borrowed as long as they are captured.
            unsafe { self.graph.replay() }.map_err(Error::from)?;
        }
        forward.gpu.device.sync()?;
        Ok(start.elapsed().mul_f64(launches as f64 / (replays * self.launches as u64) as f64))
    }
}
