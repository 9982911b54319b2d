//! The cost of decoding together with a prompt: compares a step with a prompt chunk and one token each of several sequences with a step of
//! the chunk alone.

use std::time::Instant;

use anyhow::Result;
use phase2_forward::{Operation, SequenceId, Span, Want, Work};
use phase3_kvcache::PREFILL_CHUNK;
use serde_json::{Value, json};

use super::{Measure, check, median, speed};

/// Number of decoding sequences.
const DECODING: usize = 16;
/// The prompt's sequence.
const PROMPT: SequenceId = DECODING as SequenceId;

impl Measure<'_> {
    /// Measures both steps, alternating. The prompt begins a new sequence each time; the others begin with `depth` tokens, at least 1, and
    /// grow.
    pub fn mixed(&mut self, depth: usize) -> Result<Value> {
        for sequence in 0..PROMPT {
            self.fill(sequence, depth.max(1))?;
        }
        let firsts = self.tokens(DECODING);
        let first = |(sequence, token)| Work::tokens(sequence, token, Want::Token(self.draw(sequence)));
        let work: Vec<Work<'_>> = (0..).zip(firsts.chunks_exact(1)).map(first).collect();
        check(self.engine.step(&work)?)?;

        let most = self.engine.capacity().tokens_per_step.saturating_sub(DECODING).max(1);
        let chunk = PREFILL_CHUNK.min(most).min(self.engine.config().context_length);
        let (mut alone, mut mixed) = (Vec::new(), Vec::new());
        // The first round is a warm-up.
        for turn in 0..=self.args.repeat {
            for (decoding, seconds) in [(0, &mut alone), (DECODING, &mut mixed)] {
                let took = self.step_with_prefill(chunk, decoding)?;
                if turn > 0 {
                    seconds.push(took);
                }
            }
        }
        (0..PROMPT).for_each(|sequence| self.engine.release(sequence));

        let (bytes, floor) = self.cost_with_prefill(chunk, depth);
        let mut result = speed(depth, DECODING, chunk + DECODING, &mixed, bytes, floor);
        result["what"] = json!("mixed");
        result["tokens"] = json!(chunk);
        result["draw"] = json!(self.args.draw.name());
        result["mixed_ms"] = json!(median(&mixed) * 1e3);
        result["alone_ms"] = json!(median(&alone) * 1e3);
        result["ratio"] = json!(median(&mixed) / median(&alone));
        Ok(result)
    }

    /// Seconds of a step in which a prompt of `chunk` tokens draws its first token, and `decoding` sequences draw their next.
    fn step_with_prefill(&mut self, chunk: usize, decoding: usize) -> Result<f64> {
        let prompt = self.tokens(chunk);
        let mut work = vec![Work::tokens(PROMPT, &prompt, Want::Token(self.draw(PROMPT)))];
        work.extend((0..decoding as SequenceId).map(|sequence| Work::decode(sequence, self.draw(sequence))));
        let start = Instant::now();
        let outcomes = self.engine.step(&work)?;
        let seconds = start.elapsed().as_secs_f64();
        check(outcomes)?;
        self.engine.release(PROMPT);
        Ok(seconds)
    }

    /// The least bytes and the least seconds of the mixed step: attention is per sequence, everything else is one batch.
    fn cost_with_prefill(&self, chunk: usize, depth: usize) -> (u64, f64) {
        let layers = self.engine.config().layers();
        let span = |operation, layer, tokens, sequences, keys| {
            self.costs().of(Span { operation, layer, tokens, sequences, keys })
        };
        let (all, drawn) = (chunk + DECODING, 1 + DECODING);
        let mut work = Vec::new();
        for operation in Operation::ALL {
            match operation {
                Operation::Mask | Operation::Embed => work.push(span(operation, None, all, drawn, 0)),
                Operation::HeadNorm | Operation::Head => work.push(span(operation, None, drawn, drawn, 0)),
                Operation::Attention => work.extend((0..layers).flat_map(|layer| {
                    let prompt = span(operation, Some(layer), chunk, 1, chunk);
                    [prompt, span(operation, Some(layer), DECODING, DECODING, depth.max(1) + 1)]
                })),
                _ => work.extend((0..layers).map(|layer| span(operation, Some(layer), all, drawn, 0))),
            }
        }
        let bytes = work.iter().map(|work| work.bytes).sum();
        (bytes, work.iter().map(|work| work.floor(self.ceiling)).sum())
    }
}
