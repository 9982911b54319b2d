//! Products of few rows: each row reads the weights separately, from memory or, if a parallel row has already read them, from the cache.

mod dense;
mod experts;
mod plan;
mod rows;

pub use dense::InputNorm;
pub use experts::{Down, GateUp};
pub use plan::{MatvecChoice, RowLoop, RowTile};
