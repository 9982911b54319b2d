//! Collects what this machine has, and the memory that a model needs on it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use peers::{Installation, Peer};
use phase1_loading::write::TensorPlan;
use phase1_loading::{Checkpoint, GptOssConfig};
use phase2_forward::{AdapterReport, ComputeDevice};
use phase3_kvcache::{CacheType, PREFILL_CHUNK};
use phase4_profiling::{EngineSetup, HostMemory, MemoryKind, MemoryPlan, PlannedWeight, Processors};
use phase5_flash::cpu::Isa;
use synthetic::SyntheticModel;

use crate::args::{Doctor, EngineArgs, EngineKind};
use crate::found;
use crate::model::{self, USUAL_CONTEXT};
use crate::peer;

/// All findings.
pub(super) struct Findings {
    pub processors: Processors,
    /// Number of threads of phase 5 on the CPU.
    pub threads: usize,
    /// Instruction sets that phase 5's CPU kernels support here; the first one is used by default.
    pub kernels: Vec<&'static str>,
    pub memory: HostMemory,
    pub adapters: Vec<AdapterReport>,
    pub models: Vec<FoundModel>,
    /// MLX and llama.cpp: the Python with their packages, or why there is none.
    pub peers: Vec<(Peer, Result<PathBuf, String>)>,
    pub plan: Plan,
    pub engine: EngineKind,
    /// The phase of the engine.
    pub phase: u8,
    /// The device and the reason for it, or why the engine does not run.
    pub choice: Result<(String, String), String>,
}

/// A model that another program has downloaded.
pub(super) struct FoundModel {
    pub name: &'static str,
    pub path: PathBuf,
    /// Bytes of its weights, or why it cannot be opened.
    pub opened: Result<u64, String>,
}

/// The memory of a model with a conversation of usual length.
pub(super) struct Plan {
    pub model: String,
    /// Whether the plan is for gpt-oss-20b's shape, because no model was given or found.
    pub is_assumed: bool,
    /// Tokens of the conversation.
    pub context: usize,
    /// Bytes of the process's anonymous memory.
    pub own: u64,
    /// Bytes of pages of the model file.
    pub mapped: u64,
    pub on_cpu: Option<Fit>,
    /// Bytes on a GPU.
    pub on_gpu: u64,
    /// Free bytes that a GPU needs to be chosen by `--device auto`: for phase 5 with a cache for the model's whole context or of the size
    /// that `--kv-memory` gives, for other phases as `on_gpu`.
    pub for_auto: u64,
}

/// Whether a model fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Yes,
    /// Anonymous memory fits, but not all pages of the file, so that some are read from the disk repeatedly.
    FromDisk,
    No,
}

impl Plan {
    /// Whether the model fits on an adapter; `None` if its driver does not report its memory.
    pub fn fits(&self, adapter: &AdapterReport) -> Option<bool> {
        adapter.memory.map(|memory| self.on_gpu <= memory)
    }
}

impl Findings {
    /// # Errors
    /// The model cannot be opened, or the engine is a peer.
    pub fn gather(args: &Doctor) -> Result<Findings> {
        let engine = &args.engine;
        let kind = engine.kind();
        let Some(phase) = kind.phase() else {
            bail!(
                "doctor plans only for gptoss's engines; without --engine it shows whether {} is installed",
                kind.title()
            );
        };
        let models = found_models();
        let first = models.iter().find(|model| model.opened.is_ok()).map(|model| Path::new(model.name));
        let subject = match args.model.as_deref().or(first) {
            Some(name) => Subject::open(name, &args.engine)?,
            None => Subject::assumed(),
        };
        let memory = HostMemory::of_this_machine();
        let needs = model::planned_needs(subject.config(), engine, |setup| subject.plan(setup));
        let plan = subject.at_usual_context(engine, phase, needs.bytes, &memory);
        let choice = match ComputeDevice::find(engine.device, needs) {
            Ok(device) => Ok((device.name, device.reason)),
            Err(error) => Err(error.to_string()),
        };
        Ok(Findings {
            processors: Processors::of_this_machine(),
            threads: engine.on_cpu().thread_count(),
            kernels: Isa::all().into_iter().map(Isa::name).collect(),
            memory,
            adapters: ComputeDevice::adapters(),
            models,
            peers: found_peers(),
            plan,
            engine: kind,
            phase,
            choice,
        })
    }

    /// Adapters that are hardware GPUs.
    pub fn gpus(&self) -> impl Iterator<Item = &AdapterReport> {
        self.adapters.iter().filter(|adapter| !["software", "other"].contains(&adapter.kind))
    }
}

