//! Decoding the likeliest tokens without computing their logits: a screen of the head says which few rows can be the largest, and
//! only those are multiplied. The rest of a step is as ever.

use std::ops::ControlFlow;
use std::sync::Arc;

use cpu_kernels::{Bound, Screen, Shared, Storage, TILE};
use phase1_loading::{Checkpoint, Format};
use phase2_forward::{Chunk, Continuation, Engine, EngineError, LogitsFor, NoProbe, check_batch};

use super::engine::{CpuEngine, CpuOptions, Part};
use super::scratch::{Candidate, Scratch, Screening, grow};
use super::step::{Input, few};

/// Steps after which a screen is made. Making gpt-oss-20b's takes 0.2 s on two cores, and a step gains 6 to 7 ms by it.
const WORTH: usize = 24;

impl CpuEngine {
    /// Bytes of the screen that an engine with these options makes, and then reads instead of the head.
    pub fn screen_bytes(checkpoint: &Checkpoint, options: CpuOptions) -> Option<u64> {
        let head = checkpoint.tensor("output.weight");
        let of_use = !options.exact && head.format != Format::Mxfp4;
        of_use.then(|| Screen::bytes(head.rows(), head.row_len()) as u64)
    }

    /// Whether all that is wanted of the logits is the largest, and there is something to be saved.
    pub(super) fn can_screen(&self, batch: &[Continuation<'_>]) -> bool {
        let greedy = batch.iter().all(|item| item.choice.temperature == 0.0);
        greedy && !self.exact && self.model.head.storage != Storage::Mxfp4
    }

    /// What [`Engine::decode`](phase2_forward::Engine::decode) promises, of the likeliest tokens.
    pub(super) fn go_on(
        &mut self,
        batch: &mut [Continuation<'_>],
        count: usize,
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        for done in 0..count {
            let fed: Vec<(u64, [u32; 1])> = batch.iter().map(|item| (item.sequence, [item.token])).collect();
            let chunk = |(sequence, tokens)| Chunk { sequence, tokens, logits: LogitsFor::LastToken };
            let chunks: Vec<Chunk<'_>> = fed.iter().map(|(sequence, tokens)| chunk((*sequence, &tokens[..]))).collect();
            match check_batch(self, &chunks) {
                // A context that is full by now ends what has begun.
                Err(EngineError::ContextExceeded { .. }) if done > 0 => return Ok(()),
                checked => checked?,
            }
            let screen = self.screen_when_worth_it();
            let likeliest = self.compute(&chunks, |this, s, tokens, parts| {
                this.layers(s, tokens, parts, &mut NoProbe);
                match &screen {
                    Some(screen) => this.screened(screen, s, parts),
                    None => this
                        .head(s, parts, &mut NoProbe)
                        .iter()
                        .map(|logits| first_of_largest((0..).zip(logits.iter().copied())))
                        .collect::<Vec<_>>(),
                }
            });
            for (item, token) in batch.iter_mut().zip(&likeliest) {
                let position = self.length(item.sequence);
                item.token = token.ok_or(EngineError::NotANumber { position })?;
            }
            let tokens: Vec<u32> = batch.iter().map(|item| item.token).collect();
            if on_tokens(&tokens).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The screen of the head, once it is worth its making.
    fn screen_when_worth_it(&mut self) -> Option<Arc<Screen>> {
        self.chosen_without_screen += usize::from(self.screen.is_none());
        if self.screen.is_none() && self.chosen_without_screen > WORTH {
            self.screen = Some(Arc::new(self.make_screen()));
        }
        self.screen.clone()
    }

    /// For the wanted row of each part the first of its likeliest tokens; none if a logit that was computed is no number.
    fn screened(&self, screen: &Screen, s: &mut Scratch, parts: &[Part]) -> Vec<Option<u32>> {
        let n = self.final_norm(s, parts, &mut NoProbe);
        let (hidden, vocab) = (self.config.hidden, self.config.vocab);
        let Scratch { h, screening: Screening { inputs, estimates, bounds, candidates }, .. } = s;
        let h = &h[..n * hidden];
        inputs.round(self.isa, h, hidden);
        grow(estimates, screen.tiles() * n * TILE);
        grow(bounds, screen.tiles() * n);
        let (estimates, bounds) = (&mut estimates[..screen.tiles() * n * TILE], &mut bounds[..screen.tiles() * n]);
        let (estimates_of, bounds_of) = (Shared::new(estimates), Shared::new(bounds));
        self.pool.run(screen.tiles(), &|tile, _| {
            // SAFETY: a tile's estimates and bounds are its own.
            let (estimates, bounds) =
                unsafe { (estimates_of.part(tile * n * TILE, n * TILE), bounds_of.part(tile * n, n)) };
            screen.estimate(self.isa, tile, inputs, estimates, bounds);
        });

        // The row with the largest estimate is multiplied first: its logit rules most others out.
        let tiles = bounds.chunks_exact(n).zip(estimates.chunks_exact(n * TILE)).enumerate();
        let rows_of = |tile: usize| tile * TILE..vocab.min((tile + 1) * TILE);
        candidates.clear();
        candidates.extend((0..n).map(|i| Candidate { input: i, row: 0, logit: f32::NEG_INFINITY }));
        for (tile, (bounds, estimates)) in tiles.clone() {
            for (best, _) in candidates.iter_mut().zip(bounds).filter(|(best, bound)| bound.largest > best.logit) {
                let estimates = rows_of(tile).zip(&estimates[best.input * TILE..]);
                let (row, &largest) = estimates.max_by(|a, b| a.1.total_cmp(b.1)).expect("a tile has rows");
                *best = Candidate { row, logit: largest, ..*best };
            }
        }
        self.multiply_candidates(h, candidates);
        for (tile, (bounds, estimates)) in tiles {
            for (i, &Bound { largest, margin }) in bounds.iter().enumerate() {
                let Candidate { row: best, logit, .. } = candidates[i];
                // What is no number is not out of the question.
                let out = |estimate: f32| estimate + margin < logit;
                if !out(largest) {
                    let rows = rows_of(tile).zip(&estimates[i * TILE..]);
                    let rows = rows.filter(|&(row, &estimate)| row != best && !out(estimate));
                    candidates.extend(rows.map(|(row, _)| Candidate { input: i, row, logit: 0.0 }));
                }
            }
        }
        self.multiply_candidates(h, &mut candidates[n..]);

        let of = |input: usize| candidates.iter().filter(move |candidate| candidate.input == input);
        (0..n).map(|i| first_of_largest(of(i).map(|candidate| (candidate.row, candidate.logit)))).collect()
    }

    fn make_screen(&self) -> Screen {
        let head = &self.model.head;
        let mut screen = Screen::new(head.rows, head.columns);
        let tiles = screen.tiles();
        let making = screen.make();
        // SAFETY: a tile is made by one task.
        self.pool.run(tiles, &|tile, _| unsafe { making.tile(self.isa, tile, head.rows_of(0, tile * TILE, TILE)) });
        screen
    }

    /// Each candidate's logit, as every logit is computed.
    fn multiply_candidates(&self, h: &[f32], candidates: &mut [Candidate]) {
        /// Candidates of a task.
        const SOME: usize = 8;
        let (hidden, count) = (self.config.hidden, candidates.len());
        let candidates = Shared::new(candidates);
        self.pool.run(count.div_ceil(SOME), &|task, _| {
            // SAFETY: a task's candidates are its own.
            let candidates = unsafe { candidates.part(task * SOME, SOME.min(count - task * SOME)) };
            for Candidate { input, row, logit } in candidates {
                let (input, one) = few(1, |_| &h[*input * hidden..][..hidden]);
                let mut out = [0.0; TILE];
                self.multiply(self.model.head.rows_of(0, *row, 1), Input::Few(input, one), &mut out);
                *logit = out[0];
            }
        });
    }
}

/// The lowest of the rows with the largest logit; none if a logit is no number.
fn first_of_largest(logits: impl IntoIterator<Item = (usize, f32)>) -> Option<u32> {
    let mut best = None;
    for (row, logit) in logits {
        if logit.is_nan() {
            return None;
        }
        if best.is_none_or(|(first, largest)| logit > largest || logit == largest && row < first) {
            best = Some((row, logit));
        }
    }
    best.map(|(row, _)| row as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_is_taken() {
        assert_eq!(first_of_largest([(7, 1.5), (4, 1.5), (5, 1.5), (1, 1.0)]), Some(4));
        assert_eq!(first_of_largest([(9, f32::NEG_INFINITY)]), Some(9));
        assert_eq!(first_of_largest([(6, -1.0), (5, f32::INFINITY), (7, f32::INFINITY)]), Some(5));
        assert_eq!(first_of_largest([(3, f32::NAN), (2, 9.0)]), None);
        assert_eq!(first_of_largest([(2, 9.0), (3, f32::NAN)]), None);
    }
}
