//! The choice of experts, and what surrounds products with experts of many rows: sorting slots by expert before, adding up after.
//!
//! A slot is one choice of one row: row i's are slots `i · chosen` to `i · chosen + chosen − 1`.

mod combine;
mod router;
mod sort;

pub use combine::Combine;
pub use router::{ExpertChoice, Route};
pub use sort::{SlotSort, tile_words};

pub(crate) use router::choose;
pub(crate) use sort::{SlotTile, most_tiles};
