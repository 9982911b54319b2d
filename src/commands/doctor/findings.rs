//! What this machine has, and what a model takes on it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use peers::{Installation, Peer};
use phase1_loading::write::TensorPlan;
use phase1_loading::{Checkpoint, GptOssConfig};
use phase2_forward::{AdapterReport, ComputeDevice};
use phase3_kvcache::{CacheType, PREFILL_CHUNK};
use phase4_profiling::{HostMemory, MemoryPlan, Place, PlannedWeight, Processors, Setting};
use phase5_flash::cpu::Isa;
use synthetic::SyntheticModel;

use crate::args::{Doctor, EngineArgs, EngineKind};
use crate::found;
use crate::peer;
use crate::session::{self, USUAL_CONTEXT};

/// All that was found out.
pub(super) struct Findings {
    pub processors: Processors,
    /// Threads that phase 5 computes with on the CPU.
    pub threads: usize,
    /// Instruction sets that its kernels can use here, the one that is used first.
    pub kernels: Vec<&'static str>,
    pub memory: HostMemory,
    pub adapters: Vec<AdapterReport>,
    pub models: Vec<FoundModel>,
    /// MLX and llama.cpp: the Python that has their packages, or why there is none.
    pub peers: Vec<(Peer, Result<PathBuf, String>)>,
    pub plan: Plan,
    pub engine: EngineKind,
    /// The phase that adds the engine.
    pub phase: u8,
    /// Where it runs, and why there; or why it does not run.
    pub choice: Result<(String, String), String>,
}

/// A model that another program has fetched.
pub(super) struct FoundModel {
    pub name: &'static str,
    pub path: PathBuf,
    /// Bytes of its weights, or why it cannot be opened.
    pub opened: Result<u64, String>,
}

/// What a model takes with a conversation of usual length.
pub(super) struct Plan {
    pub model: String,
    /// Whether no such model is there, and its shape alone was planned for.
    pub is_assumed: bool,
    /// Tokens of the conversation.
    pub context: usize,
    /// Bytes of the process's own.
    pub own: u64,
    /// Bytes of the model file's pages.
    pub mapped: u64,
    pub on_cpu: Option<Fit>,
    /// Bytes on a GPU.
    pub on_gpu: u64,
    /// Bytes on a GPU for which `--device auto` chooses it: with a cache for the model's whole context.
    pub for_auto: u64,
}

/// Whether a model fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Yes,
    /// Its own memory fits and all pages of its file do not, so that some are read from the disk again and again.
    FromDisk,
    No,
}

impl Plan {
    /// Whether the model fits on an adapter; `None` where its driver does not say.
    pub fn fits(&self, adapter: &AdapterReport) -> Option<bool> {
        adapter.memory.map(|memory| self.on_gpu <= memory)
    }
}

impl Findings {
    /// # Errors
    /// A model that cannot be opened, or an engine that is not ours.
    pub fn gather(args: &Doctor) -> Result<Findings> {
        let engine = &args.engine;
        let kind = engine.kind();
        let Some(phase) = kind.phase() else {
            bail!("doctor plans for our own engines; without --engine it says whether {} is installed", kind.title());
        };
        let models = found_models();
        let first = models.iter().find(|model| model.opened.is_ok()).map(|model| Path::new(model.name));
        let subject = match args.model.as_deref().or(first) {
            Some(name) => Subject::open(name, &args.engine)?,
            None => Subject::assumed(),
        };
        let memory = HostMemory::of_this_machine();
        let needs = session::planned_needs(subject.config(), engine, |setting| subject.plan(setting));
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

    /// Adapters that are GPUs, and no software.
    pub fn gpus(&self) -> impl Iterator<Item = &AdapterReport> {
        self.adapters.iter().filter(|adapter| !["software", "other"].contains(&adapter.kind))
    }
}

fn found_models() -> Vec<FoundModel> {
    let open = |(name, path): (&'static str, PathBuf)| {
        let opened = session::open(&path).map(|checkpoint| checkpoint.weight_bytes());
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

/// The model that is planned for.
enum Subject {
    Opened {
        name: String,
        checkpoint: Box<Checkpoint>,
    },
    /// gpt-oss-20b as a GGUF file holds it, if there is none.
    Assumed {
        config: GptOssConfig,
        tensors: Vec<TensorPlan>,
    },
}

impl Subject {
    fn open(name: &Path, engine: &EngineArgs) -> Result<Subject> {
        let checkpoint = Box::new(session::open_with(name, engine)?);
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

    fn plan(&self, setting: Setting) -> MemoryPlan {
        match self {
            Subject::Opened { checkpoint, .. } => MemoryPlan::new(checkpoint, setting),
            Subject::Assumed { config, tensors } => {
                let weights = tensors.iter().map(|tensor| PlannedWeight {
                    name: &tensor.name,
                    format: tensor.format,
                    shape: &tensor.shape,
                    is_contiguous: true,
                });
                MemoryPlan::of_weights(config, weights, setting)
            }
        }
    }

    fn at_usual_context(&self, engine: &EngineArgs, phase: u8, for_auto: u64, memory: &HostMemory) -> Plan {
        let cpu = ComputeDevice::cpu("planned for");
        let context = self.config().context_length.min(USUAL_CONTEXT);
        let screen = match self {
            Subject::Opened { checkpoint, .. } => session::shortlist_bytes(checkpoint, &cpu, engine).unwrap_or(0),
            // A few hundred megabytes, which need a model's head.
            Subject::Assumed { .. } => 0,
        };
        let setting = |on_gpu, cache: CacheType| Setting {
            phase,
            on_gpu,
            cache,
            context,
            pool: None,
            chunk: context.min(PREFILL_CHUNK),
            screen: if on_gpu { 0 } else { screen },
        };
        let on_cpu = self.plan(setting(false, engine.cache_type(&cpu)));
        let (own, mapped) = (on_cpu.at(Place::Host), on_cpu.at(Place::Mapped));
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
            on_gpu: self.plan(setting(true, engine.cache_on_gpu())).at(Place::Device),
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
    fn pages_of_a_file_need_not_fit() {
        assert_eq!(fit(1, 12, 13), Fit::Yes);
        assert_eq!(fit(1, 12, 12), Fit::FromDisk);
        assert_eq!(fit(12, 0, 12), Fit::Yes);
        assert_eq!(fit(13, 0, 12), Fit::No);
        assert_eq!(fit(u64::MAX, u64::MAX, 12), Fit::No);
    }
}
