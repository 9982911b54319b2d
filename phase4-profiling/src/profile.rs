//! The data of a profile: measured steps, the least cost of each operation, and the machine's ceiling.

use phase2_forward::{Operation, Span};
use serde::{Deserialize, Serialize};

/// A profile, as it is stored and compared with others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Profile {
    /// The model as it was named on the command line: a path, a name such as `hf:OWNER/NAME`, or `embedded`.
    pub model: String,
    /// `cpu`, or the adapter's name and its graphics API.
    pub device: String,
    /// The processor's name, and the number of its hardware threads that the process may use.
    pub machine: String,
    /// Such as `2026-11-23`.
    pub date: String,
    pub phase: u8,
    pub workload: Workload,
    pub clock: Clock,
    pub ceiling: Ceiling,
    /// In the order of execution.
    pub steps: Vec<TimedStep>,
}

/// The work of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Workload {
    /// One new token after `depth` earlier ones, in each of `sequences` sequences.
    Decode {
        depth: usize,
        #[serde(default = "one")]
        sequences: usize,
    },
    /// `tokens` new tokens of a new sequence.
    Prefill { tokens: usize },
}

/// The number of sequences in files that were written before several were supported.
fn one() -> usize {
    1
}

/// How durations are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// The host's monotonic clock; operations run on the host.
    Host,
    /// Timestamps that the device writes before and after each operation.
    DeviceTimestamps,
    /// The host's clock, with the device's queue drained after each operation, which prevents overlap.
    Synchronized,
}

/// The machine's measured peak rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Bytes per second of a streaming read.
    pub read_bandwidth: f64,
    /// f32 operations per second; a multiply-add counts as two.
    pub f32_rate: f64,
    /// Operations per second of the units for narrow numbers (a multiply-add counts as two): 8-bit dot products on a CPU, 16-bit floats in
    /// a GPU's matrix units; 0 without such units.
    pub packed_rate: f64,
    pub machine: String,
    pub device: String,
    pub date: String,
}

impl Ceiling {
    /// Operations per second of the faster kind of arithmetic.
    pub(crate) fn arithmetic(&self) -> f64 {
        self.f32_rate.max(self.packed_rate)
    }
}

/// One step of the engine, from the call to the logits on the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TimedStep {
    /// Duration in seconds.
    pub wall: f64,
    /// In the order of execution; spans do not overlap.
    pub spans: Vec<TimedSpan>,
}

/// A time interval of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TimedSpan {
    /// An operation's name (`attn.qkv`), or one of [`LAUNCH`] and [`READBACK`].
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer: Option<usize>,
    /// Number of rows computed, as in [`Span::tokens`].
    #[serde(default)]
    pub tokens: usize,
    /// Number of keys, as in [`Span::keys`].
    #[serde(default)]
    pub keys: usize,
    /// Seconds from the start of the step.
    pub start: f64,
    /// Duration in seconds.
    pub duration: f64,
    /// Bytes that the operation must move: weights once, cache entries once, activations in and out.
    pub bytes: u64,
    /// Arithmetic operations that it must compute; a multiply-add counts as two.
    pub operations: u64,
}

/// Name of the spans in which the device is idle and waits for the host to launch the next operation.
pub const LAUNCH: &str = "launch";
/// Name of the span from the end of the last operation until the logits are on the host.
pub const READBACK: &str = "readback";

impl TimedSpan {
    pub fn of(span: Span, cost: Cost, start: f64, duration: f64) -> TimedSpan {
        let Span { operation, layer, tokens, keys, .. } = span;
        let Cost { bytes, operations } = cost;
        TimedSpan { name: operation.name().into(), layer, tokens, keys, start, duration, bytes, operations }
    }

    pub fn overhead(name: &str, start: f64, duration: f64) -> TimedSpan {
        TimedSpan { name: name.into(), layer: None, tokens: 0, keys: 0, start, duration, bytes: 0, operations: 0 }
    }

    /// The least time, in seconds, in which this machine can do the span's work.
    pub fn floor(&self, ceiling: &Ceiling) -> f64 {
        Cost { bytes: self.bytes, operations: self.operations }.floor(ceiling)
    }
}

