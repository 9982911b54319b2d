//! Products of few rows. Matrices are read once for every [`MatvecChoice::inputs_per_read`] rows of inputs, and experts once for each slot
//! or [pair](PAIR) of slots: from memory or, if a parallel row has already read them, from the cache.
//!
//! Where a device has pairs of 16-bit floats, MXFP4 and Q8_0 are multiplied in such pairs, with inputs scaled by a power of two per block
//! and sums of 8 terms in 16 bits, which are then added in f32.

mod dense;
mod experts;
mod inputs;
mod pairs;
mod plan;
mod rows;

pub use dense::InputNorm;
pub use experts::{Down, GateUp};
pub use pairs::PAIR;
pub use plan::{MatvecChoice, RowLoop, RowTile};
