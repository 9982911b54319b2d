//! MLX and llama.cpp as engines, for comparison with the project's own.
//!
//! Each runs in its own Python process, started by [`PeerEngine::start`] with a program that this crate contains (`workers/`).
//! [`install()`] creates the virtual environment that it needs. Requests and replies are frames on the process's stdin and stdout
//! (`frame.rs`). If a process dies, hangs or sends invalid replies, the request and all later ones fail with that reason.
//!
//! No other engine depends on this crate, and it computes nothing itself.

mod engine;
mod frame;
mod install;
mod peer;
mod protocol;
mod worker;

pub use engine::{Options, PeerEngine};
pub use install::{InstallError, Installation, install};
pub use peer::{Launch, Peer};
pub use protocol::{Hello, Stats};
