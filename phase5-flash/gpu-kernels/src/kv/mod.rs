//! Keys and values in pages of [`PAGE`] positions.

mod layout;
mod pages;

pub use layout::{KvRow, PAGE};
pub(crate) use layout::{append_to, cached_vector};
pub use pages::{KvCache, KvPool, NO_PAGE, prepare_pages};
