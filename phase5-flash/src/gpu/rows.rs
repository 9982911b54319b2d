//! The rows of a pass: new tokens of any sequences, one below the other.

/// Words that describe a row on the device: token, position, sequence slot, and steps since they were written.
pub(crate) const ROW_WORDS: u32 = 4;

/// A new token and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub token: u32,
    pub position: u32,
    /// The sequence's number in the page tables.
    pub slot: u32,
}

impl Row {
    pub fn words(self) -> [u32; ROW_WORDS as usize] {
        [self.token, self.position, self.slot, 0]
    }
}
