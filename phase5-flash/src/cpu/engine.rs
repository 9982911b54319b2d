//! The engine: sequences, and the pool that computes them.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use bytes::Bytes;
use cpu_kernels::{CacheFormat, Isa, Pool, Screen};
use phase1_loading::{Checkpoint, GptOssConfig};
use phase2_forward::{
    Chunk, Continuation, Engine, EngineError, LogitsFor, Probe, Rope, SequenceId, Snapshot, check_batch,
};
use phase3_kvcache::{CacheType, ReadCache};

use super::cache::{Blocks, SequenceCache};
use super::model::{CpuLoadError, Model};
use super::scratch::Scratch;
use super::threads;

/// What its snapshots are called.
const FORM: &str = "phase 5 on the CPU";

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
}

impl CpuOptions {
    /// How keys and values are stored.
    pub fn cache_type(&self) -> CacheType {
        self.kv.unwrap_or(if self.exact { CacheType::F32 } else { CacheType::F16 })
    }
}

/// Computes batches on the CPU, from the pages of the mapped file.
pub struct CpuEngine {
    pub(super) config: GptOssConfig,
    pub(super) rope: Rope,
    pub(super) model: Model,
    pub(super) pool: Pool,
    pub(super) isa: Isa,
    pub(super) exact: bool,
    pub(super) blocks: Blocks,
    pub(super) scratch: Scratch,
    /// Of the head, and steps that chose tokens before it was made.
    pub(super) screen: Option<Arc<Screen>>,
    pub(super) chosen_without_screen: usize,
    sequences: HashMap<SequenceId, SequenceCache>,
}

/// A chunk under way.
pub(super) struct Part {
    /// Its first token's row among all tokens of the step, and how many there are.
    pub first: usize,
    pub count: usize,
    /// Rows whose logits are wanted.
    pub wanted: std::ops::Range<usize>,
    pub cache: SequenceCache,
}

impl CpuEngine {
    /// Reads nothing yet: pages of the file come in when they are first used.
    ///
    /// # Errors
    /// A shape that the kernels do not take.
    pub fn load(checkpoint: &Checkpoint, options: CpuOptions) -> Result<CpuEngine, CpuLoadError> {
        let config = checkpoint.config.clone();
        let kv = options.cache_type();
        let (format, unit) = match kv {
            CacheType::F32 => (CacheFormat::F32, 16),
            CacheType::F16 => (CacheFormat::F16, 16),
            CacheType::Q8_0 => (CacheFormat::Q8_0, 32),
        };
        if !config.head_dim.is_multiple_of(unit) {
            let (path, head_dim) = (checkpoint.path.clone(), config.head_dim);
            return Err(CpuLoadError::HeadDim { path, head_dim, unit, kv: kv.name() });
        }
        let model = Model::load(checkpoint)?;
        touch_in_background(model.in_order_of_use());
        Ok(CpuEngine {
            rope: Rope::new(&config.rope, config.head_dim),
            model,
            pool: Pool::new(threads::count(options.threads)),
            isa: options.isa.unwrap_or_else(Isa::best),
            exact: options.exact,
            blocks: Blocks::new(&config, format),
            scratch: Scratch::default(),
            screen: None,
            chosen_without_screen: 0,
            sequences: HashMap::new(),
            config,
        })
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl CpuEngine {
    /// The chunks as parts of a step, and their tokens. Their sequences are away meanwhile.
    fn admit(&mut self, batch: &[Chunk<'_>]) -> (Vec<u32>, Vec<Part>) {
        let mut tokens = Vec::new();
        let mut parts = Vec::new();
        for chunk in batch {
            let (first, count) = (tokens.len(), chunk.tokens.len());
            tokens.extend_from_slice(chunk.tokens);
            let wanted = match chunk.logits {
                LogitsFor::Nothing => 0..0,
                LogitsFor::LastToken => tokens.len() - 1..tokens.len(),
                LogitsFor::EveryToken => first..tokens.len(),
            };
            let mut cache = self.sequences.remove(&chunk.sequence).unwrap_or_else(|| SequenceCache::new(&self.config));
            let length = cache.length + count;
            self.blocks.extend(&mut cache, length);
            parts.push(Part { first, count, wanted, cache });
        }
        (tokens, parts)
    }

    /// Computes the parts of a step. Their sequences come back longer; or, if `compute` panics, as they were.
    pub(super) fn compute<T>(
        &mut self,
        batch: &[Chunk<'_>],
        compute: impl FnOnce(&CpuEngine, &mut Scratch, &[u32], &mut [Part]) -> T,
    ) -> T {
        let (tokens, mut parts) = self.admit(batch);
        let mut scratch = std::mem::take(&mut self.scratch);
        let this = &*self;
        let result = catch_unwind(AssertUnwindSafe(|| compute(this, &mut scratch, &tokens, &mut parts)));
        self.scratch = scratch;
        for (chunk, mut part) in batch.iter().zip(parts) {
            // What was written beyond the length is written again.
            let new = if result.is_ok() { part.count } else { 0 };
            self.blocks.advance(&mut part.cache, new);
            if part.cache.length > 0 {
                self.sequences.insert(chunk.sequence, part.cache);
            } else {
                self.blocks.release(part.cache);
            }
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl ReadCache for CpuEngine {
    fn read_cache(&self, sequence: SequenceId, layer: usize) -> Option<(Vec<usize>, Tensor<3>, Tensor<3>)> {
        let cache = self.sequences.get(&sequence)?;
        let (positions, keys, values) = cache.layers[layer].contents(&self.blocks, cache.length);
        let shape = [self.config.kv_heads, positions.len(), self.config.head_dim];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), &Device::flex());
        Some((positions, tensor(keys), tensor(values)))
    }
}

impl Engine for CpuEngine {
    fn config(&self) -> &GptOssConfig {
        &self.config
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, |cache| cache.length)
    }

    fn step(&mut self, batch: &[Chunk<'_>], probe: &mut dyn Probe) -> Result<Vec<Option<Tensor<2>>>, EngineError> {
        check_batch(self, batch)?;
        let logits = self.compute(batch, |this, s, tokens, parts| {
            this.layers(s, tokens, parts, probe);
            this.head(s, parts, probe)
        });
        let vocab = self.config.vocab;
        let tensor = |logits: Vec<f32>| {
            let shape = [logits.len() / vocab, vocab];
            (shape[0] > 0).then(|| Tensor::from_data(TensorData::new(logits, shape), &Device::flex()))
        };
        Ok(logits.into_iter().map(tensor).collect())
    }

    fn decode(
        &mut self,
        batch: &mut [Continuation<'_>],
        count: usize,
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Option<Result<(), EngineError>> {
        self.can_screen(batch).then(|| self.go_on(batch, count, on_tokens))
    }

    fn save(&self, sequence: SequenceId) -> Option<Snapshot> {
        let cache = self.sequences.get(&sequence)?;
        Some(Snapshot { form: FORM.into(), length: cache.length, items: self.blocks.save(cache) })
    }

    fn restore(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError> {
        let GptOssConfig { attention, context_length, .. } = &self.config;
        snapshot.check(FORM, *context_length, |length| self.blocks.saved_bytes(attention, length))?;
        let cache = self.blocks.restore(attention, snapshot.length, &snapshot.items);
        self.release(sequence);
        self.sequences.insert(sequence, cache);
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        if let Some(cache) = self.sequences.remove(&sequence) {
            self.blocks.release(cache);
        }
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
