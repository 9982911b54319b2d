//! Commands that run a model on text, and the flags for its replies.

use std::path::PathBuf;

use clap::Args;
use harmony::ReasoningEffort;
use phase2_forward::Sampling;
use phase3_kvcache::{GenerationParams, SamplingParams};
use phase4_profiling::today;

use super::engine::EngineArgs;
use super::values::{date, effort, parse_bias, seed, token_count};
use crate::embedded::EMBEDDED;

/// Continue a prompt; or, given only a question, let the model inside this program answer it.
#[derive(Args)]
#[command(override_usage = "gptoss generate [OPTIONS] QUESTION\n       \
                            gptoss generate [OPTIONS] MODEL PROMPT\n       \
                            gptoss generate [OPTIONS] MODEL --ask QUESTION")]
pub struct Generate {
    /// A GGUF file, a folder of safetensors files, or a name such as ollama:gpt-oss:20b or hf:openai/gpt-oss-20b. Without PROMPT: a
    /// question to the model inside this program.
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// The text to continue, in which control tokens such as <|start|> are recognized.
    #[arg(allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Ask PROMPT as a user's question, and show the answer.
    #[arg(long)]
    pub ask: bool,
    #[command(flatten)]
    pub reply: ReplyArgs,
    /// Continue after the model's stop tokens.
    #[arg(long)]
    pub ignore_stops: bool,
    /// Print one JSON object instead of streaming text.
    #[arg(long)]
    pub json: bool,
}

/// Chat with a model.
#[derive(Args)]
pub struct Chat {
    /// A GGUF file, a folder of safetensors files, or a name such as ollama:gpt-oss:20b; `embedded` is the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// More words, if a question was given instead of a model; the error then suggests `generate`.
    #[arg(hide = true)]
    pub words: Vec<String>,
    /// Instructions for the whole conversation.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Functions that the model may call: a JSON array of OpenAI's tools, or of objects with `name`, `description` and `parameters`. You
    /// type their results.
    #[arg(long, value_name = "F.json")]
    pub tools: Option<PathBuf>,
    #[command(flatten)]
    pub reply: ReplyArgs,
}

/// Score a model's answers to questions that the model inside this program never saw in training.
#[derive(Args)]
pub struct Eval {
    /// A GGUF file, a folder of safetensors files, or a name such as ollama:gpt-oss:20b; `embedded` is the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// Run only this suite; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub suite: Vec<String>,
    /// The most questions per suite.
    #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    pub limit: usize,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Show every wrong answer.
    #[arg(long)]
    pub wrong: bool,
    #[arg(long)]
    pub json: bool,
}

/// Write the logits of every position of a prompt to a safetensors file.
#[derive(Args)]
pub struct Logits {
    /// A GGUF file, a folder of safetensors files, or `embedded`.
    pub model: PathBuf,
    #[command(flatten)]
    pub input: LogitsInput,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Also write the embeddings, residual streams, router logits and final norm.
    #[arg(long)]
    pub dump: bool,
    #[arg(long, value_name = "F.safetensors")]
    pub out: PathBuf,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct LogitsInput {
    /// Token ids, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub tokens: Vec<u32>,
    #[arg(long, allow_hyphen_values = true)]
    pub prompt: Option<String>,
}

/// Flags for replies to a prompt.
#[derive(Args)]
pub struct ReplyArgs {
    /// The most tokens to generate; -1 is the rest of the context.
    #[arg(short = 'n', long, value_name = "N", default_value = "512", value_parser = token_count, allow_negative_numbers = true)]
    pub max_tokens: usize,
    /// How much the model reasons before it answers.
    #[arg(long, default_value = "medium", value_parser = effort())]
    pub reasoning: ReasoningEffort,
    /// The date that the model is given [default: today]
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = date)]
    pub date: Option<String>,
    /// Continue the session in this file, if it exists, and store text and cache in it afterwards (engines cached and flash). A
    /// conversation keeps its reasoning effort and instructions; a text is continued with PROMPT, which may then be empty.
    #[arg(long, value_name = "F")]
    pub session: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

impl ReplyArgs {
    /// The date that the model is given.
    pub fn day(&self) -> String {
        self.date.clone().unwrap_or_else(today)
    }

    pub fn params(&self, stop_tokens: &[u32]) -> GenerationParams {
        GenerationParams {
            sampling: self.sampling.params(),
            max_tokens: self.max_tokens,
            stop_tokens: stop_tokens.to_vec(),
            stop_strings: self.sampling.stop.clone(),
            ..GenerationParams::default()
        }
    }
}

/// How tokens are drawn. The default is greedy.
#[derive(Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Keep the K most likely tokens; 0 keeps all.
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// Keep the fewest most likely tokens with this total probability.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f32,
    /// Keep tokens with at least this probability relative to the most likely one.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    pub min_p: f32,
    /// Divide the positive logits of tokens in the prompt and the text by this, and multiply their negative logits by it.
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    pub repetition_penalty: f32,
    /// Subtract this from the logits of tokens that were generated.
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Subtract this from the logits of tokens, times how often they were generated.
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Add BIAS to the logit of TOKEN; may be repeated.
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers; -1 uses a different one in every run.
    #[arg(long, default_value = "0", value_parser = seed, allow_negative_numbers = true)]
    pub seed: u64,
    /// End before this text; may be repeated. In an answer, only visible text is searched, not reasoning or calls.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    pub fn params(&self) -> SamplingParams {
        SamplingParams {
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
            },
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        }
    }
}
