//! A profile as something to read: a table, a page, a flame graph, a trace, and the difference from another profile.
//!
//! A profile may come from a file that somebody edited: every report bears zero durations, empty steps and any name, and
//! prints `-` where there is no number.

mod compare;
mod flame;
mod html;
mod lanes;
mod table;
mod text;
mod trace;

pub use compare::{Change, Comparison, Side, compare};
pub use flame::{flame, folded};
pub use html::html;
pub use table::table;
pub use trace::trace;
