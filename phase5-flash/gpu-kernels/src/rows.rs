//! The rows of a pass: new tokens, one below the other.

/// Words that describe a row on the device: token, position, slot, and [`TAKES_DRAWN`] or 0.
pub const ROW_WORDS: u32 = 4;
/// In a row's last word: the token is the one that its slot drew last, whatever the first word says.
pub(crate) const TAKES_DRAWN: u32 = 1;

/// A new token and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// `None` for the token that its slot drew last, which the host need not know.
    pub token: Option<u32>,
    pub position: u32,
    /// The row of the page table that belongs to the token's sequence.
    pub slot: u32,
}

impl Row {
    pub fn words(self) -> [u32; ROW_WORDS as usize] {
        let flag = if self.token.is_some() { 0 } else { TAKES_DRAWN };
        [self.token.unwrap_or(0), self.position, self.slot, flag]
    }
}
