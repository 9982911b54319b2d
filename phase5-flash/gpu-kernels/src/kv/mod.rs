//! Keys and values in pages of [`PAGE`] positions.

mod layout;
mod pages;

pub use layout::{KvRow, PAGE};
pub(crate) use layout::{cached_vector, piece_vector, read_piece, write_piece};
pub use pages::{KvCache, KvPool, NO_PAGE, prepare_pages};
