//! Products of few rows: each row reads the weights separately, from memory or from the cache that a parallel row has filled.

mod dense;
mod experts;
mod plan;
mod rows;

pub use dense::InputNorm;
pub use experts::{Down, GateUp};
pub use plan::{MatvecChoice, RowLoop, RowTile};
