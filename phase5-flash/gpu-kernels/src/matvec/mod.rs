//! Products of few rows. The weights are read separately for each row of inputs with experts, and for every
//! [`MatvecChoice::inputs_per_read`] rows with other matrices: from memory or, if a parallel row has already read them, from the cache.

mod dense;
mod experts;
mod plan;
mod rows;

pub use dense::InputNorm;
pub use experts::{Down, GateUp};
pub use plan::{MatvecChoice, RowLoop, RowTile};
