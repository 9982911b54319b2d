//! Every command and flag, once.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gates::Gate;
use harmony::Effort;
use phase1_loading::{DenseFormat, YarnRamp};
use phase2_forward::{ComputeDevice, DeviceChoice};
use phase3_kvcache::{CacheType, GenerationParams, SamplingParams};
use phase5_flash::CpuOptions;
use phase5_flash::cpu::Isa;

use crate::session::EMBEDDED;

/// GPT-OSS on your own machine. Without a command: a short demonstration on a model inside this program.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
    Inspect(Inspect),
    Tokenize(Tokenize),
    Logits(Logits),
    Generate(Generate),
    Chat(Chat),
    Eval(Eval),
    Gates(Gates),
    Convert(Convert),
    Verify(Verify),
    Profile(Profile),
    Roofline(Roofline),
    Tune(Tune),
    Memory(Memory),
    Bench(Bench),
    MakeModel(MakeModel),
}

/// Show a model's configuration, tensors, memory needs and tokenizer.
#[derive(Args)]
pub struct Inspect {
    /// A GGUF file, a folder of safetensors files, or `embedded` for the model inside this program.
    pub model: PathBuf,
    #[arg(long)]
    pub json: bool,
    /// Read every weight, and name the first tensor with a value that is no number.
    #[arg(long)]
    pub check: bool,
    /// Plan the memory for keys and values in f32, f16 or q8_0.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = parse_cache_type)]
    pub kv: CacheType,
}

/// Turn text into tokens, or back.
#[derive(Args)]
pub struct Tokenize {
    /// A GGUF file, a folder of safetensors files, or `embedded`.
    pub model: PathBuf,
    /// Text in which control tokens such as <|start|> stand for themselves; with --decode, token ids.
    pub text: String,
    #[arg(long)]
    pub json: bool,
    /// TEXT is token ids separated by commas or spaces: print their text.
    #[arg(long)]
    pub decode: bool,
    /// Take what looks like a control token for plain text.
    #[arg(long, conflicts_with = "decode")]
    pub plain: bool,
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
    #[arg(long)]
    pub prompt: Option<String>,
}

/// Continue a prompt; or, without MODEL, have the model inside this program answer it.
#[derive(Args)]
pub struct Generate {
    /// A GGUF file or a folder of safetensors files, and the text to continue, in which control tokens such as <|start|> stand for themselves.
    #[arg(num_args = 1..=2, required = true, value_names = ["MODEL", "PROMPT"])]
    pub model_and_prompt: Vec<String>,
    /// Ask PROMPT as a user would, and show the answer.
    #[arg(long)]
    pub ask: bool,
    #[command(flatten)]
    pub reply: ReplyArgs,
    /// Go on after the model's stop tokens.
    #[arg(long)]
    pub ignore_stops: bool,
    /// Print one JSON object instead of streaming text.
    #[arg(long)]
    pub json: bool,
}

/// Talk with a model.
#[derive(Args)]
pub struct Chat {
    /// A GGUF file or a folder of safetensors files; without one, the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// Instructions for the whole conversation.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub reply: ReplyArgs,
}

