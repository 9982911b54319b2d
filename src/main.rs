//! The command line: `gptoss` alone shows a demonstration and suggests commands; each command does one thing.
//!
//! Exit status: 0 done, 1 a check of `gates`, a comparison (`verify`) or a request of a load test (`bench-serve`) failed, 2 invalid input
//! or another error, 130 stopped at once by Ctrl-C (the first one lets `serve` end its requests). Results go to stdout, messages to stderr.

mod answer;
mod args;
mod commands;
mod conversation;
mod embedded;
mod found;
mod interrupt;
mod lost_file;
mod model;
mod peer;
mod prompt_bar;
mod running;
mod saved;
mod start_times;
mod tools;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    // Graphics drivers print a warning at every start if this variable is not set, for example outside a desktop session.
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
    lost_file::catch();
    let result = match Cli::parse().command {
        None => commands::demo::run(),
        Some(Command::Doctor(args)) => commands::doctor::run(&args),
        Some(Command::Inspect(args)) => commands::inspect::run(&args),
        Some(Command::Tokenize(args)) => commands::tokenize::run(&args),
        Some(Command::Logits(args)) => commands::logits::run(&args),
        Some(Command::Generate(args)) => commands::generate::run(&args),
        Some(Command::Chat(args)) => commands::chat::run(&args),
        Some(Command::Serve(args)) => commands::serve::run(&args),
        Some(Command::Eval(args)) => commands::eval::run(&args),
        Some(Command::Gates(args)) => commands::gates::run(&args),
        Some(Command::Convert(args)) => commands::convert::run(&args),
        Some(Command::Verify(args)) => commands::verify::run(&args),
        Some(Command::Profile(args)) => commands::profile::run(&args),
        Some(Command::Roofline(args)) => commands::roofline::run(&args),
        Some(Command::Tune(args)) => commands::tune::run(&args),
        Some(Command::Memory(args)) => commands::memory::run(&args),
        Some(Command::Bench(args)) => commands::bench::run(&args),
        Some(Command::BenchServe(args)) => commands::bench_serve::run(&args),
        Some(Command::Compare(args)) => commands::compare::run(&args),
        Some(Command::MakeModel(args)) => commands::make_model::run(&args),
        Some(Command::Peers(args)) => commands::peers::run(&args),
        Some(Command::Completions(args)) => commands::setup::completions(&args),
        Some(Command::Man(args)) => commands::setup::man(&args),
    };
    match result {
        Ok(code) => code,
        // If the reader of a pipe closes it early, that is not an error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gptoss: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
