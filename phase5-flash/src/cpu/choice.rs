//! Computes the outcomes of work items from the residual stream: logits, and tokens drawn from logits. Greedy draws can use the
//! [shortlist](super::shortlist) instead of computing all logits.

use std::ops::Range;

use cpu_kernels::Shared;
use phase2_forward::{Draw, DrawnToken, Outcome, Probe, Want, Work};

use super::engine::CpuEngine;
use super::part::NewTokens;

/// Rows of the head's input that belong to one work item.
struct Rows<'w> {
    item: usize,
    rows: Range<usize>,
    draw: Option<&'w Draw<'w>>,
}

impl CpuEngine {
    /// The outcome of each work item, computed from the residual stream in the scratch.
    pub(super) fn outcomes(&mut self, work: &[Work<'_>], new: &[NewTokens], probe: &mut dyn Probe) -> Vec<Outcome> {
        // The rows of the stream that the head needs, and the work items they belong to.
        let (mut rows, mut items) = (Vec::new(), Vec::new());
        for (item, (work, new)) in work.iter().zip(new).enumerate() {
            let (count, end) = (work.want.rows(new.count), new.first + new.count);
            if count > 0 {
                let draw = if let Want::Token(draw) = &work.want { Some(draw) } else { None };
                items.push(Rows { item, rows: rows.len()..rows.len() + count, draw });
                rows.extend(end - count..end);
            }
        }
        let mut outcomes = vec![Outcome::Fed; work.len()];
        if rows.is_empty() {
            return outcomes;
        }
        self.forward.final_norm(&mut self.scratch, &rows, new.len(), probe);
        let length = |item: usize| new[item].start + new[item].count;
        let found: Vec<Option<Outcome>> = match self.shortlist_if_worth_it(work) {
            Some(shortlist) => {
                let draws: Vec<&Draw<'_>> = items.iter().filter_map(|rows| rows.draw).collect();
                let tokens = self.forward.shortlisted(&shortlist, &mut self.scratch, &draws, new.len(), probe);
                let drawn = |id| Outcome::Token(DrawnToken { id, logprobs: None });
                tokens.into_iter().map(|token| token.map(drawn)).collect()
            }
            None => {
                let logits = self.forward.head(&mut self.scratch, rows.len(), new.len(), probe);
                self.outcomes_of(&items, logits, length)
            }
        };
        for (Rows { item, .. }, outcome) in items.into_iter().zip(found) {
            outcomes[item] = outcome.unwrap_or(Outcome::NotANumber { position: length(item) });
        }
        outcomes
    }

    /// The outcome of each item from the logits of its rows; `None` if one of them is NaN.
    fn outcomes_of(
        &mut self,
        items: &[Rows<'_>],
        mut logits: Vec<f32>,
        length: impl Fn(usize) -> usize + Sync,
    ) -> Vec<Option<Outcome>> {
        let vocab = self.forward.config.vocab;
        let mut outcomes = vec![None; items.len()];
        let (all, results, threads) =
            (Shared::new(&mut logits), Shared::new(&mut outcomes), Shared::new(&mut self.scratch.threads));
        self.forward.pool.run(items.len(), &|task, thread| {
            let Rows { item, ref rows, draw } = items[task];
            // SAFETY: each task has its own item with rows and outcome, and each thread its own scratch.
            let (logits, outcome, scratch) = unsafe {
                (all.part(rows.start * vocab, rows.len() * vocab), results.part(task, 1), threads.part(thread, 1))
            };
            outcome[0] = match draw {
                Some(draw) => scratch[0].host.draw(logits, length(item), draw).map(Outcome::Token),
                None if logits.iter().any(|logit| logit.is_nan()) => None,
                None => Some(Outcome::Logits(logits.to_vec())),
            };
        });
        outcomes
    }
}
