//! `gptoss doctor`: what this machine has, which model fits, which engine runs and why, and what to do.

mod advice;
mod findings;
mod report;

use std::process::ExitCode;

use anyhow::Result;

use crate::args::Doctor;
use crate::commands::print;
use findings::Findings;

pub fn run(args: &Doctor) -> Result<ExitCode> {
    let findings = Findings::gather(args)?;
    let text = match args.json {
        true => format!("{:#}\n", report::json(&findings)),
        false => report::text(&findings),
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
