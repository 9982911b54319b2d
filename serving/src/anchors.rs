//! Anchors: the lengths at which a prompt's sequence is forked for later prompts.

use std::collections::VecDeque;

use crate::prefix_cache::EntryKind;

/// A long prompt is forked at each multiple of this number of tokens, for later prompts that differ from it in the middle.
const FORK_INTERVAL: usize = 2048;
/// The fewest tokens that a fork must save. Computing fewer again costs less than the pages that the fork would hold.
const MIN_SAVED_TOKENS: usize = 16;

/// The lengths at which a prompt's sequence is forked, shortest first. A fork shares all pages with the sequence except a partial last
/// page, and keeps alive the pages of sliding layers that are needed to continue from there. The lengths are:
///
/// - The end of the prompt. The next prompt of a chat repeats this prompt, but not the generated text, because earlier reasoning is left
///   out.
/// - `shared`, the length at which the prompt begins to differ from all cached ones. Two chats with the same instructions differ after the
///   instructions, and a third chat will differ there too (as in Marconi, Pan et al., 2024, arXiv:2411.19379).
/// - Regular intervals, for a long text with a changed end.
///
/// Lengths that save too few tokens beyond the `cached` ones are left out.
pub(crate) fn anchors(prompt: usize, cached: usize, shared: usize) -> VecDeque<usize> {
    let regular = (1..).map(|count| count * FORK_INTERVAL).take_while(|&length| length < prompt);
    let mut lengths: Vec<usize> = regular.chain([shared.min(prompt), prompt]).collect();
    lengths.retain(|&length| length >= cached + MIN_SAVED_TOKENS);
    lengths.sort_unstable();
    lengths.dedup();
    lengths.into()
}

/// The kind of the entry at an anchor.
pub(crate) fn entry_kind(length: usize, prompt: usize) -> EntryKind {
    match length {
        _ if length == prompt => EntryKind::End,
        _ if length.is_multiple_of(FORK_INTERVAL) => EntryKind::Interval,
        _ => EntryKind::Branch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_at_branch_interval_and_end() {
        assert_eq!(anchors(100, 0, 0), [100]);
        assert_eq!(anchors(100, 0, 40), [40, 100]);
        assert_eq!(anchors(5000, 0, 40), [40, 2048, 4096, 5000]);
        assert_eq!(anchors(5000, 2040, 2045), [4096, 5000]);
        assert_eq!(anchors(100, 99, 100), [0usize; 0]);
        assert_eq!(anchors(100, 0, 100), [100]);
    }

    #[test]
    fn each_anchor_has_its_kind() {
        let kinds = [40, 2048, 4096, 5000].map(|length| entry_kind(length, 5000));
        assert_eq!(kinds, [EntryKind::Branch, EntryKind::Interval, EntryKind::Interval, EntryKind::End]);
        assert_eq!(entry_kind(4096, 4096), EntryKind::End);
    }
}
