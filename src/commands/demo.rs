//! `gptoss` alone: a question answered by the embedded model.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Cli, Command};
use crate::commands::{generate, print};

const QUESTION: &str = "What is 47 + 38?";

pub fn run() -> Result<ExitCode> {
    eprintln!("gptoss {}: a question to the small model inside this program.", env!("CARGO_PKG_VERSION"));
    eprintln!("Next: `gptoss chat` to talk with it, `gptoss generate MODEL.gguf PROMPT`, `gptoss --help`.\n");
    print(&format!("> {QUESTION}\n"))?;
    let Some(Command::Generate(args)) = Cli::parse_from(["gptoss", "generate", QUESTION]).command else {
        unreachable!("the command line above is `generate`");
    };
    generate::run(&args)
}
