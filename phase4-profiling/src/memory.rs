//! What lives where: predicted from a checkpoint's header before anything is loaded, and observed afterwards.

use burn::tensor::Device;
use phase1_loading::{AttentionKind, Checkpoint, Format, GptOssConfig};
use phase3_kvcache::{CacheLayout, CacheType};
use serde::Serialize;

use crate::process;

/// Where bytes live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Pages of the model file: in memory once touched, and the first that the system gives up again.
    Mapped,
    /// The process's own memory.
    Host,
    /// A GPU's memory; on Apple machines a part of the one memory.
    Device,
}

/// One thing that takes memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    pub what: String,
    pub place: Place,
    pub bytes: u64,
    pub stays: Residency,
}

/// How much of a part is in memory, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    Always,
    /// Only while a step computes.
    DuringSteps,
    /// Only around the rows that were looked up.
    WhereTouched,
}

/// What decides how much memory an engine takes.
#[derive(Clone, Copy, Debug)]
pub struct EngineSetup {
    pub phase: u8,
    pub on_gpu: bool,
    pub cache: CacheType,
    /// Tokens of the one sequence.
    pub context: usize,
    /// Bytes of the cache of all sequences, where the engine takes it as a whole when it starts; else it grows with the sequence.
    pub pool: Option<u64>,
    /// New tokens of the largest step.
    pub chunk: usize,
    /// Bytes of the copy of the head from which the engine shortlists tokens.
    pub shortlist: u64,
}

/// A weight, as far as memory is concerned.
#[derive(Clone, Copy, Debug)]
pub struct PlannedWeight<'a> {
    /// The canonical one, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    pub format: Format,
    /// Row-major; at least one dimension.
    pub shape: &'a [usize],
    /// Whether the file has its packed rows one after another.
    pub is_contiguous: bool,
}

impl PlannedWeight<'_> {
    fn row_len(&self) -> usize {
        *self.shape.last().expect("a tensor has a dimension")
    }

    fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// In the file.
    fn bytes(&self) -> u64 {
        (self.format.row_bytes(self.row_len()) * self.rows()) as u64
    }
}

/// The parts of a model in use, the largest first.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryPlan {
    pub parts: Vec<Part>,
    /// Bytes that looking up one row per token brings into memory.
    looked_up: u64,
}

/// What Linux maps of a file around a page that is touched.
const FAULT_AROUND: u64 = 64 << 10;

impl MemoryPlan {
    pub fn new(checkpoint: &Checkpoint, setup: EngineSetup) -> MemoryPlan {
        let weights = checkpoint.tensors.iter().map(|(name, tensor)| PlannedWeight {
            name,
            format: tensor.format,
            shape: &tensor.shape,
            is_contiguous: tensor.is_contiguous(),
        });
        MemoryPlan::of_weights(&checkpoint.config, weights, setup)
    }

    /// Of a model that need not be there.
    pub fn of_weights<'a>(
        config: &GptOssConfig,
        weights: impl IntoIterator<Item = PlannedWeight<'a>>,
        setup: EngineSetup,
    ) -> MemoryPlan {
        let computing = if setup.on_gpu { Place::Device } else { Place::Host };
        let mut parts: Vec<Part> = Vec::new();
        let mut add = |what: String, place: Place, stays: Residency, bytes: u64| match parts
            .iter_mut()
            .find(|part| part.what == what && part.place == place)
        {
            Some(part) => part.bytes += bytes,
            None => parts.push(Part { what, place, bytes, stays }),
        };
        for weight in weights {
            let elements = (weight.rows() * weight.row_len()) as u64;
            let is_matrix = weight.name.ends_with("weight") && weight.shape.len() > 1;
            match () {
                // Phase 5 has it on the GPU; everybody else looks its rows up in the file.
                () if weight.name.starts_with("token_embd") && !(setup.on_gpu && setup.phase == 5) => {
                    add("embedding".into(), Place::Mapped, Residency::WhereTouched, weight.bytes());
                }
                () if is_matrix => {
                    let (what, place, bytes) = matrix(&weight, setup);
                    add(what, place, Residency::Always, bytes);
                }
                () => add("norms, biases, sinks".into(), computing, Residency::Always, 4 * elements),
            }
        }
        if let Some(pool) = setup.pool {
            add(format!("cache {}, all sequences", setup.cache), computing, Residency::Always, pool);
        } else if setup.phase > 2 {
            let layout = CacheLayout::new(config, setup.cache);
            for kind in [AttentionKind::Full, AttentionKind::Sliding] {
                let name = match kind {
                    AttentionKind::Full => "full",
                    AttentionKind::Sliding => "sliding",
                };
                let bytes = layout.reserved_bytes(kind, setup.context);
                add(format!("cache {}, {name} layers", setup.cache), computing, Residency::Always, bytes);
            }
        }
        if setup.shortlist > 0 {
            add("copy of the head for shortlists".into(), computing, Residency::Always, setup.shortlist);
        }
        add("scratch".into(), computing, Residency::DuringSteps, scratch_bytes(config, setup));
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        MemoryPlan { parts, looked_up: setup.context as u64 * FAULT_AROUND }
    }

    /// Bytes in memory in one place between steps, or with `during_steps` at their widest moment.
    pub fn resident(&self, place: Place, during_steps: bool) -> u64 {
        let resident = |part: &Part| match part.stays {
            Residency::Always => part.bytes,
            Residency::DuringSteps => part.bytes * u64::from(during_steps),
            Residency::WhereTouched => part.bytes.min(self.looked_up),
        };
        self.parts.iter().filter(|part| part.place == place).map(resident).sum()
    }

    /// Bytes in one place.
    pub fn at(&self, place: Place) -> u64 {
        self.parts.iter().filter(|part| part.place == place).map(|part| part.bytes).sum()
    }
}

