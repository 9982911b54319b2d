//! Phase 3's engine: phase 2's model with a KV cache.

use std::collections::HashMap;

use burn::tensor::Tensor;
use formats::CacheFormat;
use phase1_loading::GptOssConfig;
use phase2_forward::plain::{PlainSteps, check_rewind, outcome_of, read_back, tokens_of};
use phase2_forward::{
    BadRequest, Capacity, Engine, EngineError, GptOss, HostDraw, Inspect, NoProbe, Outcome, Probe, SequenceId,
    Snapshot, Snapshots, Ticket, Work, check_work,
};

use crate::cache::SequenceCache;
use crate::read_cache::ReadCache;

/// The name of this kind of engine in its snapshots.
const NAME: &str = "phase 3";

/// An engine that computes only new tokens, and caches the keys and values of earlier ones.
pub struct CachedEngine {
    model: GptOss,
    kind: CacheFormat,
    sequences: HashMap<SequenceId, Sequence>,
    steps: PlainSteps,
    host: HostDraw,
}

struct Sequence {
    cache: SequenceCache,
    /// The token that the last step drew; `None` if it drew none, or after a fork, truncation or restore.
    drawn: Option<u32>,
}

/// The model's heads have a size that the cache's format does not support.
#[derive(Debug, thiserror::Error)]
#[error(
    "a {kind} cache needs heads of a multiple of {granule} values, but the model's have {head_dim}; use --kv {instead}"
)]
pub struct UnsuitableCache {
    kind: CacheFormat,
    granule: usize,
    head_dim: usize,
    instead: CacheFormat,
}

impl CachedEngine {
    /// An engine with a cache in f32.
    pub fn new(model: GptOss) -> CachedEngine {
        let (sequences, steps, host) = (HashMap::new(), PlainSteps::default(), HostDraw::default());
        CachedEngine { model, kind: CacheFormat::F32, sequences, steps, host }
    }

    /// An engine with a cache in the format `kind`.
    ///
    /// # Errors
    /// The head size is not a multiple of [`CacheFormat::granule`].
    pub fn with_cache(model: GptOss, kind: CacheFormat) -> Result<CachedEngine, UnsuitableCache> {
        let head_dim = model.config.head_dim;
        if !kind.holds(head_dim) {
            let instead = if CacheFormat::F16.holds(head_dim) { CacheFormat::F16 } else { CacheFormat::F32 };
            return Err(UnsuitableCache { kind, granule: kind.granule(), head_dim, instead });
        }
        Ok(CachedEngine { kind, ..CachedEngine::new(model) })
    }

    /// Bytes of a sequence's cache on the device; 0 for an unknown sequence.
    pub fn cache_bytes(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, |known| known.cache.bytes())
    }

    fn new_sequence(&self) -> Sequence {
        let cache = SequenceCache::new(&self.model.config, self.kind, &self.model.device.burn);
        Sequence { cache, drawn: None }
    }

    fn check_rewind(&self, sequence: SequenceId, length: usize) -> Result<(), BadRequest> {
        let cache = self.sequences.get(&sequence).map(|known| &known.cache);
        let reaches = || cache.is_some_and(SequenceCache::can_rewind);
        check_rewind(sequence, cache.map(SequenceCache::length), length, reaches)
    }
}

impl Engine for CachedEngine {
    fn config(&self) -> &GptOssConfig {
        &self.model.config
    }

    fn capacity(&self) -> Capacity {
        Capacity::UNBOUNDED
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, |known| known.cache.length())
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
        if self.sequences.contains_key(&to) {
            return Err(BadRequest::SequenceExists(to).into());
        }
        self.check_rewind(from, length)?;
        let Some(known) = self.sequences.get(&from) else { return Err(BadRequest::UnknownSequence(from).into()) };
        let copy = Sequence { cache: known.cache.prefix(length), drawn: None };
        self.sequences.insert(to, copy);
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError> {
        self.check_rewind(sequence, length)?;
        if let Some(known) = self.sequences.get_mut(&sequence) {
            known.cache.truncate(length);
            known.drawn = None;
        }
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn snapshots(&mut self) -> Option<&mut dyn Snapshots> {
        Some(self)
    }
}

impl Inspect for CachedEngine {
    fn inspect(&mut self, work: &[Work<'_>], probe: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError> {
        check_work(self, work)?;
        let inputs = tokens_of(work, |sequence| self.sequences.get(&sequence).and_then(|known| known.drawn))?;
        let mut computed = Vec::new();
        for (item, tokens) in work.iter().zip(inputs) {
            let mut known = self.sequences.remove(&item.sequence).unwrap_or_else(|| self.new_sequence());
            let wanted = tokens.len() - item.want.rows(tokens.len())..tokens.len();
            computed.push(self.model.forward(&tokens, known.cache.length(), wanted, &mut known.cache, probe));
            known.cache.advance(tokens.len());
            self.sequences.insert(item.sequence, known);
        }
        let mut outcomes = Vec::new();
        for (item, logits) in work.iter().zip(computed) {
            let logits = read_back(logits)?;
            let outcome = outcome_of(&item.want, logits, self.length(item.sequence), &mut self.host);
            if let Some(known) = self.sequences.get_mut(&item.sequence) {
                known.drawn = outcome.drawn_id();
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}

impl Snapshots for CachedEngine {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn save(&mut self, sequence: SequenceId) -> Result<Snapshot, EngineError> {
        let known = self.sequences.get(&sequence).ok_or(BadRequest::UnknownSequence(sequence))?;
        Ok(Snapshot { engine: NAME.into(), length: known.cache.length(), items: known.cache.save() })
    }

    fn restore(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError> {
        let mut restored = self.new_sequence();
        let context = self.model.config.context_length;
        snapshot.check(NAME, context, |length| restored.cache.saved_bytes(length))?;
        restored.cache.restore(snapshot.length, &snapshot.items);
        self.sequences.insert(sequence, restored);
        Ok(())
    }
}

impl ReadCache for CachedEngine {
    fn read_cache(&self, sequence: SequenceId, layer: usize) -> Option<(Vec<usize>, Tensor<3>, Tensor<3>)> {
        Some(self.sequences.get(&sequence)?.cache.contents(layer))
    }
}
