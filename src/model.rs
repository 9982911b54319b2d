//! From the name of a model to an engine that is ready to run, with messages on stderr.

use std::path::Path;
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use phase1_loading::{Checkpoint, GptOssConfig, ReadAhead, Tokenizer, YarnRamp, is_foreign_name};
use phase2_forward::{ComputeDevice, DeviceChoice, GptOss, Inspect, ModelNeeds, RecomputeEngine, SequenceId};
use phase3_kvcache::{CacheType, CachedEngine, PREFILL_CHUNK};
use phase4_profiling::{CostModel, EngineSetup, HostMemory, MemoryKind, MemoryPlan, cache_directory};
use phase5_flash::CpuEngine;
use phase5_flash::gpu::{GpuEngine, Options, TunedFor, Tuning, in_order_of_upload};

use crate::args::{EngineArgs, EngineKind};
use crate::embedded::{EMBEDDED, EMBEDDED_MODEL, EMBEDDED_NAME, EMBEDDED_PATH};
use crate::peer;
use crate::running::Running;
use crate::start_times::StartTimes;

/// The id of the sequence in all commands that use only one.
pub const SEQUENCE: SequenceId = 0;

/// Tokens of a typical conversation, for which a device should have memory.
pub const USUAL_CONTEXT: usize = 4096;

/// Models with fewer bytes are loaded in less time than a GPU takes to start.
const LEAST_READ_AHEAD: u64 = 256 << 20;
/// The most threads that read ahead: page faults of more threads delay each other.
const READING_THREADS: usize = 8;

/// Opens a model; `embedded` is the model inside this program, unless a file or folder with that name exists.
pub fn open(model: &Path) -> Result<Checkpoint> {
    if model == Path::new(EMBEDDED) && !model.exists() {
        return Ok(Checkpoint::from_bytes(EMBEDDED_PATH, bytes::Bytes::from_static(EMBEDDED_MODEL))?);
    }
    if !model.exists() && is_bare_name(model) {
        bail!(
            "there is no file or folder {}; names of downloaded models begin with hf:, ollama: or lmstudio:",
            model.display()
        );
    }
    let mut checkpoint = Checkpoint::open(model)?;
    if checkpoint.lacks_vocabulary() {
        eprintln!("{}: it has no vocabulary; gpt-oss's own is used", checkpoint.path.display());
        checkpoint.use_vocabulary(synthetic::o200k_harmony, synthetic::O200K_SPECIAL);
    }
    Ok(checkpoint)
}

/// Whether a text is neither the path of a GGUF file nor the name that another program gives a model.
pub fn is_bare_name(model: &Path) -> bool {
    let is_gguf = model.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    !is_gguf && !is_foreign_name(&model.to_string_lossy())
}

/// As [`open`], with the configuration overridden by flags.
pub fn open_with(model: &Path, args: &EngineArgs) -> Result<Checkpoint> {
    let mut checkpoint = open(model)?;
    if let Some(ramp) = args.rope {
        checkpoint.config.rope.ramp = ramp.into();
    } else if args.kind() == EngineKind::LlamaCpp {
        checkpoint.config.rope.ramp = YarnRamp::Truncated;
    }
    Ok(checkpoint)
}

/// Bytes of the 4-bit copy of the head that an engine reads instead of the head in greedy decoding; `None` without a copy.
pub fn shortlist_bytes(checkpoint: &Checkpoint, device: &ComputeDevice, args: &EngineArgs) -> Option<u64> {
    let makes_one = args.kind() == EngineKind::Flash && device.is_cpu();
    makes_one.then(|| CpuEngine::shortlist_bytes(checkpoint, args.on_cpu())).flatten()
}

/// The requested device, or the one that suits the model.
pub fn find_device(checkpoint: &Checkpoint, args: &EngineArgs) -> Result<ComputeDevice> {
    Ok(ComputeDevice::find(args.device, needs(checkpoint, args))?)
}

