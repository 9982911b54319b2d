//! `gptoss` alone: a question answered by the embedded model, and what to do next.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Cli, Command};
use crate::commands::{generate, print};
use crate::found;

const QUESTION: &str = "What is 47 + 38?";
/// The model to download if none was found.
const DOWNLOAD: &str = "hf:ggml-org/gpt-oss-20b-GGUF";

pub fn run() -> Result<ExitCode> {
    eprintln!("gptoss {}: GPT-OSS on your own machine.", env!("CARGO_PKG_VERSION"));
    eprintln!("A question to the small model inside this program:\n");
    print(&format!("> {QUESTION}\n"))?;
    let Some(Command::Generate(args)) = Cli::parse_from(["gptoss", "generate", QUESTION]).command else {
        unreachable!("the command line above is `generate`");
    };
    let code = generate::run(&args)?;
    eprint!("{}", next(found::models().first().map(|(name, _)| *name)));
    Ok(code)
}

/// Suggested commands, with a model on this machine or how to download one.
fn next(found: Option<&str>) -> String {
    let model = match found {
        Some(name) => row(&format!("gptoss chat {name}"), "a model that is on this machine"),
        None => row(&format!("gptoss chat {DOWNLOAD}"), "gpt-oss-20b, after `hf download ggml-org/gpt-oss-20b-GGUF`"),
    };
    let rows = [
        row("gptoss chat", "talk with the small model"),
        row("gptoss serve", "a chat page, OpenAI's and Ollama's APIs, on http://127.0.0.1:8080"),
        row("gptoss doctor", "what this machine has, which model fits, which engine runs"),
        model,
        row("gptoss --help", "all commands"),
    ];
    format!("\nNext:\n{}", rows.concat())
}

fn row(command: &str, what: &str) -> String {
    format!("  {command:42}{what}\n")
}
