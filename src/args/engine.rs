//! Flags that choose an engine.

use clap::{Args, ValueEnum};
use phase1_loading::YarnRamp;
use phase2_forward::{ComputeDevice, DeviceChoice};
use phase3_kvcache::CacheType;
use phase5_flash::CpuOptions;
use phase5_flash::cpu::Isa;

use super::values::{cache_type, device, isa, one_of};

/// Which engine runs, and where.
#[derive(Args)]
pub struct EngineArgs {
    /// 2 recomputes everything for every token, 3 caches keys and values, 5 is fast and the default.
    #[arg(long, value_parser = one_of::<u8>(["2", "3", "5"]))]
    pub phase: Option<u8>,
    /// Where to run. `software` is a software rasterizer; `auto` is a GPU that can hold the model, else the CPU.
    #[arg(long, default_value = "auto", value_parser = device())]
    pub device: DeviceChoice,
    /// exact as OpenAI trained it, or truncated as mlx-lm and llama.cpp compute it. If not given, what the model's
    /// configuration says, which is exact unless it says otherwise.
    #[arg(long, value_enum)]
    pub rope: Option<RopeArg>,
    /// How keys and values are cached (phases 3 and 5).
    #[arg(long, value_name = "TYPE", value_parser = cache_type())]
    pub kv: Option<CacheType>,
    #[command(flatten)]
    pub fast: FastArgs,
}

/// How phase 5 computes.
#[derive(Args, Clone, Default)]
pub struct FastArgs {
    /// Compute in f32 throughout (phase 5).
    #[arg(long)]
    pub exact: bool,
    /// Threads that compute (phase 5 on the CPU); one a physical core if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// The instruction set to compute with (phase 5 on the CPU), one of this machine's; the best if not given.
    #[arg(long, value_name = "NAME", value_parser = isa())]
    pub isa: Option<Isa>,
}

impl EngineArgs {
    /// Phase 2 on the CPU, which the others are judged by.
    pub fn reference() -> EngineArgs {
        EngineArgs { phase: Some(2), device: DeviceChoice::Cpu, rope: None, kv: None, fast: FastArgs::default() }
    }

    /// The engine that runs.
    pub fn phase(&self) -> u8 {
        self.phase.unwrap_or(5)
    }

    /// How that engine will cache keys and values on a device.
    pub fn cache_type(&self, device: &ComputeDevice) -> CacheType {
        match self.phase() {
            5 if device.is_cpu() => self.on_cpu().cache_type(),
            _ => self.kv.unwrap_or_default(),
        }
    }

    /// What phase 5 is told on the CPU.
    pub fn on_cpu(&self) -> CpuOptions {
        let FastArgs { exact, threads, isa } = self.fast;
        CpuOptions { threads: threads.map(usize::from), exact, kv: self.kv, isa }
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
