//! Serving: many requests on one engine.
//!
//! [`scheduler`] is continuous batching as a loop over the trait `Engine` of phase 2, [`prefix`] finds cached beginnings of prompts,
//! [`spill`] stores sequences on disk, and [`worker`] is the thread that owns the engine. Clients submit a [`request::Request`] and receive
//! [`request::Event`]s. [`grammar`] constrains what a request may generate. [`api`] provides all of this over HTTP.

mod anchors;
pub mod api;
pub mod grammar;
mod limits;
mod pace;
mod plan;
pub mod prefix;
mod prefix_cache;
pub mod request;
pub mod scheduler;
mod sequence;
pub mod spill;
pub mod statistics;
mod waiting;
mod warm_up;
pub mod worker;
