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

/// Check every phase against MLX, in order; stop at the first that fails.
#[derive(Args)]
pub struct Gates {
    /// Only this phase.
    #[arg(long, value_parser = gate())]
    pub phase: Option<Gate>,
    /// Instead of the phases: mlx or llama.cpp, each in its own reading of YaRN's ramp, MLX in both.
    #[arg(long, value_parser = peer(), conflicts_with = "phase")]
    pub engine: Option<Peer>,
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    /// Where the golden cases are.
    #[arg(long, default_value = "reference/goldens")]
    pub goldens: PathBuf,
    #[arg(long)]
    pub json: bool,
}

/// Measure where a step's time and bytes go, operation by operation, against what this machine can do.
#[derive(Args)]
pub struct Profile {
    /// A GGUF file; without one, the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// Profile one new token after DEPTH earlier ones; several depths separated by commas. The default is 0.
    #[arg(long, value_name = "DEPTH", value_delimiter = ',')]
    pub decode: Vec<usize>,
    /// Sequences that a step of decoding advances; several numbers separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = positive)]
    pub batch: Vec<usize>,
    /// Profile a prompt of N tokens; several lengths separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = positive)]
    pub prefill: Vec<usize>,
    /// Steps to record, after one that warms up.
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    pub steps: usize,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Instead of times: how large activations get, layer by layer, and how far they are from phase 2 on the CPU.
    #[arg(long)]
    pub numerics: bool,
    #[arg(long)]
    pub json: bool,
    /// Measure nothing: show profiles that were written with --json.
    #[arg(long, value_name = "F.json", conflicts_with_all = ["decode", "batch", "prefill", "numerics"])]
    pub from: Option<PathBuf>,
    /// Write a trace of the first workload for Perfetto or chrome://tracing.
    #[arg(long, value_name = "F.json")]
    pub trace: Option<PathBuf>,
    /// Write a flame graph of the first workload.
    #[arg(long, value_name = "F.svg")]
    pub flame: Option<PathBuf>,
    /// Write a page with timeline and roofline of the first workload.
    #[arg(long, value_name = "F.html")]
    pub html: Option<PathBuf>,
    /// Show what got faster and slower between two files written with --json, workload by workload.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], exclusive = true)]
    pub compare: Option<Vec<PathBuf>>,
}

/// Measure how fast a device reads memory and computes. Kept, so that profiles need not measure it again.
#[derive(Args)]
pub struct Roofline {
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    #[arg(long)]
    pub json: bool,
}

/// Measure which variants of phase 5's kernels suit this GPU. Kept, and used from then on for models of this shape.
#[derive(Args)]
pub struct Tune {
    /// A GGUF file or a folder of safetensors files; `embedded` for the model inside this program.
    pub model: PathBuf,
    /// The GPU to measure. `software` is a software rasterizer.
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
}

/// Show where a model's bytes will live, before anything is loaded.
#[derive(Args)]
pub struct Memory {
    /// A GGUF file; without one, the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// Tokens of the conversation; 4096 if not given, or fewer where the model's context holds fewer.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub context: Option<usize>,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Also load the model, fill the context, and show what the system says.
    #[arg(long)]
    pub observe: bool,
    #[arg(long)]
    pub json: bool,
}

/// Measure the engines' speed on random tokens.
#[derive(Args)]
pub struct Bench {
    /// A GGUF file, or `embedded`.
    pub model: PathBuf,
    /// Engines to measure, one after another.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "flash")]
    pub engine: Vec<EngineKind>,
    /// The engines by the numbers of their phases.
    #[arg(long, hide = true, conflicts_with = "engine", value_delimiter = ',', value_parser = phase())]
    pub phase: Vec<EngineKind>,
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    /// Tokens of a prompt; 0 measures no prefill.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "512")]
    pub prompt: Vec<usize>,
    /// Tokens that a sequence holds before.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<usize>,
    /// Steps of decoding in one run.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub generate: usize,
    /// Sequences that a step advances.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = positive)]
    pub batch: Vec<usize>,
    /// Runs, of which the median counts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    pub repeat: usize,
    /// How keys and values are cached (phases 3 and 5). The engine's own choice if not given.
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = cache_type())]
    pub kv: Vec<CacheType>,
    /// How tokens are drawn.
    #[arg(long, value_enum, default_value = "greedy")]
    pub draw: DrawKind,
    /// Draw no tokens: feed random ones, and read back the logits of every step.
    #[arg(long, conflicts_with = "draw")]
    pub stepwise: bool,
    /// Also compare a step of a prompt's 512 tokens and 16 decoding sequences with a step of the prompt's tokens alone.
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
    /// The likeliest token.
    Greedy,
    /// By a seed, with top-p and the log probabilities of five tokens.
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
