//! Greedy decoding without computing all logits: a 4-bit copy of the head excludes most rows, and only the remaining ones are multiplied.

use std::sync::Arc;

use cpu_kernels::{Bound, CoarseMatrix, Shared, Storage, TILE};
use phase1_loading::{Checkpoint, Format};
use phase2_forward::{Adjustment, Draw, Operation, Probe, Span, Want, Work};

use super::engine::{CpuEngine, CpuOptions};
use super::forward::{Forward, Input, small_batch};
use super::scratch::{Candidate, Scratch, Shortlist, grow};

/// The copy is made after this many steps that could have used it. For gpt-oss-20b, it takes 0.2 s to make on two cores, and saves 6 to
/// 7 ms per step.
const MIN_GREEDY_STEPS: usize = 24;

impl CpuEngine {
    /// Size in bytes of the copy of the head that an engine with these options makes for greedy decoding; `None` if it makes none.
    pub fn shortlist_bytes(checkpoint: &Checkpoint, options: CpuOptions) -> Option<u64> {
        let head = checkpoint.tensor("output.weight");
        let of_use = !options.exact && head.format != Format::Mxfp4;
        of_use.then(|| CoarseMatrix::bytes(head.rows(), head.row_len()) as u64)
    }

    /// The copy of the head, if each item of the step requests nothing or a greedy draw without log probabilities, and there have been
    /// enough such steps.
    pub(super) fn shortlist_if_worth_it(&mut self, work: &[Work<'_>]) -> Option<Arc<CoarseMatrix>> {
        let does_without = |item: &Work<'_>| match &item.want {
            Want::Nothing => true,
            Want::Token(draw) => draw.is_greedy() && draw.logprobs.is_none(),
            Want::LastLogits | Want::AllLogits => false,
        };
        let of_use = !self.forward.exact && self.forward.model.head.storage != Storage::Mxfp4;
        if !of_use || !work.iter().all(does_without) {
            return None;
        }
        if self.shortlist.is_none() {
            self.greedy_steps += 1;
            if self.greedy_steps > MIN_GREEDY_STEPS {
                self.shortlist = Some(Arc::new(self.forward.coarse_head()));
            }
        }
        self.shortlist.clone()
    }
}

/// The rows of the head that a draw may choose, and those of them whose logits are adjusted.
struct Choosable<'a> {
    draw: &'a Draw<'a>,
    /// Rows with adjusted logits, in ascending order. Estimates do not apply to them.
    adjusted: Vec<usize>,
}

impl<'a> Choosable<'a> {
    fn new(draw: &'a Draw<'a>) -> Choosable<'a> {
        let mut adjusted: Vec<usize> = draw.adjustments.iter().map(|adjustment| adjustment.token as usize).collect();
        adjusted.sort_unstable();
        Choosable { draw, adjusted }
    }

    /// Whether a row may be drawn and its logit is not adjusted.
    fn as_estimated(&self, row: usize) -> bool {
        self.draw.allows(row) && (self.adjusted.is_empty() || self.adjusted.binary_search(&row).is_err())
    }

    fn adjust(&self, row: usize, logit: f32) -> f32 {
        match self.adjusted.is_empty() {
            true => logit,
            false => {
                let own = |adjustment: &&Adjustment| adjustment.token as usize == row;
                self.draw.adjustments.iter().find(own).map_or(logit, |adjustment| adjustment.apply(logit))
            }
        }
    }
}

