//! Tracks which tokens the text shown so far consists of.

use std::collections::VecDeque;

/// A queue of items, each of which stands for a number of bytes of text. Text may be shown later than its items arrive, and may end inside
/// an item.
#[derive(Debug)]
pub struct PendingTokens<T> {
    waiting: VecDeque<(T, usize)>,
    /// Bytes of the first queued item that have been shown.
    shown: usize,
}

impl<T> Default for PendingTokens<T> {
    fn default() -> PendingTokens<T> {
        PendingTokens { waiting: VecDeque::new(), shown: 0 }
    }
}

impl<T> PendingTokens<T> {
    /// Adds an item that stands for `bytes` bytes of text: 0 for a token that is only a part of a character and does not end it.
    pub fn push(&mut self, item: T, bytes: usize) {
        self.waiting.push_back((item, bytes));
    }

    /// Records that `bytes` more bytes are shown, and returns the items whose text is now shown completely.
    pub fn show(&mut self, bytes: usize) -> Vec<T> {
        self.shown += bytes;
        let mut whole = Vec::new();
        while let Some((_, length)) = self.waiting.front()
            && *length <= self.shown
        {
            self.shown -= length;
            whole.extend(self.waiting.pop_front().map(|(item, _)| item));
        }
        whole
    }

    /// Ends the text: returns the item that was shown only in part, if any, with the number of its shown bytes.
    pub fn cut(&mut self) -> Option<(T, usize)> {
        let shown = std::mem::take(&mut self.shown);
        let first = self.waiting.pop_front();
        self.waiting.clear();
        first.filter(|_| shown > 0).map(|(item, _)| (item, shown))
    }

    /// The remaining items, at the end of a text that was shown completely.
    pub fn rest(&mut self) -> Vec<T> {
        self.shown = 0;
        self.waiting.drain(..).map(|(item, _)| item).collect()
    }

    pub fn clear(&mut self) {
        self.shown = 0;
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::PendingTokens;

    #[test]
    fn tokens_are_returned_when_their_text_is_shown() {
        let mut pending = PendingTokens::default();
        pending.push("ab", 2);
        pending.push("half", 0);
        pending.push("é!", 3);
        assert!(pending.show(1).is_empty());
        assert_eq!(pending.show(1), ["ab", "half"]);
        assert!(pending.show(2).is_empty());
        assert_eq!(pending.cut(), Some(("é!", 2)));
        assert_eq!(pending.cut(), None);
        pending.push("c", 1);
        assert_eq!(pending.rest(), ["c"]);
    }
}
