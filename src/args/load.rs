//! The command that measures servers.

use clap::Args;

use super::values::{minutes, positive, seed};

/// Measure a server that speaks OpenAI's API, ours or another's, over plain HTTP: throughput, time to the first token and between tokens.
#[derive(Args)]
pub struct BenchServe {
    /// Where the server listens; a path in front of /v1 may follow.
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// The model to ask for; the first of the server's if not given.
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// The server's key; the environment variable OPENAI_API_KEY if not given.
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Clients at a time. With --minutes, the largest of these numbers.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,10,32", value_parser = positive)]
    pub clients: Vec<usize>,
    /// Requests of each client, one after another.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    pub requests: usize,
    /// Tokens of a prompt, about. With --minutes, at most.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub prompt: usize,
    /// Tokens of an answer. With --minutes or --agent, at most.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub generate: usize,
    /// Instead: each client is an agent, whose conversation with tools grows turn by turn. Shows how many tokens of it are read again.
    #[arg(long, conflicts_with = "minutes")]
    pub agent: bool,
    /// Turns of an agent.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = positive, requires = "agent")]
    pub turns: usize,
    /// Instead: random load of every kind for so many minutes. Fails if any request does.
    #[arg(long, value_name = "N", value_parser = minutes)]
    pub minutes: Option<f64>,
    /// The server's process, whose memory is looked at meanwhile (Linux).
    #[arg(long, value_name = "ID", requires = "minutes")]
    pub pid: Option<u32>,
    /// What prompts are made from; -1 is another one in every run.
    #[arg(long, default_value = "0", value_parser = seed, allow_negative_numbers = true)]
    pub seed: u64,
    #[arg(long)]
    pub json: bool,
}
