//! Phase 3's engine: phase 2's model with a cache.

use std::collections::HashMap;

use burn::tensor::Tensor;
use phase1_loading::GptOssConfig;
use phase2_forward::{Chunk, Engine, EngineError, GptOss, LogitsFor, Probe, SequenceId, check_batch};

use crate::cache::SequenceCache;

/// Computes only new tokens; earlier ones live on as keys and values.
pub struct Cached {
    model: GptOss,
    sequences: HashMap<SequenceId, SequenceCache>,
}

impl Cached {
    pub fn new(model: GptOss) -> Cached {
        Cached { model, sequences: HashMap::new() }
    }

    /// What a sequence's cache holds in `layer`: positions, and keys and values `[kv_heads, positions, head_dim]` in the
    /// same order. `None` for an unknown sequence.
    pub fn cache(&self, sequence: SequenceId, layer: usize) -> Option<(Vec<usize>, Tensor<3>, Tensor<3>)> {
        Some(self.sequences.get(&sequence)?.contents(layer))
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
            let new_cache = || SequenceCache::new(&self.model.config, &self.model.device.burn);
            let cache = self.sequences.entry(sequence).or_insert_with(new_cache);
            let wanted = match logits {
                LogitsFor::Nothing => 0..0,
                LogitsFor::LastToken => tokens.len() - 1..tokens.len(),
                LogitsFor::EveryToken => 0..tokens.len(),
            };
            let logits = self.model.forward(tokens, cache.length(), wanted, cache, probe);
            cache.advance(tokens.len());
            logits
        });
        Ok(logits.collect())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }
}