impl Forward {
    /// For each draw, the allowed row of the head with the largest logit after the draw's adjustments; if several have it, the lowest of
    /// them. The input of draw `i` is row `i` of `s.h`. `None` if a computed logit is NaN or no row is allowed.
    pub fn shortlisted(
        &self,
        coarse: &CoarseMatrix,
        s: &mut Scratch,
        draws: &[&Draw<'_>],
        sequences: usize,
        probe: &mut dyn Probe,
    ) -> Vec<Option<u32>> {
        let (hidden, vocab, n) = (self.config.hidden, self.config.vocab, draws.len());
        let Scratch { h, shortlist: Shortlist { inputs, estimates, bounds, candidates }, .. } = s;
        let h = &h[..n * hidden];
        inputs.round(self.isa, h, hidden);
        grow(estimates, coarse.tiles() * n * TILE);
        grow(bounds, coarse.tiles() * n);
        let (estimates, bounds) = (&mut estimates[..coarse.tiles() * n * TILE], &mut bounds[..coarse.tiles() * n]);
        let (estimates_of, bounds_of) = (Shared::new(estimates), Shared::new(bounds));
        self.pool.run(coarse.tiles(), &|tile, _| {
            // SAFETY: each tile has its own estimates and bounds.
            let (estimates, bounds) =
                unsafe { (estimates_of.part(tile * n * TILE, n * TILE), bounds_of.part(tile * n, n)) };
            coarse.estimate(self.isa, tile, inputs, estimates, bounds);
        });

        let choosable: Vec<Choosable<'_>> = draws.iter().map(|draw| Choosable::new(draw)).collect();
        let tiles = bounds.chunks_exact(n).zip(estimates.chunks_exact(n * TILE)).enumerate();
        let rows_of = |tile: usize| tile * TILE..vocab.min((tile + 1) * TILE);
        // The row with the largest estimate is multiplied first, because its logit excludes most other rows. If no row has an estimate,
        // none is excluded.
        let mut best: Vec<Option<(usize, f32)>> = vec![None; n];
        for (tile, (bounds, estimates)) in tiles.clone() {
            for (i, best) in best.iter_mut().enumerate() {
                if best.is_some_and(|(_, largest)| bounds[i].largest <= largest) {
                    continue;
                }
                let rows = rows_of(tile).zip(&estimates[i * TILE..]).filter(|(row, _)| choosable[i].as_estimated(*row));
                if let Some((row, &largest)) = rows.max_by(|a, b| a.1.total_cmp(b.1))
                    && best.is_none_or(|(_, before)| largest > before)
                {
                    *best = Some((row, largest));
                }
            }
        }
        candidates.clear();
        let first =
            |(input, best): (usize, &Option<(usize, f32)>)| best.map(|(row, logit)| Candidate { input, row, logit });
        candidates.extend(best.iter().enumerate().filter_map(first));
        self.multiply_candidates(h, candidates);
        let multiplied = candidates.len();
        let mut known = vec![f32::NEG_INFINITY; n];
        candidates.iter().for_each(|best| known[best.input] = best.logit);
        for (tile, (bounds, estimates)) in tiles {
            for (i, &Bound { largest, margin }) in bounds.iter().enumerate() {
                // A NaN estimate or margin excludes nothing. After a NaN logit the other rows do not matter.
                let out = |estimate: f32| known[i].is_nan() || estimate + margin < known[i];
                if !out(largest) {
                    let rows = rows_of(tile).zip(&estimates[i * TILE..]);
                    let rows = rows.filter(|&(row, &estimate)| {
                        !out(estimate) && best[i].is_none_or(|(best, _)| best != row) && choosable[i].as_estimated(row)
                    });
                    candidates.extend(rows.map(|(row, _)| Candidate { input: i, row, logit: 0.0 }));
                }
            }
        }
        for (input, choosable) in choosable.iter().enumerate() {
            let adjusted = choosable.adjusted.iter().filter(|&&row| choosable.draw.allows(row));
            candidates.extend(adjusted.map(|&row| Candidate { input, row, logit: 0.0 }));
        }
        self.multiply_candidates(h, &mut candidates[multiplied..]);

        let of = |input: usize| candidates.iter().filter(move |candidate| candidate.input == input);
        let logits = |i: usize| of(i).map(move |found| (found.row, found.logit));
        let token = |i: usize| first_of_largest(logits(i).map(|(row, logit)| (row, choosable[i].adjust(row, logit))));
        let tokens = (0..n).map(token).collect();
        probe.done(Span { operation: Operation::Head, layer: None, tokens: n, sequences, keys: 0 });
        tokens
    }

    fn coarse_head(&self) -> CoarseMatrix {
        let head = &self.model.head;
        let mut coarse = CoarseMatrix::new(head.rows, head.columns);
        let tiles = coarse.tiles();
        let making = coarse.make();
        // SAFETY: each tile is made by one task.
        self.pool.run(tiles, &|tile, _| unsafe { making.tile(self.isa, tile, head.rows_of(0, tile * TILE, TILE)) });
        coarse
    }

    /// Computes the logit of each candidate, as [`Forward::head`] would.
    fn multiply_candidates(&self, h: &[f32], candidates: &mut [Candidate]) {
        /// Candidates per task.
        const SOME: usize = 8;
        let (hidden, count) = (self.config.hidden, candidates.len());
        let candidates = Shared::new(candidates);
        self.pool.run(count.div_ceil(SOME), &|task, _| {
            // SAFETY: each task has its own candidates.
            let candidates = unsafe { candidates.part(task * SOME, SOME.min(count - task * SOME)) };
            for Candidate { input, row, logit } in candidates {
                let (input, one) = small_batch(1, |_| &h[*input * hidden..][..hidden]);
                let mut out = [0.0; TILE];
                self.multiply(self.model.head.rows_of(0, *row, 1), Input::SmallBatch(input, one), &mut out);
                *logit = out[0];
            }
        });
    }
}

/// The lowest row among those with the largest logit; `None` if a logit is NaN or there is none.
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
    fn first_of_the_largest_is_returned() {
        assert_eq!(first_of_largest([(7, 1.5), (4, 1.5), (5, 1.5), (1, 1.0)]), Some(4));
        assert_eq!(first_of_largest([(9, f32::NEG_INFINITY)]), Some(9));
        assert_eq!(first_of_largest([(6, -1.0), (5, f32::INFINITY), (7, f32::INFINITY)]), Some(5));
        assert_eq!(first_of_largest([(3, f32::NAN), (2, 9.0)]), None);
        assert_eq!(first_of_largest([(2, 9.0), (3, f32::NAN)]), None);
    }
}
