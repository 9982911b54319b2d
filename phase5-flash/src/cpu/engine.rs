//! The engine: sequences and their pages, and the threads that compute them. A step is computed when it is submitted.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use bytes::Bytes;
use cpu_kernels::{Isa, Pool, Screen};
use phase1_loading::{AttentionKind, Checkpoint, GptOssConfig};
use phase2_forward::plain::{PlainSteps, check_rewind, tokens_of};
use phase2_forward::{
    BadRequest, Capacity, Engine, EngineError, Inspect, NoProbe, Outcome, Probe, Rope, SequenceId, Snapshot, Snapshots,
    Ticket, Work, check_work,
};
use phase3_kvcache::{CacheType, ReadCache};

use super::cache::{Cache, PageList};
use super::forward::Forward;
use super::model::{CpuLoadError, Model};
use super::part::{NewTokens, Part};
use super::scratch::Scratch;
use super::threads;
use crate::pages::{POSITIONS, Pages, REWIND, Reuse};

/// The engine's name in its snapshots.
const NAME: &str = "phase 5 on the CPU";
/// Layers of a kind share their lists of pages.
const KINDS: [AttentionKind; 2] = [AttentionKind::Full, AttentionKind::Sliding];

/// How to compute; the default is fast.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// One per physical core if not given, and never more than the process has processors.
    pub threads: Option<usize>,
    /// f32 throughout, as the golden values were made.
    pub exact: bool,
    /// The best of this machine if not given.
    pub isa: Option<Isa>,
    /// f16 if not given, f32 where `exact`.
    pub kv: Option<CacheType>,
    /// Bytes of the KV cache, in memory only where they have been written; if not given, room for one full context and some short
    /// sequences, or what half of the free memory holds.
    pub kv_bytes: Option<u64>,
}

impl CpuOptions {
    /// How keys and values are stored.
    pub fn cache_type(&self) -> CacheType {
        self.kv.unwrap_or(if self.exact { CacheType::F32 } else { CacheType::F16 })
    }

    /// Threads that compute on this machine.
    pub fn thread_count(&self) -> usize {
        threads::count(self.threads)
    }
}

/// Computes batches on the CPU, from the pages of the mapped file.
pub struct CpuEngine {
    pub(super) forward: Forward,
    pages: Pages,
    cache: Cache,
    pub(super) scratch: Scratch,
    /// Of the head, and greedy steps before it was made.
    pub(super) shortlist: Option<Arc<Screen>>,
    pub(super) greedy_steps: usize,
    /// What sequences drew last, if that may be fed.
    drawn: HashMap<SequenceId, u32>,
    steps: PlainSteps,
}

impl CpuEngine {
    /// Reads the scales of MXFP4 weights, and brings their pages of the file in; others come in when they are first used.
    ///
    /// # Errors
    /// A scale byte of 255, a shape that the kernels do not take, or a cache that the system has no addresses for.
    pub fn load(checkpoint: &Checkpoint, options: CpuOptions) -> Result<CpuEngine, CpuLoadError> {
        let config = checkpoint.config.clone();
        let kv = options.cache_type();
        // The kernels take vectors of 16 values.
        let unit = kv.granule().max(16);
        if !config.head_dim.is_multiple_of(unit) {
            let (path, head_dim) = (checkpoint.path.clone(), config.head_dim);
            return Err(CpuLoadError::HeadDim { path, head_dim, unit, kv: kv.name() });
        }
        let model = Model::load(checkpoint)?;
        let page = Cache::bytes_per_page(&config, kv);
        let free = available_memory().map(|bytes| bytes / 2);
        // A pool cannot be empty. One that is too small for any sequence says so at the first step.
        let count = Pages::count(config.context_length, page as u64, options.kv_bytes, free).max(1);
        let cache = Cache::new(&config, kv, count).map_err(|source| {
            let (path, bytes) = (checkpoint.path.clone(), (page as u64).saturating_mul(count as u64));
            CpuLoadError::Cache { path, bytes, source }
        })?;
        touch_in_background(model.in_order_of_use());
        let forward = Forward {
            rope: Rope::new(&config.rope, config.head_dim),
            model,
            pool: Pool::new(options.thread_count()),
            isa: options.isa.unwrap_or_else(Isa::best),
            exact: options.exact,
            config,
        };
        let config = &forward.config;
        Ok(CpuEngine {
            pages: Pages::new(count, config.sliding_window, &config.attention, Reuse::AsLeft),
            cache,
            scratch: Scratch::default(),
            shortlist: None,
            greedy_steps: 0,
            drawn: HashMap::new(),
            steps: PlainSteps::default(),
            forward,
        })
    }

    pub fn threads(&self) -> usize {
        self.forward.pool.threads()
    }

    pub fn isa(&self) -> Isa {
        self.forward.isa
    }

    fn check_rewind(&self, sequence: SequenceId, length: usize) -> Result<(), BadRequest> {
        let known = self.pages.contains(sequence).then(|| self.pages.length(sequence));
        check_rewind(sequence, known, length, || self.pages.reaches_back(sequence, length))
    }
}