/// The memory that the model needs on a GPU, with its cache and the scratch buffers of a step.
fn needs(checkpoint: &Checkpoint, args: &EngineArgs) -> ModelNeeds {
    planned_needs(&checkpoint.config, args, |setup| MemoryPlan::new(checkpoint, setup))
}

/// As [`needs`], for a model whose memory plan is `plan`.
pub fn planned_needs(
    config: &GptOssConfig,
    args: &EngineArgs,
    plan: impl FnOnce(EngineSetup) -> MemoryPlan,
) -> ModelNeeds {
    let whole = config.context_length;
    // Phase 5 allocates a cache for a whole context at the start; the caches of other phases grow.
    let context = if args.kind() == EngineKind::Flash { whole } else { whole.min(USUAL_CONTEXT) };
    let setup = EngineSetup {
        // A peer allocates its own memory; the estimate is phase 5's.
        phase: args.kind().phase().unwrap_or(5),
        on_gpu: true,
        cache: args.cache_on_gpu(),
        pool: args.fast.kv_memory,
        context,
        chunk: context.min(PREFILL_CHUNK),
        shortlist: 0,
    };
    ModelNeeds { bytes: plan(setup).at(MemoryKind::Device), layers: config.layers() }
}

/// An engine with a loaded model.
pub struct LoadedModel {
    pub engine: Running,
    pub device: ComputeDevice,
    pub kind: EngineKind,
    /// The type of the engine's KV cache.
    pub cache: CacheType,
    /// How long the stages of the start took.
    pub times: StartTimes,
}

impl LoadedModel {
    /// Finds a device, prints it with the reason, loads the model, and prints the engine.
    pub fn start(checkpoint: &Checkpoint, args: &EngineArgs) -> Result<LoadedModel> {
        let (mut times, start) = (StartTimes::default(), Instant::now());
        if let Some(peer) = args.kind().peer() {
            let (engine, device) = peer::start(peer, checkpoint, args)?;
            let cache = if engine.hello().dtype == "float32" { CacheType::F32 } else { CacheType::F16 };
            let engine = Running::Peer(Box::new(engine));
            times.add("peer", start.elapsed());
            return Ok(LoadedModel { engine, device, kind: args.kind(), cache, times });
        }
        let _read_ahead = read_ahead(checkpoint, args);
        let device = find_device(checkpoint, args)?;
        times.add("device", start.elapsed());
        let start = Instant::now();
        eprintln!("device: {} ({})", device.name, device.reason);
        let (kind, cache, fast) = (args.kind(), args.cache_type(&device), &args.fast);
        let title = kind.title();
        if kind != EngineKind::Flash && (fast.exact || fast.threads.is_some() || fast.isa.is_some()) {
            bail!("--exact, --threads and --isa are for phase 5, --engine flash; {title} always computes in f32");
        }
        if kind != EngineKind::Flash && fast.kv_memory.is_some() {
            bail!("--kv-memory is for phase 5, --engine flash; {title} allocates what its sequences need");
        }
        if kind == EngineKind::Reference && args.kv.is_some() {
            bail!("the engine `reference` has no cache; --kv is for `cached` and `flash`");
        }
        let bar = bytes_bar("loading", checkpoint.weight_bytes());
        let progress = &mut |done, _| bar.set_position(done);
        let (mut details, mut gpu_times) = (String::new(), None);
        let engine: Box<dyn Inspect> = match kind {
            EngineKind::Mlx | EngineKind::LlamaCpp => unreachable!("peers are started above"),
            EngineKind::Reference => {
                Box::new(RecomputeEngine::new(GptOss::load(checkpoint, device.clone(), progress)?))
            }
            EngineKind::Cached => {
                Box::new(CachedEngine::with_cache(GptOss::load(checkpoint, device.clone(), progress)?, cache)?)
            }
            EngineKind::Flash if device.is_cpu() => {
                let engine = CpuEngine::load(checkpoint, args.on_cpu())?;
                details = format!(", {} threads, {}", engine.threads(), engine.isa());
                Box::new(engine)
            }
            EngineKind::Flash => {
                if fast.threads.is_some() || fast.isa.is_some() {
                    bail!("--threads and --isa are for the CPU, not for a GPU");
                }
                let (exact, tuning) = (fast.exact, kept_tuning(checkpoint, &device));
                let options = Options { kv: cache, kv_bytes: fast.kv_memory, exact, tuning, ..Options::default() };
                let engine = GpuEngine::load(checkpoint, &device, options, progress)?;
                gpu_times = Some(engine.load_times());
                Box::new(engine)
            }
        };
        match gpu_times {
            Some(gpu_times) => times.add_gpu_load(&gpu_times),
            None => times.add("model", start.elapsed()),
        }
        bar.finish_and_clear();
        eprintln!("engine: {} ({title}){details}", kind.name());
        Ok(LoadedModel { engine: Running::Ours(engine), device, kind, cache, times })
    }

