//! `gptoss convert`: converts any checkpoint to one GGUF file.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use phase4_profiling::process;

use crate::args::Convert;
use crate::model::{self, bytes_bar};

pub fn run(args: &Convert) -> Result<ExitCode> {
    let checkpoint = model::open(&args.model)?;
    let start = Instant::now();
    let bar = bytes_bar("converting", 0);
    let mut bytes = 0;
    let mut most_memory = None;
    let result = phase1_loading::convert(&checkpoint, &args.out, args.rest, &mut |done, total| {
        bytes = total;
        most_memory = most_memory.max(process::anonymous_resident_bytes());
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    result?;
    let seconds = start.elapsed().as_secs_f64();
    let memory =
        most_memory.map_or(String::new(), |most| format!("; at most {:.0} MB of anonymous memory", most as f64 / 1e6));
    eprintln!(
        "{}: {:.2} GB in {seconds:.1} s, {:.0} MB/s{memory}",
        args.out.display(),
        bytes as f64 / 1e9,
        bytes as f64 / 1e6 / seconds,
    );
    Ok(ExitCode::SUCCESS)
}
