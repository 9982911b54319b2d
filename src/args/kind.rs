//! The engines by name.

use clap::ValueEnum;
use peers::Peer;

/// The engines: those of the phases, and peers, which are other programs that run gpt-oss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// Recomputes the whole text for every token (phase 2).
    Reference,
    /// Caches keys and values (phase 3).
    Cached,
    /// Flash attention and fused kernels (phase 5).
    Flash,
    /// mlx-lm, for comparison; install it with `gptoss peers install mlx`.
    Mlx,
    /// llama.cpp, for comparison; install it with `gptoss peers install llama.cpp`.
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

    /// The phase of the engine; `None` for a peer.
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

    /// `phase 5`, or the name that a peer's authors use.
    pub fn title(self) -> String {
        let phase = self.phase().map(|phase| format!("phase {phase}"));
        phase.or_else(|| self.peer().map(|peer| peer.title().to_owned())).unwrap_or_default()
    }
}
