//! Phase 2's engine: every step recomputes the whole sequence.

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::Tensor;
use phase1_loading::{AttentionKind, GptOssConfig};

use crate::check::check_work;
use crate::draw::HostDraw;
use crate::engine::{BadRequest, Capacity, Engine, EngineError, Inspect, Outcome, SequenceId, Ticket, Work};
use crate::model::{GptOss, KvCache};
use crate::plain::{PlainSteps, check_rewind, outcome_of, read_back, tokens_of};
use crate::probe::{NoProbe, Probe};

/// An engine that keeps only the tokens of its sequences.
pub struct RecomputeEngine {
    model: GptOss,
    sequences: HashMap<SequenceId, Sequence>,
    steps: PlainSteps,
    host: HostDraw,
}

#[derive(Clone, Default)]
struct Sequence {
    tokens: Vec<u32>,
    /// The token that the last step drew; `None` if it drew none, or after a fork or truncation.
    drawn: Option<u32>,
}

impl RecomputeEngine {
    pub fn new(model: GptOss) -> RecomputeEngine {
        RecomputeEngine { model, sequences: HashMap::new(), steps: PlainSteps::default(), host: HostDraw::default() }
    }

    /// The first `length` tokens of a sequence.
    fn prefix(&self, sequence: SequenceId, length: usize) -> Result<Sequence, BadRequest> {
        let known = self.sequences.get(&sequence);
        check_rewind(sequence, known.map(|known| known.tokens.len()), length, || true)?;
        let tokens = known.map(|known| known.tokens[..length].to_vec()).unwrap_or_default();
        Ok(Sequence { tokens, drawn: None })
    }
}

impl Engine for RecomputeEngine {
    fn config(&self) -> &GptOssConfig {
        &self.model.config
    }

    fn capacity(&self) -> Capacity {
        Capacity { rewind: usize::MAX, ..Capacity::UNBOUNDED }
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, |known| known.tokens.len())
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
        let copy = self.prefix(from, length)?;
        self.sequences.insert(to, copy);
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError> {
        let kept = self.prefix(sequence, length)?;
        self.sequences.insert(sequence, kept);
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }
}

impl Inspect for RecomputeEngine {
    fn inspect(&mut self, work: &[Work<'_>], probe: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError> {
        check_work(self, work)?;
        let inputs = tokens_of(work, |sequence| self.sequences.get(&sequence).and_then(|known| known.drawn))?;
        let mut computed = Vec::new();
        for (item, input) in work.iter().zip(inputs) {
            let known = self.sequences.entry(item.sequence).or_default();
            known.tokens.extend(&input);
            let length = known.tokens.len();
            let rows = item.want.rows(input.len());
            // A sequence is computed only if a result is requested.
            computed.push(match rows {
                0 => None,
                _ => self.model.forward(&known.tokens, 0, length - rows..length, &mut NoCache, probe),
            });
        }
        let mut outcomes = Vec::new();
        for (item, logits) in work.iter().zip(computed) {
            let logits = read_back(logits)?;
            let known = self.sequences.entry(item.sequence).or_default();
            let outcome = outcome_of(&item.want, logits, known.tokens.len(), &mut self.host);
            known.drawn = outcome.drawn_id();
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}

/// A cache that stores nothing: the step contains the whole sequence, so queries see all its keys.
struct NoCache;

impl KvCache for NoCache {
    fn positions(&self, _: AttentionKind, new: Range<usize>) -> Vec<usize> {
        new.collect()
    }

    fn extend(&mut self, _: usize, keys: Tensor<3>, values: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        (keys, values)
    }
}
