//! Starts a peer, MLX or llama.cpp, for a command.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use peers::{Installation, Launch, Options, Peer, PeerEngine};
use phase1_loading::{Checkpoint, write_whole};
use phase2_forward::{ComputeDevice, DeviceChoice, ModelNeeds};
use phase4_profiling::cache_directory;

use crate::args::{CacheSize, EngineArgs};
use crate::embedded::{EMBEDDED_MODEL, EMBEDDED_PATH};

/// The least number of tokens for which a peer's cache is requested.
const MIN_ROOM: usize = 1024;

/// The folder in which peers are installed.
pub fn folder() -> Result<PathBuf> {
    Ok(cache_directory()
        .context("peers are installed in the user's cache directory, and there is no home directory")?
        .join("peers"))
}

/// Starts a peer with the model of a checkpoint, and prints its device.
pub fn start(peer: Peer, checkpoint: &Checkpoint, args: &EngineArgs) -> Result<(PeerEngine, ComputeDevice)> {
    let title = peer.title();
    let fast = &args.fast;
    if args.kv.is_some() || fast.kv_memory.is_some() || fast.isa.is_some() {
        bail!("--kv, --kv-memory and --isa are for gptoss's engines; {title} has its own settings");
    }
    if fast.threads.is_some() && peer == Peer::Mlx {
        bail!("{title} chooses its own number of threads");
    }
    let device = match args.device {
        DeviceChoice::Software => bail!("{title} does not run on a software rasterizer"),
        choice => choice.name(),
    };
    let launch = Launch::new(peer, Installation::find(peer, &folder()?)?.python);
    let options = Options {
        device,
        dtype: fast.exact.then_some("float32"),
        threads: args.on_cpu().thread_count(),
        ..Options::default()
    };
    let options = match args.cache_size {
        Some(CacheSize { tokens, sequences }) => Options { context: tokens.max(MIN_ROOM), sequences, ..options },
        None => options,
    };
    let engine = PeerEngine::start(&launch, checkpoint, &model_file(checkpoint)?, &options)?;
    let hello = engine.hello();
    let versions: Vec<String> = hello.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let reason = format!("{title} in {}: {}", hello.dtype, versions.join(", "));
    let device = match hello.device.as_str() {
        "gpu" => on_gpu(title, reason),
        _ => named(ComputeDevice::cpu(reason.clone()), title, reason),
    };
    eprintln!("device: {} ({})", device.name, device.reason);
    Ok((engine, device))
}

/// The GPU as gptoss sees it, so that its roofline can be measured; the CPU if gptoss sees none.
fn on_gpu(title: &str, reason: String) -> ComputeDevice {
    let found = ComputeDevice::find(DeviceChoice::Gpu, ModelNeeds::default());
    named(found.unwrap_or_else(|_| ComputeDevice::cpu(reason.clone())), title, reason)
}

fn named(mut device: ComputeDevice, title: &str, reason: String) -> ComputeDevice {
    device.name = format!("{} through {title}", device.name);
    device.reason = reason;
    device
}

/// The file or folder of a checkpoint. The embedded model is written to the cache directory.
fn model_file(checkpoint: &Checkpoint) -> Result<PathBuf> {
    if checkpoint.path.as_os_str() != EMBEDDED_PATH {
        return Ok(checkpoint.path.clone());
    }
    let folder = folder()?;
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(format!("embedded-{}.gguf", env!("CARGO_PKG_VERSION")));
    let is_there = std::fs::metadata(&path).is_ok_and(|file| file.len() == EMBEDDED_MODEL.len() as u64);
    if !is_there {
        write_whole(&path, |out| out.write_all(EMBEDDED_MODEL)).with_context(|| path.display().to_string())?;
    }
    Ok(path)
}
