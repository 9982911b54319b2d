//! The command that serves a model over HTTP.

use std::path::PathBuf;

use clap::Args;

use super::engine::EngineArgs;
use super::values::{memory_size, positive};
use crate::embedded::EMBEDDED;

/// Serve a model to OpenAI's and Ollama's clients, and as a chat page.
#[derive(Args)]
pub struct Serve {
    /// A GGUF file or a folder of safetensors files; without one, the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// The address to listen on; 0.0.0.0 is all of this machine's.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// The port to listen on; 0 is any free one.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// A key that requests have to bring; may be repeated. It can be seen in the list of processes: prefer --api-key-file, or
    /// the environment variable GPTOSS_API_KEY.
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// A file with a key a line, or a name and a key; the name stands in the log.
    #[arg(long, value_name = "F")]
    pub api_key_file: Option<PathBuf>,
    /// Another name that clients may ask for; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub alias: Vec<String>,
    /// Requests that are computed together.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    pub parallel: usize,
    /// Requests that wait beside them; further ones are refused with 429.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub queue: usize,
    /// Tokens that a prompt and its answer may have together; the model's own context if not given.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub context: Option<usize>,
    /// Tokens of prompts that a step takes beside those that decode: more reads faster, fewer answers more evenly.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub prompt_tokens_per_step: usize,
    /// Read every prompt from its beginning.
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// A folder for conversations that memory has no room for; it outlives the server. Each server needs its own.
    #[arg(long, value_name = "DIR", conflicts_with = "no_prefix_cache")]
    pub cache_dir: Option<PathBuf>,
    /// Bytes that the folder may hold; what was used least recently is deleted first.
    #[arg(long, value_name = "BYTES", default_value = "10GiB", value_parser = memory_size, requires = "cache_dir")]
    pub cache_size: u64,
    /// The date that the model is told, instead of today's. Prompts then keep their beginning, and its cache, over midnight.
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub date: Option<String>,
    /// Let pages of this origin use the server, such as https://chat.example.org; `*` is any. May be repeated.
    #[arg(long, value_name = "ORIGIN")]
    pub cors: Vec<String>,
    /// The largest body of a request.
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = memory_size)]
    pub max_body: u64,
    /// Connections at a time; others wait to be taken.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    pub max_connections: usize,
    /// Seconds that an answer may take, waiting included; then it is broken off with an error. As long as it takes if not given.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub answer_time: Option<u64>,
    /// Seconds that answers have to finish when the server is told to stop.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub grace: u64,
    #[command(flatten)]
    pub engine: EngineArgs,
}
