//! The command that measures every engine with the same work.

use std::path::PathBuf;

use clap::Args;
use phase2_forward::DeviceChoice;

use super::engine::FastArgs;
use super::kind::EngineKind;
use super::values::{device, positive};

/// Run the same work on every available engine, alternating between engines, and write the measurements to a record for the notebooks. Each
/// engine runs in a separate process.
#[derive(Args)]
pub struct Compare {
    /// GGUF files or folders of safetensors files; one record is written per model.
    #[arg(required = true)]
    pub model: Vec<PathBuf>,
    /// Engines to run [default: cached (phase 3), flash (phase 5), and mlx and llama.cpp if they are installed]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub engine: Vec<EngineKind>,
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "512", value_parser = positive)]
    pub prompt: Vec<usize>,
    /// Tokens that a sequence holds before the measurement.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0,4096")]
    pub depth: Vec<usize>,
    /// Decoding steps per run.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub generate: usize,
    /// Sequences that decode together in the measurement of several sequences.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = positive)]
    pub sequences: usize,
    /// Runs per measurement and turn; the median counts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    pub repeat: usize,
    /// How often each engine is started; every other turn runs the engines in reverse order.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = positive)]
    pub turns: usize,
    /// Tokens whose logits are compared with those of the engine cached (phase 3) in f32 on the CPU.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub check: usize,
    /// Greedy tokens that are compared with those of the engine cached (phase 3).
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    pub greedy: usize,
    #[command(flatten)]
    pub fast: FastArgs,
    /// The folder for records.
    #[arg(long, value_name = "FOLDER", default_value = "notebooks/measurements")]
    pub out: PathBuf,
    /// The engine to run in this process: the program starts itself with this option once per model, turn and engine.
    #[arg(long, hide = true, value_enum)]
    pub child_engine: Option<EngineKind>,
    /// The index, from 0, of the model in `model` that this process runs.
    #[arg(long, hide = true, default_value_t = 0)]
    pub child_model: usize,
}