/// Measure a model's answers on questions that the model inside this program never saw in training.
#[derive(Args)]
pub struct Eval {
    /// A GGUF file or a folder of safetensors files; without one, the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// Only this suite; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub suite: Vec<String>,
    /// At most this many questions a suite.
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

/// Check every phase against MLX, in order; stop at the first that fails.
#[derive(Args)]
pub struct Gates {
    /// Only this phase.
    #[arg(long, value_parser = parse_gate)]
    pub phase: Option<Gate>,
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    pub device: DeviceChoice,
    /// Where the golden cases are.
    #[arg(long, default_value = "reference/goldens")]
    pub goldens: PathBuf,
    #[arg(long)]
    pub json: bool,
}

/// Write a model as one GGUF file; experts are copied bit for bit.
#[derive(Args)]
pub struct Convert {
    /// A folder of safetensors files from OpenAI, Hugging Face or mlx-lm, or a GGUF file.
    pub model: PathBuf,
    #[arg(value_name = "OUT.gguf")]
    pub out: PathBuf,
    /// Storage of the matrices outside the experts: q8_0, f16, bf16 or f32. Without it they stay as they are; MLX's affine
    /// groups, which GGUF lacks, become f32.
    #[arg(long, value_name = "FORMAT", value_parser = parse_rest)]
    pub rest: Option<DenseFormat>,
}

/// Compare two models: configuration, tokenizer and every tensor after decoding.
#[derive(Args)]
pub struct Verify {
    /// A GGUF file, or a folder of safetensors files.
    pub a: PathBuf,
    /// Another.
    pub b: PathBuf,
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
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    pub device: DeviceChoice,
    #[arg(long)]
    pub json: bool,
}

/// Measure which variants of phase 5's kernels suit this GPU. Kept, and used from then on for models of this shape.
#[derive(Args)]
pub struct Tune {
    /// A GGUF file or a folder of safetensors files; `embedded` for the model inside this program.
    pub model: PathBuf,
    /// auto, gpu, or software (a software rasterizer).
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    pub device: DeviceChoice,
}

/// Show where a model's bytes will live, before anything is loaded.
#[derive(Args)]
pub struct Memory {
    /// A GGUF file; without one, the model inside this program.
    #[arg(default_value = EMBEDDED)]
    pub model: PathBuf,
    /// Tokens of the conversation.
    #[arg(long, value_name = "N", default_value = "4096", value_parser = positive)]
    pub context: usize,
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
    #[arg(long, value_delimiter = ',', default_value = "5", value_parser = parse_phase)]
    pub phase: Vec<u8>,
    #[arg(long, default_value = "auto", value_parser = parse_device)]
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
    /// How keys and values are cached (phases 3 and 5): f32, f16 or q8_0. The engine's own choice if not given.
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = parse_cache_type)]
    pub kv: Vec<CacheType>,
    /// Read back the logits of every step, also where an engine could choose the likeliest tokens by itself.
    #[arg(long)]
    pub stepwise: bool,
    #[command(flatten)]
    pub fast: FastArgs,
    #[arg(long)]
    pub json: bool,
}

/// Write a GPT-OSS model with random weights.
#[derive(Args)]
pub struct MakeModel {
    /// nano, tiny or 20b; or a JSON file of dimensions (`gptoss make-model tiny --print` shows one).
    pub preset: String,
    #[arg(value_name = "OUT.gguf", required_unless_present = "print")]
    pub out: Option<PathBuf>,
    /// Write a folder as Hugging Face keeps gpt-oss, with bf16 outside the experts, instead of a GGUF file.
    #[arg(long, conflicts_with = "rest")]
    pub folder: bool,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Storage of the matrices outside the experts, if not the preset's: q8_0, f16, bf16 or f32.
    #[arg(long, value_name = "FORMAT", value_parser = parse_rest)]
    pub rest: Option<DenseFormat>,
    /// Print the dimensions as JSON and write nothing.
    #[arg(long)]
    pub print: bool,
}

/// How to reply to a prompt.
#[derive(Args)]
pub struct ReplyArgs {
    /// Tokens to generate at most.
    #[arg(short = 'n', long, default_value_t = 512)]
    pub max_tokens: usize,
    /// low, medium or high: how long to think before an answer.
    #[arg(long, default_value = "medium")]
    pub reasoning: Effort,
    /// Go on with what is in this file, if it exists, and keep there what was said and what the engine holds of it (phases 3
    /// and 5). A conversation keeps its reasoning and instructions; text goes on by PROMPT, which may then be empty.
    #[arg(long, value_name = "F")]
    pub session: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

impl ReplyArgs {
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

/// Which engine runs, and where.
#[derive(Args)]
pub struct EngineArgs {
    /// 2 recomputes everything for every token, 3 caches keys and values, 5 is fast and the default.
    #[arg(long, value_parser = parse_phase)]
    pub phase: Option<u8>,
    /// auto, cpu, gpu, or software (a software rasterizer).
    #[arg(long, default_value = "auto", value_parser = parse_device)]
    pub device: DeviceChoice,
    /// exact as OpenAI trained it, or truncated as mlx-lm and llama.cpp compute it. If not given, what the model's
    /// configuration says, which is exact unless it says otherwise.
    #[arg(long, value_enum)]
    pub rope: Option<RopeArg>,
    /// How keys and values are cached (phases 3 and 5): f32, f16 or q8_0.
    #[arg(long, value_name = "TYPE", value_parser = parse_cache_type)]
    pub kv: Option<CacheType>,
    #[command(flatten)]
    pub fast: FastArgs,
}

/// How phase 5 computes.
#[derive(Args, Clone, Default)]
pub struct FastArgs {
    /// Compute in f32 throughout (phase 5).
    #[arg(long)]
    pub exact: bool,
    /// Threads that compute (phase 5 on the CPU); one a physical core if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// The instruction set to compute with (phase 5 on the CPU): avx512, avx2 or portable; the best if not given.
    #[arg(long, value_name = "NAME", value_parser = parse_isa)]
    pub isa: Option<Isa>,
}

impl EngineArgs {
    /// Phase 2 on the CPU, which the others are judged by.
    pub fn reference() -> EngineArgs {
        EngineArgs { phase: Some(2), device: DeviceChoice::Cpu, rope: None, kv: None, fast: FastArgs::default() }
    }

