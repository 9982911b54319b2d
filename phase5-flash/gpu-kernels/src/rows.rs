//! The rows of a pass, one per new token.

/// Words per row on the device: token, position, [slot](Row::slot), and `TAKES_DRAWN` or 0.
pub const ROW_WORDS: u32 = 4;
/// Flag in a row's last word: the token is the one that its slot drew last, and the first word is ignored.
pub(crate) const TAKES_DRAWN: u32 = 1;

/// A new token and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// `None` for the token that its slot drew last, which the host may not have read yet.
    pub token: Option<u32>,
    pub position: u32,
    /// The slot of the token's sequence: its row in the page table.
    pub slot: u32,
}

impl Row {
    pub fn words(self) -> [u32; ROW_WORDS as usize] {
        let flag = if self.token.is_some() { 0 } else { TAKES_DRAWN };
        [self.token.unwrap_or(0), self.position, self.slot, flag]
    }
}
