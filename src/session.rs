//! From a model's name to an engine that is ready to run, with a word to the person who waits.

use std::path::Path;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use phase1_loading::Checkpoint;
use phase2_forward::{ComputeDevice, Engine, GptOss, Recompute};
use phase3_kvcache::Cached;

use crate::args::EngineArgs;

/// The model inside this program.
pub const EMBEDDED: &str = "embedded";
static EMBEDDED_MODEL: &[u8] = include_bytes!("../assets/gptoss-tiny.gguf");

/// Opens a file, or the embedded model if that is what is named and no such file exists.
pub fn open(model: &Path) -> Result<Checkpoint> {
    if model == Path::new(EMBEDDED) && !model.exists() {
        return Ok(Checkpoint::from_bytes("embedded model", bytes::Bytes::from_static(EMBEDDED_MODEL))?);
    }
    Ok(Checkpoint::open(model)?)
}

/// An engine with a model in it.
pub struct Session {
    pub engine: Box<dyn Engine>,
    pub device: ComputeDevice,
    pub phase: u8,
}

impl Session {
    /// Finds a device, says which and why, and loads the model.
    pub fn start(checkpoint: &Checkpoint, args: &EngineArgs) -> Result<Session> {
        let device = ComputeDevice::find(args.device, GptOss::gpu_bytes(checkpoint))?;
        eprintln!("device: {} ({})", device.name, device.reason);
        let bar = bytes_bar("loading", checkpoint.weight_bytes());
        let model = GptOss::load(checkpoint, device.clone(), args.rope.into(), &mut |done, _| bar.set_position(done))?;
        bar.finish_and_clear();
        let engine: Box<dyn Engine> = match args.phase {
            2 if args.kv.is_some() => bail!("phase 2 caches nothing; --kv needs phase 3"),
            2 => Box::new(Recompute::new(model)),
            _ => Box::new(Cached::with_cache(model, args.cache_type())?),
        };
        Ok(Session { engine, device, phase: args.phase })
    }
}

/// A progress bar over bytes, on stderr if that is a terminal.
pub fn bytes_bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(total).with_style(style.expect("the template is constant")).with_message(what)
}
