//! Commands that measure or check engines.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gates::Gate;
use peers::Peer;
use phase2_forward::DeviceChoice;
use phase3_kvcache::CacheType;

use super::engine::{EngineArgs, FastArgs};
use super::kind::EngineKind;
use super::values::{cache_type, device, gate, peer, phase, positive};
use crate::embedded::EMBEDDED;

/// Check loading against the gguf package's values, and each engine against MLX's, in order; stop at the first failure.
#[derive(Args)]
pub struct Gates {
    /// Check only this phase: 1 is loading, 2 the engine reference, 3 cached, and 5 flash.
    #[arg(long, value_parser = gate())]
    pub phase: Option<Gate>,
    /// Check another program instead of the phases: mlx with both of YaRN's ramps, or llama.cpp with its own ramp.
    #[arg(long, value_parser = peer(), conflicts_with = "phase")]
    pub engine: Option<Peer>,
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    /// The folder of the golden cases.
    #[arg(long, default_value = "reference/goldens")]
    pub goldens: PathBuf,
    #[arg(long)]
    pub json: bool,
}

/// Measure the time and bytes of a step per operation, relative to this machine's roofline.
#[derive(Args)]
pub struct Profile {
    /// A GGUF file or a folder of safetensors files; `embedded` is the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// Profile one new token after DEPTH earlier ones; several depths separated by commas [default: 0; none with --prefill]
    #[arg(long, value_name = "DEPTH", value_delimiter = ',')]
    pub decode: Vec<usize>,
    /// Number of sequences in a decoding step; several numbers separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = positive)]
    pub batch: Vec<usize>,
    /// Profile a prompt of N tokens; several lengths separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = positive)]
    pub prefill: Vec<usize>,
    /// Steps to record, after one warm-up step.
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    pub steps: usize,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Show the magnitudes of activations per layer, and their difference from the engine reference (phase 2) on the CPU, instead of times.
    #[arg(long)]
    pub numerics: bool,
    #[arg(long)]
    pub json: bool,
    /// Show profiles that were written with --json, without measuring.
    #[arg(long, value_name = "F.json", conflicts_with_all = ["decode", "batch", "prefill", "numerics"])]
    pub from: Option<PathBuf>,
    /// Write a trace of the first workload for Perfetto or chrome://tracing.
    #[arg(long, value_name = "F.json")]
    pub trace: Option<PathBuf>,
    /// Write a flame graph of the first workload.
    #[arg(long, value_name = "F.svg")]
    pub flame: Option<PathBuf>,
    /// Write an HTML page with timeline and roofline of the first workload.
    #[arg(long, value_name = "F.html")]
    pub html: Option<PathBuf>,
    /// Compare two files written with --json, workload by workload, and show what got faster or slower.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], exclusive = true)]
    pub compare: Option<Vec<PathBuf>>,
}

/// Measure a device's memory bandwidth and arithmetic rate, and store them for profiles.
#[derive(Args)]
pub struct Roofline {
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    #[arg(long)]
    pub json: bool,
}

/// Measure which kernel variants of the engine flash (phase 5) are fastest on this GPU, and store the choice for models of this shape.
#[derive(Args)]
pub struct Tune {
    /// A GGUF file or a folder of safetensors files; `embedded` is the model inside this program.
    pub model: PathBuf,
    /// The GPU to measure. `software` is a software rasterizer.
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
}

/// Predict how much memory a model takes, and where, before it is loaded.
#[derive(Args)]
pub struct Memory {
    /// A GGUF file or a folder of safetensors files; `embedded` is the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// Tokens of the conversation [default: 4096, or the model's context if that is shorter]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub context: Option<usize>,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Also load the model, fill the context, and show the memory that the system reports.
    #[arg(long)]
    pub observe: bool,
    #[arg(long)]
    pub json: bool,
}

/// Measure the speed of engines on random tokens.
#[derive(Args)]
pub struct Bench {
    /// A GGUF file, a folder of safetensors files, or `embedded`.
    pub model: PathBuf,
    /// Engines to measure, one after another.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "flash")]
    pub engine: Vec<EngineKind>,
    /// Engines to measure, by the numbers of their phases.
    #[arg(long, hide = true, conflicts_with = "engine", value_delimiter = ',', value_parser = phase())]
    pub phase: Vec<EngineKind>,
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    /// Tokens of a prompt; 0 skips prefill.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "512")]
    pub prompt: Vec<usize>,
    /// Tokens that a sequence holds before the measurement.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<usize>,
    /// Decoding steps per run.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub generate: usize,
    /// Number of sequences in a step.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = positive)]
    pub batch: Vec<usize>,
    /// Number of runs; the median counts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    pub repeat: usize,
    /// The type of the KV cache, for the engines cached and flash [default: the engine's own]
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = cache_type())]
    pub kv: Vec<CacheType>,
    /// How tokens are drawn.
    #[arg(long, value_enum, default_value = "greedy")]
    pub draw: DrawKind,
    /// Feed random tokens instead of drawing, and read back the logits of every step.
    #[arg(long, conflicts_with = "draw")]
    pub stepwise: bool,
    /// Also compare a step with a prompt chunk of 512 tokens and 16 decoding sequences with a step of the chunk alone.
    #[arg(long, conflicts_with = "stepwise")]
    pub mixed: bool,
    #[command(flatten)]
    pub fast: FastArgs,
    #[arg(long)]
    pub json: bool,
}

impl Bench {
    /// The engines to measure.
    pub fn engines(&self) -> &[EngineKind] {
        if self.phase.is_empty() { &self.engine } else { &self.phase }
    }
}

/// How a benchmark draws tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DrawKind {
    /// The most likely token.
    Greedy,
    /// With a seed, top-p and the log probabilities of five tokens.
    Sampled,
}

impl DrawKind {
    pub fn name(self) -> &'static str {
        match self {
            DrawKind::Greedy => "greedy",
            DrawKind::Sampled => "sampled",
        }
    }
}
