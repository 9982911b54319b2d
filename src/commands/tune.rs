//! `gptoss tune`: finds the fastest variants of phase 5's kernels on a GPU.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use phase2_forward::{ComputeDevice, GptOss};
use phase4_profiling::cache_directory;
use phase5_flash::gpu::{self, GpuEngine, Options, Tuned, TunedFor};

use crate::args::Tune;
use crate::commands::print;
use crate::model::{self, bytes_bar};

pub fn run(args: &Tune) -> Result<ExitCode> {
    let checkpoint = model::open(&args.model)?;
    let device = ComputeDevice::find(args.device, GptOss::needs(&checkpoint))?;
    eprintln!("device: {} ({})", device.name, device.reason);
    if device.is_cpu() {
        bail!("only GPUs can be tuned; on the CPU the instruction set selects the kernels");
    }
    let directory = cache_directory().context("this user has no cache directory; set HOME")?;
    let bar = bytes_bar("loading", checkpoint.weight_bytes());
    let progress = &mut |done, _| bar.set_position(done);
    let mut engine = GpuEngine::load(&checkpoint, &device, Options::default(), progress)?;
    bar.finish_and_clear();
    let bar = ProgressBar::new(0).with_message("measuring");
    let tuned = gpu::tune(&mut engine, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let Tuned { tuning, default_seconds, seconds } = tuned;
    let path = TunedFor::new(&checkpoint, &device).write(&directory, tuning)?;
    eprintln!("wrote {}", path.display());
    print(&format!("{:.3} ms per token before, {:.3} ms tuned\n", 1e3 * default_seconds, 1e3 * seconds))?;
    Ok(ExitCode::SUCCESS)
}
