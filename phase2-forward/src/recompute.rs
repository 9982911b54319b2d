//! Phase 2's engine: every step runs the whole sequence again.

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::Tensor;
use phase1_loading::{AttentionKind, GptOssConfig};

use crate::engine::{Chunk, Engine, EngineError, LogitsFor, SequenceId, check_batch};
use crate::model::{GptOss, KeyValues};
use crate::probe::Probe;

/// Remembers tokens and nothing else.
pub struct Recompute {
    model: GptOss,
    sequences: HashMap<SequenceId, Vec<u32>>,
}

impl Recompute {
    pub fn new(model: GptOss) -> Recompute {
        Recompute { model, sequences: HashMap::new() }
    }
}

impl Engine for Recompute {
    fn config(&self) -> &GptOssConfig {
        &self.model.config
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, Vec::len)
    }

    fn step(&mut self, batch: &[Chunk<'_>], probe: &mut dyn Probe) -> Result<Vec<Option<Tensor<2>>>, EngineError> {
        check_batch(self, batch)?;
        let logits = batch.iter().map(|chunk| {
            let tokens = self.sequences.entry(chunk.sequence).or_default();
            tokens.extend(chunk.tokens);
            let wanted = match chunk.logits {
                LogitsFor::Nothing => return None,
                LogitsFor::LastToken => tokens.len() - 1..tokens.len(),
                LogitsFor::EveryToken => tokens.len() - chunk.tokens.len()..tokens.len(),
            };
            self.model.forward(tokens, 0, wanted, &mut NothingCached, probe)
        });
        Ok(logits.collect())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }
}

/// Queries see the keys of the tokens at hand: the whole sequence, since the whole sequence is computed.
struct NothingCached;

impl KeyValues for NothingCached {
    fn positions(&self, _: AttentionKind, new: Range<usize>) -> Vec<usize> {
        new.collect()
    }

    fn extend(&mut self, _: usize, keys: Tensor<3>, values: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        (keys, values)
    }
}
