//! Serving: many requests on one engine.
//!
//! [`scheduler`] is continuous batching as a plain loop over the seam of phase 2, [`prefix`] finds what is computed already, [`spill`] keeps it on disk, and
//! [`worker`] is the thread that owns the engine. Clients hand in a [`request::Request`] and hear [`request::Event`]s.
//! [`grammar`] limits what a request may generate. [`api`] is what clients reach it all by over HTTP.

mod anchors;
pub mod api;
pub mod grammar;
mod kept;
mod limits;
pub mod prefix;
pub mod request;
pub mod scheduler;
mod sequence;
pub mod spill;
pub mod statistics;
mod waiting;
pub mod worker;
