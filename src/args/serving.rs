//! The command that serves a model over HTTP.

use std::path::PathBuf;

use clap::Args;

use super::engine::EngineArgs;
use super::values::{memory_size, positive};
use crate::embedded::EMBEDDED;

/// Serve a model to OpenAI's and Ollama's clients, and as a chat page.
#[derive(Args)]
pub struct Serve {
    /// A GGUF file or a folder of safetensors files; `embedded` is the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// The address to listen on; 0.0.0.0 listens on all addresses of this machine.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// The port to listen on; 0 selects a free port.
    #[arg(short, long, default_value_t = 8080)]
    pub port: u16,
    /// An API key that requests must have; may be repeated. The list of processes shows it: prefer --api-key-file, or the environment
    /// variable GPTOSS_API_KEY.
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// A file with one API key per line, optionally preceded by a name, which is shown in the log.
    #[arg(long, value_name = "F")]
    pub api_key_file: Option<PathBuf>,
    /// Another name by which clients may request the model; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub alias: Vec<String>,
    /// The most requests that are computed together.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    pub parallel: usize,
    /// The most requests that wait; further ones are refused with status 429.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub queue: usize,
    /// The most tokens of a prompt and its answer together [default: the model's context]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub context: Option<usize>,
    /// Prompt tokens per step while other requests decode: more makes prompts faster, fewer makes answers smoother. A step that completes a
    /// prompt may have a quarter more.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub prompt_tokens_per_step: usize,
    /// Compute every prompt from its beginning.
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// A folder for conversations that do not fit in memory; they survive a restart. Each server needs its own folder.
    #[arg(long, value_name = "DIR", conflicts_with = "no_prefix_cache")]
    pub cache_dir: Option<PathBuf>,
    /// The largest size of the folder of --cache-dir; the least recently used files are deleted first.
    #[arg(long, value_name = "BYTES", default_value = "10GiB", value_parser = memory_size, requires = "cache_dir")]
    pub cache_size: u64,
    /// The date that the model is given, instead of today's. Prompts then begin in the same way after midnight, so that cached ones stay
    /// valid.
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub date: Option<String>,
    /// Allow web pages of this origin to use the server, such as `https://chat.example.org`; `*` allows any. May be repeated.
    #[arg(long, value_name = "ORIGIN")]
    pub cors: Vec<String>,
    /// The largest body of a request.
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = memory_size)]
    pub max_body: u64,
    /// The most open connections; others wait to be accepted.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    pub max_connections: usize,
    /// The longest time of an answer in seconds, including waiting; then it ends with an error [default: unlimited]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub answer_time: Option<u64>,
    /// Seconds that running answers have to finish when the server is stopped.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub grace: u64,
    #[command(flatten)]
    pub engine: EngineArgs,
}