fn found_models() -> Vec<FoundModel> {
    let open = |(name, path): (&'static str, PathBuf)| {
        let opened = model::open(&path).map(|checkpoint| checkpoint.weight_bytes());
        FoundModel { name, path, opened: opened.map_err(|error| format!("{error:#}")) }
    };
    found::models().into_iter().map(open).collect()
}

fn found_peers() -> Vec<(Peer, Result<PathBuf, String>)> {
    let find = |peer| {
        let python = peer::folder().and_then(|folder| Ok(Installation::find(peer, &folder)?.python));
        (peer, python.map_err(|error| format!("{error:#}")))
    };
    Peer::ALL.into_iter().map(find).collect()
}

/// The model to plan for.
enum Subject {
    Opened {
        name: String,
        checkpoint: Box<Checkpoint>,
    },
    /// gpt-oss-20b's shape in a GGUF file, if no model was given or found.
    Assumed {
        config: GptOssConfig,
        tensors: Vec<TensorPlan>,
    },
}

impl Subject {
    fn open(name: &Path, engine: &EngineArgs) -> Result<Subject> {
        let checkpoint = Box::new(model::open_with(name, engine)?);
        Ok(Subject::Opened { name: name.display().to_string(), checkpoint })
    }

    fn assumed() -> Subject {
        let (config, tensors) = SyntheticModel::preset("20b").expect("a preset").tensors();
        Subject::Assumed { config, tensors }
    }

    fn config(&self) -> &GptOssConfig {
        match self {
            Subject::Opened { checkpoint, .. } => &checkpoint.config,
            Subject::Assumed { config, .. } => config,
        }
    }

    fn plan(&self, setup: EngineSetup) -> MemoryPlan {
        match self {
            Subject::Opened { checkpoint, .. } => MemoryPlan::new(checkpoint, setup),
            Subject::Assumed { config, tensors } => {
                let weights = tensors.iter().map(|tensor| PlannedWeight {
                    name: &tensor.name,
                    format: tensor.format,
                    shape: &tensor.shape,
                    is_contiguous: true,
                });
                MemoryPlan::of_weights(config, weights, setup)
            }
        }
    }

    fn at_usual_context(&self, engine: &EngineArgs, phase: u8, for_auto: u64, memory: &HostMemory) -> Plan {
        let cpu = ComputeDevice::cpu("planned for");
        let context = self.config().context_length.min(USUAL_CONTEXT);
        let shortlist = match self {
            Subject::Opened { checkpoint, .. } => model::shortlist_bytes(checkpoint, &cpu, engine).unwrap_or(0),
            // A shortlist (4-bit copy of the head) takes a few hundred megabytes. It is left out: its size depends on a real model's head.
            Subject::Assumed { .. } => 0,
        };
        let setup = |on_gpu, cache: CacheType| EngineSetup {
            phase,
            on_gpu,
            cache,
            context,
            pool: None,
            chunk: context.min(PREFILL_CHUNK),
            shortlist: if on_gpu { 0 } else { shortlist },
        };
        let on_cpu = self.plan(setup(false, engine.cache_type(&cpu)));
        let (own, mapped) = (on_cpu.at(MemoryKind::Host), on_cpu.at(MemoryKind::Mapped));
        Plan {
            model: match self {
                Subject::Opened { name, .. } => name.clone(),
                Subject::Assumed { .. } => "gpt-oss-20b".into(),
            },
            is_assumed: matches!(self, Subject::Assumed { .. }),
            context,
            own,
            mapped,
            on_cpu: memory.most().map(|most| fit(own, mapped, most)),
            on_gpu: self.plan(setup(true, engine.cache_on_gpu())).at(MemoryKind::Device),
            for_auto,
        }
    }
}

fn fit(own: u64, mapped: u64, most: u64) -> Fit {
    match () {
        () if own.saturating_add(mapped) <= most => Fit::Yes,
        () if own <= most => Fit::FromDisk,
        () => Fit::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_pages_may_exceed_free_memory() {
        assert_eq!(fit(1, 12, 13), Fit::Yes);
        assert_eq!(fit(1, 12, 12), Fit::FromDisk);
        assert_eq!(fit(12, 0, 12), Fit::Yes);
        assert_eq!(fit(13, 0, 12), Fit::No);
        assert_eq!(fit(u64::MAX, u64::MAX, 12), Fit::No);
    }
}
