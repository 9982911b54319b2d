//! The command for MLX and llama.cpp.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use peers::Peer;

use super::values::peer;

/// Install MLX and llama.cpp for comparison, or show where they are.
#[derive(Args)]
pub struct Peers {
    #[command(subcommand)]
    pub action: PeersAction,
}

#[derive(Subcommand)]
pub enum PeersAction {
    /// Create a virtual environment with a peer's packages in pinned versions, and print its Python. llama.cpp is compiled; CMAKE_ARGS
    /// selects its backends.
    Install {
        #[arg(value_parser = peer())]
        name: Peer,
        /// The Python to create the environment with, 3.11 or newer.
        #[arg(long, value_name = "F", default_value = "python3")]
        python: PathBuf,
    },
    /// Show which peers are installed, with their Python and the pinned versions of their packages.
    List {
        #[arg(long)]
        json: bool,
    },
}
