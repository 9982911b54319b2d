//! Flags that select an engine.

use clap::{Args, ValueEnum};
use phase1_loading::YarnRamp;
use phase2_forward::{ComputeDevice, DeviceChoice};
use phase3_kvcache::CacheType;
use phase5_flash::CpuOptions;
use phase5_flash::cpu::Isa;

use super::kind::EngineKind;
use super::values::{cache_type, device, isa, memory_size, phase};

/// The engine, and the device that it runs on.
#[derive(Args)]
pub struct EngineArgs {
    /// The engine [default: flash]
    #[arg(long, value_enum)]
    pub engine: Option<EngineKind>,
    /// The engine, by the number of its phase.
    #[arg(long, hide = true, conflicts_with = "engine", value_parser = phase())]
    pub phase: Option<EngineKind>,
    /// The device. `software` is a software rasterizer; `auto` is a GPU that can hold the model, otherwise the CPU.
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    /// YaRN's ramp: exact, as OpenAI trained the model, or truncated, as mlx-lm and llama.cpp compute it [default: from the model's
    /// configuration, exact if it does not say]; always truncated with --engine llama.cpp.
    #[arg(long, value_enum)]
    pub rope: Option<RopeArg>,
    /// The type of the KV cache (engines cached and flash).
    #[arg(long, value_name = "TYPE", value_parser = cache_type())]
    pub kv: Option<CacheType>,
    #[command(flatten)]
    pub fast: FastArgs,
    /// The size of llama.cpp's cache, if the command can compute it.
    #[arg(skip)]
    pub cache_size: Option<CacheSize>,
}

/// The size of a cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheSize {
    /// Tokens of all sequences together.
    pub tokens: usize,
    pub sequences: usize,
}

/// Options of phase 5's computation; peers use those whose help names them.
#[derive(Args, Clone, Default)]
pub struct FastArgs {
    /// Compute in f32 throughout (engine flash, and MLX on a GPU); use an f32 cache (llama.cpp).
    #[arg(long)]
    pub exact: bool,
    /// Number of threads (engine flash on the CPU, and llama.cpp) [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// The instruction set (engine flash on the CPU) [default: the fastest of this machine]
    #[arg(long, value_name = "NAME", value_parser = isa())]
    pub isa: Option<Isa>,
    /// Memory for the KV cache of all sequences (engine flash), such as 2GiB, 512MiB, or a number of bytes [default: one full context and
    /// some short sequences]
    #[arg(long, value_name = "BYTES", value_parser = memory_size)]
    pub kv_memory: Option<u64>,
}

impl EngineArgs {
    /// Phase 2 on the CPU, the reference for the other engines.
    pub fn reference() -> EngineArgs {
        EngineArgs {
            engine: Some(EngineKind::Reference),
            phase: None,
            device: DeviceChoice::Cpu,
            rope: None,
            kv: None,
            fast: FastArgs::default(),
            cache_size: None,
        }
    }

    /// The selected engine.
    pub fn kind(&self) -> EngineKind {
        self.engine.or(self.phase).unwrap_or(EngineKind::Flash)
    }

    /// The type of the engine's KV cache on a device.
    pub fn cache_type(&self, device: &ComputeDevice) -> CacheType {
        match self.kind() {
            EngineKind::Flash if device.is_cpu() => self.on_cpu().cache_type(),
            EngineKind::Flash => self.cache_on_gpu(),
            _ => self.kv.unwrap_or_default(),
        }
    }

    /// The type of this engine's cache on a GPU. Without `--kv`, phase 5 rounds to f16 as on the CPU, except with `--exact`; phase 3 does
    /// not round.
    pub fn cache_on_gpu(&self) -> CacheType {
        let rounds = self.kind() == EngineKind::Flash && !self.fast.exact;
        self.kv.unwrap_or(if rounds { CacheType::F16 } else { CacheType::F32 })
    }

    /// The options of phase 5 on the CPU.
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
