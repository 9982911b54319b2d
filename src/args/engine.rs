//! Flags that choose an engine.

use clap::{Args, ValueEnum};
use phase1_loading::YarnRamp;
use phase2_forward::{ComputeDevice, DeviceChoice};
use phase3_kvcache::CacheType;
use phase5_flash::CpuOptions;
use phase5_flash::cpu::Isa;

use super::kind::EngineKind;
use super::values::{cache_type, device, isa, memory_size, phase};

/// Which engine runs, and where.
#[derive(Args)]
pub struct EngineArgs {
    /// Which engine runs; `flash` if not given.
    #[arg(long, value_enum)]
    pub engine: Option<EngineKind>,
    /// The engine by the number of its phase.
    #[arg(long, hide = true, conflicts_with = "engine", value_parser = phase())]
    pub phase: Option<EngineKind>,
    /// Where to run. `software` is a software rasterizer; `auto` is a GPU that can hold the model, else the CPU.
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    /// exact as OpenAI trained it, or truncated as mlx-lm and llama.cpp compute it. If not given, what the model's
    /// configuration says, which is exact unless it says otherwise; --engine llama.cpp is always truncated.
    #[arg(long, value_enum)]
    pub rope: Option<RopeArg>,
    /// How keys and values are cached (phases 3 and 5).
    #[arg(long, value_name = "TYPE", value_parser = cache_type())]
    pub kv: Option<CacheType>,
    #[command(flatten)]
    pub fast: FastArgs,
    /// What llama.cpp makes room for when it starts, where a command knows what it needs.
    #[arg(skip)]
    pub room: Option<Room>,
}

/// Room in a cache.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Of all sequences together.
    pub tokens: usize,
    pub sequences: usize,
}

/// How phase 5 computes.
#[derive(Args, Clone, Default)]
pub struct FastArgs {
    /// Compute in f32 throughout (phase 5, and MLX on a GPU); keep llama.cpp's cache in f32.
    #[arg(long)]
    pub exact: bool,
    /// Threads that compute (phase 5 on the CPU, and llama.cpp); one a physical core if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// The instruction set to compute with (phase 5 on the CPU), one of this machine's; the best if not given.
    #[arg(long, value_name = "NAME", value_parser = isa())]
    pub isa: Option<Isa>,
    /// Memory for the keys and values of all sequences (phase 5), such as 2GiB, 512MiB, or a number of bytes; what the model's
    /// context takes if not given.
    #[arg(long, value_name = "BYTES", value_parser = memory_size)]
    pub kv_memory: Option<u64>,
}

impl EngineArgs {
    /// Phase 2 on the CPU, which the others are judged by.
    pub fn reference() -> EngineArgs {
        EngineArgs {
            engine: Some(EngineKind::Reference),
            phase: None,
            device: DeviceChoice::Cpu,
            rope: None,
            kv: None,
            fast: FastArgs::default(),
            room: None,
        }
    }

    /// The engine that runs.
    pub fn kind(&self) -> EngineKind {
        self.engine.or(self.phase).unwrap_or(EngineKind::Flash)
    }

    /// How that engine will cache keys and values on a device.
    pub fn cache_type(&self, device: &ComputeDevice) -> CacheType {
        match self.kind() {
            EngineKind::Flash if device.is_cpu() => self.on_cpu().cache_type(),
            EngineKind::Flash => self.cache_on_gpu(),
            _ => self.kv.unwrap_or_default(),
        }
    }

    /// How that engine will cache keys and values on a GPU. Phase 5 rounds them as it does on the CPU, unless it is to be exact.
    pub fn cache_on_gpu(&self) -> CacheType {
        let rounds = self.kind() == EngineKind::Flash && !self.fast.exact;
        self.kv.unwrap_or(if rounds { CacheType::F16 } else { CacheType::F32 })
    }

    /// What phase 5 is told on the CPU.
    pub fn on_cpu(&self) -> CpuOptions {
        let FastArgs { exact, threads, isa, kv_memory } = self.fast;
        CpuOptions { threads: threads.map(usize::from), exact, kv: self.kv, isa, kv_bytes: kv_memory }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum RopeArg {
    Exact,
    Truncated,
}

impl From<RopeArg> for YarnRamp {
    fn from(arg: RopeArg) -> YarnRamp {
        match arg {
            RopeArg::Exact => YarnRamp::Exact,
            RopeArg::Truncated => YarnRamp::Truncated,
        }
    }
}