/// The least cost of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub bytes: u64,
    pub operations: u64,
}

impl Cost {
    /// The least time, in seconds, in which this machine can do this work.
    pub fn floor(self, ceiling: &Ceiling) -> f64 {
        let (moving, computing) = self.seconds(ceiling);
        moving.max(computing)
    }

    /// The least seconds in which this machine can move the bytes, and compute the operations.
    fn seconds(self, ceiling: &Ceiling) -> (f64, f64) {
        (self.bytes as f64 / ceiling.read_bandwidth, self.operations as f64 / ceiling.arithmetic())
    }
}

/// All spans with the same name, over all steps.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    /// Mean number of spans per step, rounded up.
    pub calls: usize,
    /// Seconds per step: the mean over steps.
    pub total: f64,
    /// Share of the mean step's wall time.
    pub share: f64,
    /// Bytes per step.
    pub bytes: u64,
    pub operations: u64,
    /// Seconds per step at the machine's ceiling.
    pub floor: f64,
    pub bound: Bound,
    /// Percentiles of the row's seconds per step, over the steps.
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

/// The resource that would limit an operation that runs at its floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    Memory,
    Compute,
    /// The floor of a call is so short that the fixed cost of launching a kernel would dominate.
    Launch,
}

/// If the floor of a call is below this, in seconds, the fixed cost of a launch dominates.
const LAUNCH_BOUND: f64 = 5e-6;

impl Profile {
    /// Mean seconds of a step.
    pub fn wall(&self) -> f64 {
        self.steps.iter().map(|step| step.wall).sum::<f64>() / self.steps.len() as f64
    }

    /// One row for each operation, [`LAUNCH`] and [`READBACK`] that has spans, the slowest first. Spans with other names have no row.
    pub fn rows(&self) -> Vec<Row> {
        let names = Operation::ALL.map(Operation::name).into_iter().chain([LAUNCH, READBACK]);
        let mut rows: Vec<Row> = names.filter_map(|name| self.row(name)).collect();
        rows.sort_by(|a, b| b.total.total_cmp(&a.total));
        rows
    }

    /// Mean seconds per step that belong to no span.
    pub fn unattributed(&self) -> f64 {
        let explained: f64 = self.steps.iter().flat_map(|step| &step.spans).map(|span| span.duration).sum();
        self.wall() - explained / self.steps.len() as f64
    }

    fn row(&self, name: &str) -> Option<Row> {
        let steps = self.steps.len();
        let spans = || self.steps.iter().flat_map(|step| &step.spans).filter(|span| span.name == name);
        let count = spans().count();
        if count == 0 {
            return None;
        }
        let per_step = |value: fn(&TimedSpan) -> u64| spans().map(value).sum::<u64>() / steps as u64;
        let (bytes, operations) = (per_step(|span| span.bytes), per_step(|span| span.operations));
        let floor = spans().map(|span| span.floor(&self.ceiling)).sum::<f64>() / steps as f64;
        let calls = count.div_ceil(steps);
        let (moving, computing) = Cost { bytes, operations }.seconds(&self.ceiling);
        let bound = match () {
            () if floor / (calls as f64) < LAUNCH_BOUND => Bound::Launch,
            () if moving >= computing => Bound::Memory,
            () => Bound::Compute,
        };
        let of_step = |step: &TimedStep| {
            step.spans.iter().filter(|span| span.name == name).map(|span| span.duration).sum::<f64>()
        };
        let mut times: Vec<f64> = self.steps.iter().map(of_step).collect();
        times.sort_by(f64::total_cmp);
        let total = times.iter().sum::<f64>() / steps as f64;
        Some(Row {
            name: name.into(),
            calls,
            total,
            share: total / self.wall(),
            bytes,
            operations,
            floor,
            bound,
            p50: percentile(&times, 0.5),
            p95: percentile(&times, 0.95),
            p99: percentile(&times, 0.99),
        })
    }
}

/// The percentile `p`, from 0 to 1, of at least one value in ascending order, by nearest rank.
pub(crate) fn percentile(ascending: &[f64], p: f64) -> f64 {
    let count = ascending.len();
    ascending[((p * count as f64).ceil() as usize).clamp(1, count) - 1]
}