/// What a matrix is called, where it lives, and how many bytes it takes there. Formats that engines do not multiply as they are become
/// F32; phases 2 and 3 on the CPU unpack row by row instead, and phase 5 copies there what does not lie in one piece.
fn matrix(weight: &PlannedWeight<'_>, setup: EngineSetup) -> (String, Place, u64) {
    let name = weight.format.name();
    let kept = if Format::WRITTEN.contains(&weight.format) { weight.format } else { Format::F32 };
    let bytes = (kept.row_bytes(weight.row_len()) * weight.rows()) as u64;
    match () {
        () if setup.phase < 5 && !setup.on_gpu => (format!("weights {name}"), Place::Mapped, weight.bytes()),
        () if kept != weight.format => {
            let place = if setup.on_gpu { Place::Device } else { Place::Host };
            (format!("weights {name} as F32"), place, bytes)
        }
        () if setup.on_gpu => (format!("weights {name}"), Place::Device, bytes),
        () if weight.is_contiguous => (format!("weights {name}"), Place::Mapped, bytes),
        () => (format!("weights {name}, copied"), Place::Host, bytes),
    }
}

/// The widest moment of a forward pass: attention's scores, which phase 5 never has at once, or the experts' rows, or the logits.
fn scratch_bytes(config: &GptOssConfig, setup: EngineSetup) -> u64 {
    let (n, keys) = (setup.chunk, setup.context);
    let stream = 3 * n * config.hidden;
    let scores = if setup.phase < 5 { 3 * config.heads * n * (keys + 1) } else { 0 };
    let experts = n * config.experts_per_token * (2 * config.hidden + 4 * config.expert_width);
    let logits = 2 * config.vocab;
    4 * (stream + scores.max(experts).max(logits)) as u64
}

/// What the system says of this process and a device, in bytes. `None` where it does not say.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Observed {
    /// Resident now: own memory and touched pages of files.
    pub resident: Option<u64>,
    /// The most that was ever resident.
    pub peak_resident: Option<u64>,
    /// Resident now and no file's.
    pub anonymous: Option<u64>,
    /// Live allocations on the device.
    pub device_in_use: Option<u64>,
    /// What the device's pools hold, free or not: the difference is the allocator's slack.
    pub device_reserved: Option<u64>,
}

impl Observed {
    pub fn now(device: &Device) -> Observed {
        let pools = device.memory_pool_usage();
        Observed {
            resident: process::resident_bytes(),
            peak_resident: process::peak_resident_bytes(),
            anonymous: process::anonymous_resident_bytes(),
            device_in_use: pools.as_ref().map(|pools| pools.bytes_in_use),
            device_reserved: pools.as_ref().map(|pools| pools.bytes_reserved),
        }
    }
}

/// The GPU's share of a 16 GB Apple machine's memory by default.
pub const APPLE_16GB_GPU_BUDGET: u64 = 10_700_000_000;
