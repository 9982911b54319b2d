//! The first of the largest logits without computing them all: a coarse copy of the head says which few rows can have it, and only
//! those are multiplied.

use std::sync::Arc;

use cpu_kernels::{Bound, Screen, Shared, Storage, TILE};
use phase1_loading::{Checkpoint, Format};
use phase2_forward::{Adjustment, Draw, Operation, Probe, Span, Want, Work};

use super::engine::{CpuEngine, CpuOptions};
use super::forward::{Forward, Input, few};
use super::scratch::{Candidate, Scratch, Shortlist, grow};

/// Greedy steps after which the copy is made. Making gpt-oss-20b's takes 0.2 s on two cores, and a step gains 6 to 7 ms by it.
const WORTH: usize = 24;

impl CpuEngine {
    /// Bytes of the copy of the head that an engine with these options makes, and then reads instead of the head.
    pub fn shortlist_bytes(checkpoint: &Checkpoint, options: CpuOptions) -> Option<u64> {
        let head = checkpoint.tensor("output.weight");
        let of_use = !options.exact && head.format != Format::Mxfp4;
        of_use.then(|| Screen::bytes(head.rows(), head.row_len()) as u64)
    }

    /// The copy of the head, if no item of the step, which draws tokens, needs the head itself, and enough such steps have been.
    pub(super) fn shortlist_if_worth_it(&mut self, work: &[Work<'_>]) -> Option<Arc<Screen>> {
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
            if self.greedy_steps > WORTH {
                self.shortlist = Some(Arc::new(self.forward.make_screen()));
            }
        }
        self.shortlist.clone()
    }
}

/// Which rows of the head one draw may take, and which of them have their logits adjusted.
struct Choosable<'a> {
    draw: &'a Draw<'a>,
    /// Rows with adjusted logits, which no estimate is of.
    adjusted: Vec<usize>,
}

impl<'a> Choosable<'a> {
    fn new(draw: &'a Draw<'a>) -> Choosable<'a> {
        let mut adjusted: Vec<usize> = draw.adjustments.iter().map(|adjustment| adjustment.token as usize).collect();
        adjusted.sort_unstable();
        Choosable { draw, adjusted }
    }

    /// Whether a row may be drawn and has the logit that is estimated.
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
    /// For each draw the first of the largest logits that it may take, from its row of `h`; none if a logit that was computed is NaN.
    pub fn shortlisted(
        &self,
        screen: &Screen,
        s: &mut Scratch,
        draws: &[&Draw<'_>],
        sequences: usize,
        probe: &mut dyn Probe,
    ) -> Vec<Option<u32>> {
        let (hidden, vocab, n) = (self.config.hidden, self.config.vocab, draws.len());
        let Scratch { h, shortlist: Shortlist { inputs, estimates, bounds, candidates }, .. } = s;
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

        let choosable: Vec<Choosable<'_>> = draws.iter().map(|draw| Choosable::new(draw)).collect();
        let tiles = bounds.chunks_exact(n).zip(estimates.chunks_exact(n * TILE)).enumerate();
        let rows_of = |tile: usize| tile * TILE..vocab.min((tile + 1) * TILE);
        // The row with the largest estimate is multiplied first: its logit rules most others out. Without any, nothing is ruled out.
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
                // A NaN estimate or margin rules nothing out. After a NaN logit the others do not matter.
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

/// The lowest row among those with the largest logit; `None` if a logit is NaN.
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