    /// The engine that runs.
    pub fn phase(&self) -> u8 {
        self.phase.unwrap_or(5)
    }

    /// How that engine will cache keys and values on a device.
    pub fn cache_type(&self, device: &ComputeDevice) -> CacheType {
        match self.phase() {
            5 if device.is_cpu() => self.on_cpu().cache_type(),
            _ => self.kv.unwrap_or_default(),
        }
    }

    /// What phase 5 is told on the CPU.
    pub fn on_cpu(&self) -> CpuOptions {
        let FastArgs { exact, threads, isa } = self.fast;
        CpuOptions { threads: threads.map(usize::from), exact, kv: self.kv, isa }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum RopeArg {
    Exact,
    Truncated,
}

impl From<RopeArg> for YarnRamp {
    fn from(arg: RopeArg) -> YarnRamp {
        match arg {
            RopeArg::Exact => YarnRamp::Exact,
            RopeArg::Truncated => YarnRamp::Truncated,
        }
    }
}

/// How tokens are chosen. The default is greedy.
#[derive(Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Keep the K likeliest tokens; 0 is off.
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// Keep the likeliest tokens that hold this much probability.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    pub min_p: f32,
    /// Divide the logits of tokens seen before.
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    pub repetition_penalty: f32,
    /// Lower the logits of tokens generated before.
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Lower the logits of tokens by how often they were generated.
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Add to a token's logit; may be repeated.
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// End before this text; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    pub fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        }
    }
}

fn parse_device(name: &str) -> Result<DeviceChoice, String> {
    name.parse()
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number above 0".into()),
        Ok(number) => Ok(number),
    }
}

fn parse_phase(name: &str) -> Result<u8, String> {
    parse_number(name, &[2, 3, 5])
}

fn parse_gate(name: &str) -> Result<Gate, String> {
    let phase = parse_number(name, &Gate::ALL.map(Gate::phase))?;
    Ok(Gate::ALL.into_iter().find(|gate| gate.phase() == phase).expect("one of them"))
}

fn parse_number(name: &str, allowed: &[u8]) -> Result<u8, String> {
    let found = name.parse().ok().filter(|number| allowed.contains(number));
    let names: Vec<String> = allowed.iter().map(u8::to_string).collect();
    found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

fn parse_isa(name: &str) -> Result<Isa, String> {
    name.parse()
}

fn parse_cache_type(name: &str) -> Result<CacheType, String> {
    name.parse()
}

fn parse_rest(name: &str) -> Result<DenseFormat, String> {
    let found = DenseFormat::ALL.into_iter().find(|rest| rest.format().name().eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("expected one of {}", DenseFormat::ALL.map(|rest| rest.format().name()).join(", ")))
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (token, bias) = text.split_once('=').ok_or("expected TOKEN=BIAS, such as 42=-1.5")?;
    let token = token.parse().map_err(|_| format!("`{token}` is not a token id"))?;
    let bias = bias.parse().map_err(|_| format!("`{bias}` is not a number"))?;
    Ok((token, bias))
}