impl Engine for CpuEngine {
    fn config(&self) -> &GptOssConfig {
        &self.forward.config
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            pages_total: self.pages.total(),
            pages_free: self.pages.free(),
            positions_per_page: POSITIONS,
            rewind: REWIND,
            ..Capacity::UNBOUNDED
        }
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.pages.length(sequence)
    }

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        self.steps.check_room()?;
        let outcomes = self.inspect(work, &mut NoProbe)?;
        Ok(self.steps.push(outcomes))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        Ok(self.steps.take(ticket)?)
    }

    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), EngineError> {
        if self.pages.contains(to) {
            return Err(BadRequest::SequenceExists(to).into());
        }
        self.check_rewind(from, length)?;
        self.pages.fork(from, to, length);
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError> {
        self.check_rewind(sequence, length)?;
        self.pages.truncate(sequence, length);
        self.drawn.remove(&sequence);
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.pages.release(sequence);
        self.drawn.remove(&sequence);
    }

    fn snapshots(&mut self) -> Option<&mut dyn Snapshots> {
        Some(self)
    }
}

impl Inspect for CpuEngine {
    fn inspect(&mut self, work: &[Work<'_>], probe: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError> {
        check_work(self, work)?;
        let inputs = tokens_of(work, |sequence| self.drawn.get(&sequence).copied())?;
        let reached = |(item, input): (&Work<'_>, &Vec<u32>)| (item.sequence, self.length(item.sequence) + input.len());
        let lengths: Vec<(SequenceId, usize)> = work.iter().zip(&inputs).map(reached).collect();
        let room = self.pages.extend(&lengths)?;
        self.cache.copy(&room.copies);

        let mut first = 0;
        let new_tokens = |(item, input): (&Work<'_>, &Vec<u32>)| {
            first += input.len();
            NewTokens { first: first - input.len(), count: input.len(), start: self.length(item.sequence) }
        };
        let new: Vec<NewTokens> = work.iter().zip(&inputs).map(new_tokens).collect();
        let computed = catch_unwind(AssertUnwindSafe(|| {
            let part = |(item, &tokens): (&Work<'_>, &NewTokens)| {
                let [full, sliding] = KINDS.map(|kind| PageList::of(&self.pages, item.sequence, kind));
                Part { tokens, full, sliding }
            };
            let parts: Vec<Part<'_>> = work.iter().zip(&new).map(part).collect();
            self.forward.layers(&mut self.cache, &mut self.scratch, &inputs.concat(), &parts, probe);
            self.outcomes(work, &new, probe)
        }));
        let outcomes = computed.unwrap_or_else(|panic| {
            // The sequences are as they were; what was written behind their ends is written again.
            lengths.iter().for_each(|&(sequence, _)| self.pages.retract(sequence));
            resume_unwind(panic)
        });
        for (&(sequence, length), outcome) in lengths.iter().zip(&outcomes) {
            self.pages.advance(sequence, length);
            match outcome.drawn_id() {
                Some(token) => self.drawn.insert(sequence, token),
                None => self.drawn.remove(&sequence),
            };
        }
        Ok(outcomes)
    }
}

impl Snapshots for CpuEngine {
    fn save(&mut self, sequence: SequenceId) -> Result<Snapshot, EngineError> {
        if !self.pages.contains(sequence) {
            return Err(BadRequest::UnknownSequence(sequence).into());
        }
        let length = self.length(sequence);
        let items = self.cache.save(|kind| PageList::of(&self.pages, sequence, kind), length);
        Ok(Snapshot { engine: NAME.into(), length, items })
    }

    fn restore(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError> {
        let length = snapshot.length;
        let sliding = self.cache.saved_pages(&snapshot.items, AttentionKind::Sliding);
        let count = |kind| self.pages.count_held(length, kind, sliding);
        snapshot.check(NAME, self.forward.config.context_length, |_| self.cache.saved_bytes(count))?;
        let counts = KINDS.map(count);
        // Every page that is new is written whole.
        self.pages.replace(sequence, length, |kind| counts[usize::from(kind == AttentionKind::Sliding)])?;
        self.cache.restore(|kind| PageList::of(&self.pages, sequence, kind), &snapshot.items);
        self.drawn.remove(&sequence);
        Ok(())
    }
}

impl ReadCache for CpuEngine {
    fn read_cache(&self, sequence: SequenceId, layer: usize) -> Option<(Vec<usize>, Tensor<3>, Tensor<3>)> {
        if !self.pages.contains(sequence) {
            return None;
        }
        let list = PageList::of(&self.pages, sequence, self.cache.kind(layer));
        let (positions, keys, values) = self.cache.contents(layer, list, self.length(sequence));
        let config = &self.forward.config;
        let shape = [config.kv_heads, positions.len(), config.head_dim];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), &Device::flex());
        Some((positions, tensor(keys), tensor(values)))
    }
}

/// Maps pages before a token asks for them, while a tokenizer is built or a prompt typed: 12 GB cost some 3 s of page faults, which
/// the first tokens would pay otherwise.
fn touch_in_background(parts: Vec<Bytes>) {
    const PAGE: usize = 4096;
    std::thread::spawn(move || {
        let touched = parts.iter().flat_map(|part| part.iter().step_by(PAGE));
        std::hint::black_box(touched.fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
    });
}

/// Bytes of memory that no process uses, where the system tells.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}
