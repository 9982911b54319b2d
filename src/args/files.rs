//! Commands for model files.

use std::path::PathBuf;

use clap::Args;
use phase1_loading::DenseFormat;
use phase3_kvcache::CacheType;

use super::values::{cache_type, parse_rest};

/// Show a model's configuration, tensors, memory needs and tokenizer.
#[derive(Args)]
pub struct Inspect {
    /// A GGUF file, a folder of safetensors files, a name such as ollama:gpt-oss:20b or hf:openai/gpt-oss-20b, or `embedded` for the model
    /// inside this program.
    pub model: PathBuf,
    #[arg(long)]
    pub json: bool,
    /// Read every weight, and name the first tensor with a value that is not finite.
    #[arg(long)]
    pub check: bool,
    /// Show the cache size for keys and values of this type.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = cache_type())]
    pub kv: CacheType,
}

/// Convert text to tokens, or tokens to text.
#[derive(Args)]
pub struct Tokenize {
    /// A GGUF file, a folder of safetensors files, or `embedded`.
    pub model: PathBuf,
    /// The text, in which control tokens such as <|start|> are recognized; with --decode, token ids.
    #[arg(allow_hyphen_values = true)]
    pub text: String,
    #[arg(long)]
    pub json: bool,
    /// TEXT is token ids separated by commas or spaces: print their text.
    #[arg(long)]
    pub decode: bool,
    /// Encode the names of control tokens as plain text.
    #[arg(long, conflicts_with = "decode")]
    pub plain: bool,
}

/// Write a model as one GGUF file; experts in a format that GGUF has are copied bit for bit.
#[derive(Args)]
pub struct Convert {
    /// A folder of safetensors files from OpenAI, Hugging Face or mlx-lm, or a GGUF file.
    pub model: PathBuf,
    #[arg(value_name = "OUT.gguf")]
    pub out: PathBuf,
    /// Storage format of the matrices outside the experts, and of experts in a format that GGUF lacks: q8_0, f16, bf16 or f32 [default:
    /// unchanged; MLX's affine groups, which GGUF lacks, become f32]
    #[arg(long, value_name = "FORMAT", value_parser = parse_rest)]
    pub rest: Option<DenseFormat>,
}

/// Compare two models: configuration, tokenizer and every tensor after decoding.
#[derive(Args)]
pub struct Verify {
    /// A GGUF file, or a folder of safetensors files.
    pub a: PathBuf,
    /// Another GGUF file or folder.
    pub b: PathBuf,
    #[arg(long)]
    pub json: bool,
}

/// Write a GPT-OSS model with random weights.
#[derive(Args)]
pub struct MakeModel {
    /// nano, tiny, 20b or 120b; or a JSON file of dimensions (`gptoss make-model tiny --print` shows one).
    pub preset: String,
    #[arg(value_name = "OUT.gguf", required_unless_present = "print")]
    pub out: Option<PathBuf>,
    /// Write a folder in Hugging Face's layout, with bf16 outside the experts, instead of a GGUF file.
    #[arg(long, conflicts_with = "rest")]
    pub folder: bool,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Storage format of the matrices outside the experts: q8_0, f16, bf16 or f32 [default: the preset's]
    #[arg(long, value_name = "FORMAT", value_parser = parse_rest)]
    pub rest: Option<DenseFormat>,
    /// Print the dimensions as JSON and write nothing.
    #[arg(long)]
    pub print: bool,
}
