//! MLX and llama.cpp as engines, to compare ours with.
//!
//! Each runs in a Python process of its own, started by [`PeerEngine::start`] with a program that is inside this crate (`workers/`).
//! [`install()`] makes the virtual environment that it needs. Requests and replies are frames on the process's stdin and stdout
//! (`frame.rs`); a process that dies, hangs or answers nonsense ends with an error that says so, and stays ended.
//!
//! No other engine depends on this crate, and it never computes anything itself.

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
