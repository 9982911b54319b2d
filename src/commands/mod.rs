//! One command per file, each with a `run` that returns the exit status. Exceptions: `setup` contains the two commands `completions` and
//! `man`, and `record` is no command but the description of a measurement's origin.

pub mod bench;
pub mod bench_serve;
pub mod chat;
pub mod compare;
pub mod convert;
pub mod demo;
pub mod doctor;
pub mod eval;
pub mod gates;
pub mod generate;
pub mod inspect;
pub mod logits;
pub mod make_model;
pub mod memory;
pub mod peers;
pub mod profile;
pub mod record;
pub mod roofline;
pub mod serve;
pub mod setup;
pub mod tokenize;
pub mod tune;
pub mod verify;

use std::io::{self, Write, stdout};

/// Writes a result to stdout and flushes it. Unlike with `print!`, a closed pipe is an error and not a panic.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Bytes in readable units.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
