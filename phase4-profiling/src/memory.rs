//! Memory plans: how much of each kind of memory a model will take, predicted from its header before it is loaded. Also reads how much is
//! in use afterwards.

use burn::tensor::Device;
use phase1_loading::{AttentionKind, Checkpoint, Format, GptOssConfig};
use phase3_kvcache::{CacheLayout, CacheType};
use serde::Serialize;

use crate::process;

/// The kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// Pages of the mapped model file: in memory once they are read, and the first to be evicted by the system.
    Mapped,
    /// The process's own (anonymous) memory.
    Host,
    /// A GPU's memory; on Apple machines, a part of the shared memory.
    Device,
}

/// A part of the memory that a model takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    pub what: String,
    pub place: MemoryKind,
    pub bytes: u64,
    pub stays: Residency,
}

/// When a part is resident, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    Always,
    /// Only while a step is computed.
    DuringSteps,
    /// Only pages around rows that were looked up.
    WhereTouched,
}

/// The settings that determine an engine's memory.
#[derive(Clone, Copy, Debug)]
pub struct EngineSetup {
    pub phase: u8,
    pub on_gpu: bool,
    pub cache: CacheType,
    /// Length in tokens of the one sequence that the plan assumes.
    pub context: usize,
    /// Bytes of the cache of all sequences, if the engine allocates it at the start; otherwise the cache grows with the sequence.
    pub pool: Option<u64>,
    /// New tokens in the largest step.
    pub chunk: usize,
    /// Bytes of the 4-bit copy of the head from which the engine shortlists tokens; 0 without one.
    pub shortlist: u64,
}

/// The properties of a weight that determine its memory.
#[derive(Clone, Copy, Debug)]
pub struct PlannedWeight<'a> {
    /// Canonical name, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    pub format: Format,
    /// Row-major; at least one dimension.
    pub shape: &'a [usize],
    /// Whether the packed rows lie one after another in the file.
    pub is_contiguous: bool,
}

impl PlannedWeight<'_> {
    fn row_len(&self) -> usize {
        *self.shape.last().expect("a tensor has a dimension")
    }

    fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// Bytes in the file.
    fn bytes(&self) -> u64 {
        (self.format.row_bytes(self.row_len()) * self.rows()) as u64
    }
}

/// The memory of a model in use, the largest part first.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryPlan {
    pub parts: Vec<Part>,
    /// Bytes of the embedding that become resident if each token of the context looks up another row.
    looked_up: u64,
}

/// Bytes of a file that Linux maps when one of its pages is read: that page and its neighbours.
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

    /// The plan of a model from a list of its weights. No file needs to exist.
    pub fn of_weights<'a>(
        config: &GptOssConfig,
        weights: impl IntoIterator<Item = PlannedWeight<'a>>,
        setup: EngineSetup,
    ) -> MemoryPlan {
        let computing = if setup.on_gpu { MemoryKind::Device } else { MemoryKind::Host };
        let mut parts: Vec<Part> = Vec::new();
        let mut add = |what: String, place: MemoryKind, stays: Residency, bytes: u64| match parts
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
                // Phase 5 uploads the embedding to the GPU; every other engine looks its rows up in the file.
                () if weight.name.starts_with("token_embd") && !(setup.on_gpu && setup.phase == 5) => {
                    add("embedding".into(), MemoryKind::Mapped, Residency::WhereTouched, weight.bytes());
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

    /// Resident bytes in one kind of memory between steps, or with `during_steps` at the peak of a step.
    pub fn resident(&self, place: MemoryKind, during_steps: bool) -> u64 {
        let resident = |part: &Part| match part.stays {
            Residency::Always => part.bytes,
            Residency::DuringSteps => part.bytes * u64::from(during_steps),
            Residency::WhereTouched => part.bytes.min(self.looked_up),
        };
        self.parts.iter().filter(|part| part.place == place).map(resident).sum()
    }

    /// Bytes of all parts in one kind of memory, whether they are resident or not.
    pub fn at(&self, place: MemoryKind) -> u64 {
        self.parts.iter().filter(|part| part.place == place).map(|part| part.bytes).sum()
    }
}

/// Name, kind of memory and size in bytes of a matrix. Phases 2 and 3 on the CPU read it from the mapped file and unpack it row by row.
/// Otherwise it is converted to F32 if kernels do not support its format, and phase 5 on the CPU copies it if its rows are not contiguous
/// in the file.
fn matrix(weight: &PlannedWeight<'_>, setup: EngineSetup) -> (String, MemoryKind, u64) {
    let name = weight.format.name();
    let kept = if Format::WRITTEN.contains(&weight.format) { weight.format } else { Format::F32 };
    let bytes = (kept.row_bytes(weight.row_len()) * weight.rows()) as u64;
    match () {
        () if setup.phase < 5 && !setup.on_gpu => (format!("weights {name}"), MemoryKind::Mapped, weight.bytes()),
        () if kept != weight.format => {
            let place = if setup.on_gpu { MemoryKind::Device } else { MemoryKind::Host };
            (format!("weights {name} as F32"), place, bytes)
        }
        () if setup.on_gpu => (format!("weights {name}"), MemoryKind::Device, bytes),
        () if weight.is_contiguous => (format!("weights {name}"), MemoryKind::Mapped, bytes),
        () => (format!("weights {name}, copied"), MemoryKind::Host, bytes),
    }
}

/// Bytes of temporary values at the peak of a forward pass: the residual stream and the largest of attention scores (which phase 5 never
/// materializes), the experts' activations, and the logits.
fn scratch_bytes(config: &GptOssConfig, setup: EngineSetup) -> u64 {
    let (n, keys) = (setup.chunk, setup.context);
    let stream = 3 * n * config.hidden;
    let scores = if setup.phase < 5 { 3 * config.heads * n * (keys + 1) } else { 0 };
    let experts = n * config.experts_per_token * (2 * config.hidden + 4 * config.expert_width);
    let logits = 2 * config.vocab;
    4 * (stream + scores.max(experts).max(logits)) as u64
}

/// Memory of this process and of a device in bytes, as the system reports it; `None` if it does not report a value.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Observed {
    /// Resident memory now: anonymous memory and file pages.
    pub resident: Option<u64>,
    /// Peak resident memory.
    pub peak_resident: Option<u64>,
    /// Resident anonymous memory now.
    pub anonymous: Option<u64>,
    /// Allocations in use on the device.
    pub device_in_use: Option<u64>,
    /// Memory reserved by the device's pools, in use or free.
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

/// Bytes of memory that the GPU of an Apple machine with 16 GB may use by default.
pub const APPLE_16GB_GPU_BUDGET: u64 = 10_700_000_000;
