//! The command that measures every engine with the same work.

use std::path::PathBuf;

use clap::Args;
use phase2_forward::DeviceChoice;

use super::engine::FastArgs;
use super::kind::EngineKind;
use super::values::{device, positive};

/// Run the same work on every engine that is available here, in turns, and write what was measured to a record for the notebooks. Each
/// engine runs in a process of its own.
#[derive(Args)]
pub struct Compare {
    /// GGUF files or folders of safetensors files; each gets a record of its own.
    #[arg(required = true)]
    pub model: Vec<PathBuf>,
    /// Engines to run; if not given, phases 3 and 5 and the peers that are installed.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub engine: Vec<EngineKind>,
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "512", value_parser = positive)]
    pub prompt: Vec<usize>,
    /// Tokens that a sequence holds before.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0,4096")]
    pub depth: Vec<usize>,
    /// Steps of decoding in one run.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub generate: usize,
    /// Sequences that decode together in one of the measurements.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = positive)]
    pub sequences: usize,
    /// Runs of a measurement in one turn, of which the median counts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    pub repeat: usize,
    /// How often each engine starts anew. Every other turn goes through the engines in reverse.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = positive)]
    pub turns: usize,
    /// Tokens whose logits are compared with phase 3's in f32 on the CPU.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub check: usize,
    /// Greedy tokens that are compared with phase 3's.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    pub greedy: usize,
    #[command(flatten)]
    pub fast: FastArgs,
    /// The folder to write records to.
    #[arg(long, value_name = "FOLDER", default_value = "notebooks/measurements")]
    pub out: PathBuf,
    /// How the program starts itself for one engine.
    #[arg(long, hide = true, value_enum)]
    pub child_engine: Option<EngineKind>,
    /// The number of that engine's model among all.
    #[arg(long, hide = true, default_value_t = 0)]
    pub child_model: usize,
}
