//! `gptoss completions` and `gptoss man`: shell completions and man pages, generated from the arguments.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Cli, Completions, Man};
use crate::commands::print;

const NAME: &str = "gptoss";

pub fn completions(args: &Completions) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    print(&String::from_utf8(script).context("the completions are not UTF-8")?)?;
    Ok(ExitCode::SUCCESS)
}

pub fn man(args: &Man) -> Result<ExitCode> {
    let directory = args.directory.display();
    std::fs::create_dir_all(&args.directory).with_context(|| format!("{directory} cannot be created"))?;
    clap_mangen::generate_to(Cli::command(), &args.directory)
        .with_context(|| format!("writing man pages to {directory}"))?;
    eprintln!("wrote man pages to {directory}; try: man {directory}/{NAME}.1");
    Ok(ExitCode::SUCCESS)
}
