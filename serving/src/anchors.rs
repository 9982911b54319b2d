//! Anchors: the lengths at which a prompt's sequence is forked for later prompts.

use std::collections::VecDeque;

use crate::kept::Place;

/// A long prompt is forked each time it has grown by this, for later prompts that differ from it in the middle.
const EVERY: usize = 2048;
/// Tokens that a fork must save: for fewer, computing them again is cheaper than the pages that the fork holds.
const GAIN: usize = 16;

/// The lengths of forks, shortest first. A fork shares all pages except the last one of each kind, and keeps alive the pages of sliding
/// layers that are needed to continue from there.
///
/// - The end of the prompt. The next prompt of a chat repeats it, but not the generated text, because earlier reasoning is left out.
/// - Where the prompt differs from all known ones, as two chats with the same instructions do: a third chat will differ there too (as in
///   Marconi, Pan et al., 2024, arXiv:2411.19379).
/// - At regular intervals, for a long text with a changed end.
pub(crate) fn anchors(prompt: usize, cached: usize, shared: usize) -> VecDeque<usize> {
    let regular = (1..).map(|count| count * EVERY).take_while(|&length| length < prompt);
    let mut lengths: Vec<usize> = regular.chain([shared.min(prompt), prompt]).collect();
    lengths.retain(|&length| length >= cached + GAIN);
    lengths.sort_unstable();
    lengths.dedup();
    lengths.into()
}

/// The kind of place that an anchor is.
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
