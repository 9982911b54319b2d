//! `gptoss` alone: the main job, from a prompt to text, on the embedded model.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Cli, Command};
use crate::commands::{generate, print};
use crate::session::EMBEDDED;

const PROMPT: &str = "Once upon a time";

pub fn run() -> Result<ExitCode> {
    eprintln!("gptoss: a prompt continued by the model inside this program, which has the architecture of gpt-oss and");
    eprintln!("random weights: expect noise. Try `gptoss generate MODEL.gguf PROMPT`, or `gptoss --help`.\n");
    let args = Cli::parse_from(["gptoss", "generate", EMBEDDED, PROMPT, "-n", "64", "--device", "cpu"]);
    match args.command {
        Some(Command::Generate(args)) => {
            print(PROMPT)?;
            generate::run(&args)
        }
        _ => unreachable!("the command line above is `generate`"),
    }
}
