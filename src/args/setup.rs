//! Commands for this machine and this program.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::engine::EngineArgs;

/// Show what this machine has, which model fits, which engine will run and why, and what to do.
#[derive(Args)]
pub struct Doctor {
    /// The model to plan for [default: the first gpt-oss that another program has downloaded, otherwise gpt-oss-20b's shape]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[arg(long)]
    pub json: bool,
}

/// Print completions for a shell.
#[derive(Args)]
pub struct Completions {
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Write a man page for every command.
#[derive(Args)]
pub struct Man {
    /// The folder for the pages; it is created if it does not exist.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}
