//! The choice of experts and, for many rows, the steps before and after the experts' products: sorting slots by expert, and summing the
//! products of each row.
//!
//! A slot is a pair of a row and one of its `chosen` experts: row i has the slots `i · chosen` to `i · chosen + chosen − 1`.

mod combine;
mod router;
mod sort;

pub use combine::Combine;
pub use router::{ExpertChoice, Route};
pub use sort::{SlotSort, tile_words};

pub(crate) use router::choose;
pub(crate) use sort::{SlotTile, most_tiles};
