//! The engines by name.

use clap::ValueEnum;

/// The engines, each of which a phase adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// Computes the whole text again for every token (phase 2).
    Reference,
    /// Caches keys and values (phase 3).
    Cached,
    /// Flash attention and fused kernels (phase 5).
    Flash,
}

impl EngineKind {
    pub const ALL: [EngineKind; 3] = [EngineKind::Reference, EngineKind::Cached, EngineKind::Flash];

    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Reference => "reference",
            EngineKind::Cached => "cached",
            EngineKind::Flash => "flash",
        }
    }

    pub fn phase(self) -> u8 {
        match self {
            EngineKind::Reference => 2,
            EngineKind::Cached => 3,
            EngineKind::Flash => 5,
        }
    }
}
