//! Phase 3's engine: phase 2's model with a cache.

use std::collections::HashMap;

use burn::tensor::Tensor;
use phase1_loading::GptOssConfig;
use phase2_forward::{Chunk, Engine, EngineError, GptOss, LogitsFor, Probe, SequenceId, Snapshot, check_batch};

use crate::cache::SequenceCache;
use crate::cache_type::CacheType;
use crate::read_cache::ReadCache;

/// What its snapshots are called.
const FORM: &str = "phase 3";

/// Computes only new tokens; earlier ones live on as keys and values.
pub struct Cached {
    pub(crate) model: GptOss,
    pub(crate) kind: CacheType,
    pub(crate) sequences: HashMap<SequenceId, SequenceCache>,
}

/// Heads whose rows are no whole blocks of the cache's type.
#[derive(Debug, thiserror::Error)]
#[error("the model's heads of {head_dim} values cannot be cached in {kind}, whose blocks are of 32; use --kv f16")]
pub struct UnsuitableCache {
    kind: CacheType,
    head_dim: usize,
}

impl Cached {
    /// An engine that caches in f32.
    pub fn new(model: GptOss) -> Cached {
        Cached { model, kind: CacheType::F32, sequences: HashMap::new() }
    }

    /// An engine that caches in `kind`.
    ///
    /// # Errors
    /// If the model's rows cannot be stored so.
    pub fn with_cache(model: GptOss, kind: CacheType) -> Result<Cached, UnsuitableCache> {
        let head_dim = model.config.head_dim;
        match kind.holds(head_dim) {
            true => Ok(Cached { model, kind, sequences: HashMap::new() }),
            false => Err(UnsuitableCache { kind, head_dim }),
        }
    }

    /// Bytes that a sequence's cache takes on the device; 0 for an unknown sequence.
    pub fn cache_bytes(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, SequenceCache::bytes)
    }

    pub(crate) fn new_cache(&self) -> SequenceCache {
        SequenceCache::new(&self.model.config, self.kind, &self.model.device.burn)
    }
}

impl Engine for Cached {
    fn config(&self) -> &GptOssConfig {
        &self.model.config
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, SequenceCache::length)
    }

    fn step(&mut self, batch: &[Chunk<'_>], probe: &mut dyn Probe) -> Result<Vec<Option<Tensor<2>>>, EngineError> {
        check_batch(self, batch)?;
        let logits = batch.iter().map(|&Chunk { sequence, tokens, logits }| {
            let mut cache = self.sequences.remove(&sequence).unwrap_or_else(|| self.new_cache());
            let wanted = match logits {
                LogitsFor::Nothing => 0..0,
                LogitsFor::LastToken => tokens.len() - 1..tokens.len(),
                LogitsFor::EveryToken => 0..tokens.len(),
            };
            let logits = self.model.forward(tokens, cache.length(), wanted, &mut cache, probe);
            cache.advance(tokens.len());
            self.sequences.insert(sequence, cache);
            logits
        });
        Ok(logits.collect())
    }

    fn save(&self, sequence: SequenceId) -> Option<Snapshot> {
        let cache = self.sequences.get(&sequence)?;
        Some(Snapshot { form: FORM.into(), length: cache.length(), items: cache.save() })
    }

    fn restore(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError> {
        let mut cache = self.new_cache();
        snapshot.check(FORM, self.model.config.context_length, |length| cache.saved_bytes(length))?;
        cache.restore(snapshot.length, &snapshot.items);
        self.sequences.insert(sequence, cache);
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }
}

impl ReadCache for Cached {
    fn read_cache(&self, sequence: SequenceId, layer: usize) -> Option<(Vec<usize>, Tensor<3>, Tensor<3>)> {
        Some(self.sequences.get(&sequence)?.contents(layer))
    }
}
