//! The peers by name, and the programs that run them.

use std::path::PathBuf;

/// Another implementation of gpt-oss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// mlx-lm, on Metal or CUDA, and on the CPU in f32.
    Mlx,
    /// llama.cpp through llama-cpp-python.
    LlamaCpp,
}

impl Peer {
    pub const ALL: [Peer; 2] = [Peer::Mlx, Peer::LlamaCpp];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Peer::Mlx => "mlx",
            Peer::LlamaCpp => "llama.cpp",
        }
    }

    /// The name that its authors use.
    pub const fn title(self) -> &'static str {
        match self {
            Peer::Mlx => "MLX",
            Peer::LlamaCpp => "llama.cpp",
        }
    }

    /// The environment variable that selects a Python with this peer's packages, instead of the installed one.
    pub const fn python_variable(self) -> &'static str {
        match self {
            Peer::Mlx => "GPTOSS_MLX_PYTHON",
            Peer::LlamaCpp => "GPTOSS_LLAMA_CPP_PYTHON",
        }
    }

    /// Its pinned packages, in pip's format.
    pub const fn requirements(self) -> &'static str {
        match self {
            Peer::Mlx => include_str!("../requirements/mlx.txt"),
            Peer::LlamaCpp => include_str!("../requirements/llama-cpp.txt"),
        }
    }

    /// The worker's program, to be run with `python -c`.
    fn program(self) -> String {
        let own = match self {
            Peer::Mlx => include_str!("../workers/mlx.py"),
            Peer::LlamaCpp => include_str!("../workers/llama_cpp.py"),
        };
        [include_str!("../workers/common.py"), own, include_str!("../workers/serve.py")].concat()
    }
}

/// The command that starts a worker.
#[derive(Clone, Debug)]
pub struct Launch {
    pub peer: Peer,
    pub python: PathBuf,
    /// The source text of the program.
    pub program: String,
}

impl Launch {
    /// The peer's worker in a Python that has its packages.
    pub fn new(peer: Peer, python: PathBuf) -> Launch {
        Launch { peer, python, program: peer.program() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_pinned() {
        for peer in Peer::ALL {
            let lines = || peer.requirements().lines().filter(|line| !line.starts_with('#') && !line.is_empty());
            assert!(lines().count() > 0);
            assert!(lines().all(|line| line.contains("==")), "{peer:?}");
        }
    }
}
