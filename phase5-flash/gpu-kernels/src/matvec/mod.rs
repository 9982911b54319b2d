//! Products of few rows: every row reads the weights for itself, from memory or from the cache that a neighbour filled.

mod dense;
mod experts;
mod plan;
mod rows;

pub use dense::InputNorm;
pub use experts::{Down, GateUp};
pub use plan::{MatvecChoice, RowTile, Walk};
