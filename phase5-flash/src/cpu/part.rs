//! The new tokens of each sequence in a step.

use phase1_loading::AttentionKind;

use super::cache::PageList;

/// The new tokens of one sequence in a step.
#[derive(Clone, Copy)]
pub(super) struct NewTokens {
    /// Index of the first token among all tokens of the step, and the number of tokens.
    pub first: usize,
    pub count: usize,
    /// Position of the first token in its sequence.
    pub start: usize,
}

/// The new tokens of one sequence, and its pages.
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
