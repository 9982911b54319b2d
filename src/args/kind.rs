//! The engines by name.

use clap::ValueEnum;
use peers::Peer;

/// The engines: those that a phase adds, and peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// Computes the whole text again for every token (phase 2).
    Reference,
    /// Caches keys and values (phase 3).
    Cached,
    /// Flash attention and fused kernels (phase 5).
    Flash,
    /// mlx-lm, to compare with; `gptoss peers install mlx` fetches it.
    Mlx,
    /// llama.cpp, to compare with; `gptoss peers install llama.cpp` fetches it.
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

impl EngineKind {
    pub const ALL: [EngineKind; 5] =
        [EngineKind::Reference, EngineKind::Cached, EngineKind::Flash, EngineKind::Mlx, EngineKind::LlamaCpp];

    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Reference => "reference",
            EngineKind::Cached => "cached",
            EngineKind::Flash => "flash",
            EngineKind::Mlx => Peer::Mlx.name(),
            EngineKind::LlamaCpp => Peer::LlamaCpp.name(),
        }
    }

    /// The phase that adds the engine; none adds a peer.
    pub fn phase(self) -> Option<u8> {
        match self {
            EngineKind::Reference => Some(2),
            EngineKind::Cached => Some(3),
            EngineKind::Flash => Some(5),
            EngineKind::Mlx | EngineKind::LlamaCpp => None,
        }
    }

    pub fn peer(self) -> Option<Peer> {
        match self {
            EngineKind::Mlx => Some(Peer::Mlx),
            EngineKind::LlamaCpp => Some(Peer::LlamaCpp),
            _ => None,
        }
    }

    /// `phase 5`, or a peer as its makers write it.
    pub fn title(self) -> String {
        let phase = self.phase().map(|phase| format!("phase {phase}"));
        phase.or_else(|| self.peer().map(|peer| peer.title().to_owned())).unwrap_or_default()
    }
}
