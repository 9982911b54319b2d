//! The lengths at which a prompt leaves forks behind for later prompts.

use std::collections::VecDeque;

use crate::kept::Place;

/// Prompts leave a fork behind each time they grow by this, for later ones that part from them in the middle.
const EVERY: usize = 2048;
/// Tokens that a fork must save: below, computing them again is cheaper than the pages that it holds.
const GAIN: usize = 16;

/// The lengths of forks, shortest first. A fork shares all pages but the last one of each kind, and keeps the pages of sliding layers
/// alive, without which nothing can go on from there.
///
/// - The end of the prompt. The next prompt of a chat repeats it; then its own text differs, since earlier reasoning is left out.
/// - Where it parts from what is known already, as two chats with the same instructions do: a third will part there too (as Marconi
///   has it, Pan et al., 2024, arXiv:2411.19379).
/// - Every now and then, for a long text with a changed end.
pub(crate) fn anchors(prompt: usize, cached: usize, shared: usize) -> VecDeque<usize> {
    let regular = (1..).map(|count| count * EVERY).take_while(|&length| length < prompt);
    let mut lengths: Vec<usize> = regular.chain([shared.min(prompt), prompt]).collect();
    lengths.retain(|&length| length >= cached + GAIN);
    lengths.sort_unstable();
    lengths.dedup();
    lengths.into()
}

/// Which of them a length is.
pub(crate) fn place_of(length: usize, prompt: usize) -> Place {
    match length {
        _ if length == prompt => Place::End,
        _ if length.is_multiple_of(EVERY) => Place::Between,
        _ => Place::Parting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_where_prompts_may_part() {
        assert_eq!(anchors(100, 0, 0), [100]);
        assert_eq!(anchors(100, 0, 40), [40, 100]);
        assert_eq!(anchors(5000, 0, 40), [40, 2048, 4096, 5000]);
        assert_eq!(anchors(5000, 2040, 2045), [4096, 5000]);
        assert_eq!(anchors(100, 99, 100), [0usize; 0]);
        assert_eq!(anchors(100, 0, 100), [100]);
    }

    #[test]
    fn each_anchor_has_its_place() {
        let places = [40, 2048, 4096, 5000].map(|length| place_of(length, 5000));
        assert_eq!(places, [Place::Parting, Place::Between, Place::Between, Place::End]);
        assert_eq!(place_of(4096, 4096), Place::End);
    }
}
