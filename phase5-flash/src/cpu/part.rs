//! What a step adds to each sequence.

use phase1_loading::AttentionKind;

use super::cache::PageList;

/// The new tokens of one sequence in a step.
#[derive(Clone, Copy)]
pub(super) struct NewTokens {
    /// The first one's row among all tokens of the step, and how many there are.
    pub first: usize,
    pub count: usize,
    /// The position of the first one.
    pub start: usize,
}

/// The same, and the pages that have room for them.
pub(super) struct Part<'a> {
    pub tokens: NewTokens,
    pub full: PageList<'a>,
    pub sliding: PageList<'a>,
}

impl<'a> Part<'a> {
    pub fn pages(&self, kind: AttentionKind) -> PageList<'a> {
        match kind {
            AttentionKind::Full => self.full,
            AttentionKind::Sliding => self.sliding,
        }
    }
}
