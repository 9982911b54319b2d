//! The command that measures servers.

use clap::Args;

use super::values::{minutes, positive, seed};

/// Measure any server with OpenAI's API over plain HTTP: throughput, time to the first token and between tokens.
#[derive(Args)]
pub struct BenchServe {
    /// The server's address, optionally with a path before /v1.
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// The model to request [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// The server's API key [default: the environment variable OPENAI_API_KEY]
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Text that describes the server in the record of --json, such as its device and options.
    #[arg(long, value_name = "TEXT", requires = "json")]
    pub label: Option<String>,
    /// Numbers of concurrent clients, measured one after another. With --minutes, only the largest is used.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,10,32", value_parser = positive)]
    pub clients: Vec<usize>,
    /// Requests per client, one after another [default: 4]. With --joining, the number of joining requests [default: 11].
    #[arg(long, value_name = "N", value_parser = positive)]
    pub requests: Option<usize>,
    /// Approximate number of tokens per prompt. With --minutes, the maximum.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub prompt: usize,
    /// Tokens per answer. With --minutes or --agent, the maximum.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub generate: usize,
    /// Measure agents instead: each client's conversation with tools grows turn by turn. Shows how many prompt tokens the
    /// server computes because they are not in its cache.
    #[arg(long, conflicts_with = "minutes")]
    pub agent: bool,
    /// Turns per agent.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = positive, requires = "agent")]
    pub turns: usize,
    /// Measure requests that join decoding ones instead: the time to their first token, and how long the others wait. All clients but one
    /// decode.
    #[arg(long, conflicts_with_all = ["minutes", "agent"])]
    pub joining: bool,
    /// Send random requests of every kind for this many minutes instead. Fails if any request fails.
    #[arg(long, value_name = "N", value_parser = minutes)]
    pub minutes: Option<f64>,
    /// The server's process, whose memory is recorded with --minutes (Linux).
    #[arg(long, value_name = "ID", requires = "minutes")]
    pub pid: Option<u32>,
    /// Seed of the random prompts; -1 uses a different one in every run.
    #[arg(long, default_value = "0", value_parser = seed, allow_negative_numbers = true)]
    pub seed: u64,
    #[arg(long)]
    pub json: bool,
}
