//! The number of tokens that each running sequence is fed in the next step.

use crate::limits::Limits;
use crate::sequence::Sequence;

/// One token of every sequence that decodes, and chunks of prompts up to a limit.
pub(crate) fn plan(limits: &Limits, running: &[Sequence]) -> Vec<usize> {
    let Limits { context, tokens_per_step, prompt_tokens, alone, .. } = *limits;
    let due: Vec<usize> = running.iter().map(|sequence| sequence.due(context)).collect();
    let mut counts: Vec<usize> = due.iter().map(|&due| usize::from(due == 1)).collect();
    let most = if running.iter().any(Sequence::is_decoding) { prompt_tokens } else { alone };
    let mut budget = most.min(tokens_per_step - counts.iter().sum::<usize>());

    let mut prompts: Vec<usize> = (0..due.len()).filter(|&place| due[place] > 1).collect();
    let mut grant = |place: usize, most: usize| {
        let wanted = due[place].min(running[place].tokens_to_anchor()) - counts[place];
        let granted = wanted.min(most).min(budget);
        counts[place] += granted;
        budget -= granted;
    };
    // The oldest prompt gets half of the budget, so that it progresses; the rest goes to the shortest, which minimizes waiting.
    if let Some((&mut oldest, others)) = prompts.split_first_mut() {
        let share = if others.is_empty() { usize::MAX } else { most.div_ceil(2) };
        grant(oldest, share);
        others.sort_by_key(|&place| due[place]);
        others.iter().for_each(|&place| grant(place, usize::MAX));
        grant(oldest, usize::MAX);
    }

    // A prompt that has little left after its chunk is fed to its end, beyond the limit: a separate step for the rest would delay its first
    // token by more than the extra tokens prolong this step.
    let free = tokens_per_step - counts.iter().sum::<usize>();
    let mut extra = (most / 4).min(alone.saturating_sub(most)).min(free);
    for place in prompts {
        let rest = due[place] - counts[place];
        if counts[place] > 0 && rest <= extra && due[place] <= running[place].tokens_to_anchor() {
            counts[place] += rest;
            extra -= rest;
        }
    }
    counts
}
