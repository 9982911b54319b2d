//! A run of an engine in a separate process: in the same process, compiled kernels, an active device, and memory that an engine does not
//! free would affect the next engine.
//!
//! The process writes to its stdout the output of [`Computed::write`], and then the measurements as JSON. After an error it writes JSON
//! with the field `error` in place of what it has not written yet.

use std::io::{Write, stdout};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::agreement::Computed;
use super::measured::measured;
use crate::args::{Compare, EngineKind};

/// Starts this program again with the same arguments, for one engine and the model with this index, and waits for it.
pub fn run(kind: EngineKind, model: usize) -> Result<(Computed, Value)> {
    let program = std::env::current_exe().context("the path of this program is not known")?;
    let mut arguments = std::env::args_os().skip(1);
    let mut command = Command::new(program);
    // Right after the command's name, because models may come after `--`.
    command.args(arguments.by_ref().take(1));
    command.args(["--child-engine", kind.name(), "--child-model", &model.to_string()]).args(arguments);
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("its process does not start")?;
    if !output.status.success() {
        bail!("its process ended with {}", output.status);
    }
    let (computed, report) = Computed::read(&output.stdout)?;
    let report: Value = serde_json::from_slice(report).context("its process wrote no measurements")?;
    match report["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok((computed, report)),
    }
}

/// The work of the child process.
pub fn answer(args: &Compare, kind: EngineKind) -> Result<()> {
    let model = args.model.get(args.child_model).context("no model has that number")?;
    let mut out = stdout();
    let report = measured(args, model, kind, &mut |computed: Computed| Ok(computed.write(&mut out)?));
    let report = report.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
    writeln!(out, "{report}")?;
    Ok(out.flush()?)
}
