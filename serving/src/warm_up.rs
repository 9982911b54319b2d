//! Steps that are computed while a server is idle, so that a GPU has compiled its kernels before requests need them. A kernel is compiled
//! at its first launch, and the kernels that a step launches depend on its numbers of rows (tokens) and sequences.

use std::collections::VecDeque;

use phase2_forward::{Capacity, Draw, Engine, EngineError, Sampling, SequenceId, Want, Work};

/// Numbers of tokens of the prompts: for few rows per expert, for many, and for so many positions that the decoding step after the prompt
/// splits attention.
const PROMPTS: [usize; 3] = [32, 128, 512];
/// The two ways to draw: with the default temperature of requests, and with temperature 0.
const DRAWS: [Draw<'static>; 2] =
    [Draw { sampling: Sampling { temperature: 1.0, ..Sampling::GREEDY }, ..Draw::GREEDY }, Draw::GREEDY];

/// The steps that have not been computed yet.
pub(crate) struct WarmUp {
    /// For each step, the number of tokens of each of its sequences.
    steps: VecDeque<Vec<usize>>,
}

impl WarmUp {
    /// Steps for an engine that computes up to `running` requests together. There are none if the engine accepts only one step at a time:
    /// phase 5 accepts two on a GPU, and one on the CPU, where no kernels are compiled.
    pub fn new(capacity: Capacity, running: usize) -> WarmUp {
        if capacity.steps_in_flight < 2 {
            return WarmUp::none();
        }
        let decoding =
            (0..).map(|power| 1 << power).take_while(|&rows| rows < 2 * running).map(|rows| rows.min(running));
        let prompts = PROMPTS.into_iter().flat_map(|tokens| [vec![tokens], vec![tokens, 1]]);
        let mut steps: VecDeque<Vec<usize>> = prompts.chain(decoding.map(|rows| vec![1; rows])).collect();
        steps.retain(|step| step.len() <= running && step.iter().sum::<usize>() <= capacity.tokens_per_step);
        WarmUp { steps }
    }

    pub fn none() -> WarmUp {
        WarmUp { steps: VecDeque::new() }
    }

    /// Computes the next step, and a decoding step after it, for each way to draw. Their sequences are used by nothing else, and are
    /// released afterwards. Returns false if no step is left, or if the engine refused one.
    ///
    /// # Errors
    /// The device failed.
    pub fn advance(&mut self, engine: &mut dyn Engine) -> Result<bool, EngineError> {
        let Some(step) = self.steps.pop_front() else { return Ok(false) };
        let tokens = vec![0; step.iter().copied().max().unwrap_or(0)];
        // Numbers from the top of the range: the scheduler counts its sequences up from the bottom.
        let sequence = |index: usize| SequenceId::MAX - index as SequenceId;
        for draw in DRAWS {
            let feeding =
                |(index, &count): (usize, &usize)| Work::tokens(sequence(index), &tokens[..count], Want::Token(draw));
            let decoding = |index: usize| Work::decode(sequence(index), draw);
            let prompts: Vec<Work<'_>> = step.iter().enumerate().map(feeding).collect();
            let next: Vec<Work<'_>> = (0..step.len()).map(decoding).collect();
            let computed = match compute(engine, &prompts) {
                Ok(true) => compute(engine, &next),
                other => other,
            };
            (0..step.len()).for_each(|index| engine.release(sequence(index)));
            if !computed? {
                // Gives up all other steps too, although smaller ones might be accepted.
                self.steps.clear();
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Computes a step; returns false if the engine refuses it, for example because the sequences of the prefix cache take all pages.
fn compute(engine: &mut dyn Engine, work: &[Work<'_>]) -> Result<bool, EngineError> {
    let Ok(ticket) = engine.submit(work) else { return Ok(false) };
    engine.collect(ticket)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_every_power_of_two_of_sequences_and_the_most() {
        let capacity = Capacity { steps_in_flight: 2, tokens_per_step: 512, ..Capacity::UNBOUNDED };
        let sizes = |running| -> Vec<(usize, usize)> {
            let steps = WarmUp::new(capacity, running).steps;
            steps.iter().map(|step| (step.len(), step.iter().sum())).collect()
        };
        assert_eq!(sizes(1), [(1, 32), (1, 128), (1, 512), (1, 1)]);
        assert_eq!(sizes(6), [(1, 32), (2, 33), (1, 128), (2, 129), (1, 512), (1, 1), (2, 2), (4, 4), (6, 6)]);
        assert_eq!(sizes(8)[5..], [(1, 1), (2, 2), (4, 4), (8, 8)]);
        let small = WarmUp::new(Capacity { tokens_per_step: 16, ..capacity }, 64).steps;
        assert_eq!(small.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 4, 8, 16]);
        assert!(WarmUp::new(Capacity::UNBOUNDED, 8).steps.is_empty());
    }
}