    /// The cost model of this engine's steps. Phase 2 has no cache to read or write.
    pub fn costs(&self, checkpoint: &Checkpoint) -> CostModel {
        let costs = CostModel::new(checkpoint, self.cache);
        if self.kind == EngineKind::Reference { costs.without_cache() } else { costs }
    }

    /// As [`LoadedModel::start`], but first prints the model's name. The tokenizer is built in parallel: for 200,000 tokens that takes
    /// longer than mapping a model.
    pub fn start_with_tokenizer(checkpoint: &Checkpoint, args: &EngineArgs) -> Result<(LoadedModel, Tokenizer)> {
        match checkpoint.path.as_os_str() == EMBEDDED_PATH {
            true => eprintln!("model: {EMBEDDED_NAME} (inside the program)"),
            false => eprintln!("model: {}", checkpoint.path.display()),
        }
        std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| {
                let start = Instant::now();
                (checkpoint.tokenizer(), start.elapsed())
            });
            let mut loaded = LoadedModel::start(checkpoint, args)?;
            let start = Instant::now();
            let (tokenizer, time) = tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            loaded.times.add("end of tokenizer", start.elapsed());
            loaded.times.add_part("tokenizer", time);
            Ok((loaded, tokenizer?))
        })
    }
}

/// Begins to read the weights while a GPU starts, unless they are small, or take more than half of the available memory: in that case pages
/// might be evicted before they are needed. Only phase 5 reads ahead.
fn read_ahead(checkpoint: &Checkpoint, args: &EngineArgs) -> Option<ReadAhead> {
    let (bytes, may_use_gpu) = (checkpoint.weight_bytes(), args.device != DeviceChoice::Cpu);
    if args.kind() != EngineKind::Flash || !may_use_gpu || bytes < LEAST_READ_AHEAD {
        return None;
    }
    let memory = HostMemory::of_this_machine();
    let room = memory.available?.min(memory.limit.unwrap_or(u64::MAX));
    let threads = available_parallelism().map_or(1, usize::from) / 2;
    (bytes <= room / 2).then(|| ReadAhead::start(in_order_of_upload(checkpoint), threads.clamp(1, READING_THREADS)))
}

/// The stored result of `gptoss tune` for this model and GPU; `None` if there is none, or, with a message, if it cannot be used.
fn kept_tuning(checkpoint: &Checkpoint, device: &ComputeDevice) -> Option<Tuning> {
    let directory = cache_directory();
    let kept = directory.map_or(Ok(None), |directory| TunedFor::new(checkpoint, device).read(&directory));
    kept.unwrap_or_else(|error| {
        eprintln!("not tuned: {error}");
        None
    })
}

/// A progress bar over bytes, on stderr if that is a terminal.
pub fn bytes_bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(total).with_style(style.expect("the template is constant")).with_message(what)
}
