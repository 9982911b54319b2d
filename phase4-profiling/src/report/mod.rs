//! Reports of a profile: a table, an HTML page, a flame graph, a trace, and a comparison with another profile.
//!
//! A profile may come from an edited file: every report accepts zero durations, steps without spans and any name. Texts and pages show
//! a dash in place of values that are missing or not finite.

mod compare;
mod flame;
mod html;
mod lanes;
mod table;
mod text;
mod trace;

pub use compare::{Change, ProfileComparison, Side, compare};
pub use flame::{flame, folded};
pub use html::html;
pub use table::table;
pub use trace::trace;
