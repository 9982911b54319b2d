//! A started engine: one of gptoss's own, or a peer in a separate process.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use peers::PeerEngine;
use phase2_forward::{Engine, Inspect};
use phase4_profiling::process;

pub enum Running {
    Ours(Box<dyn Inspect>),
    Peer(Box<PeerEngine>),
}

impl Running {
    pub fn into_engine(self) -> Box<dyn Engine> {
        match self {
            Running::Ours(engine) => engine,
            Running::Peer(engine) => engine,
        }
    }

    /// Peak resident memory including mapped file pages: of this process since the last call, or of a peer since its start. `None` if the
    /// platform or the peer does not report it.
    pub fn take_peak_resident_bytes(&mut self) -> Option<u64> {
        match self {
            Running::Ours(_) => process::take_peak_resident_bytes(),
            Running::Peer(engine) => engine.stats().ok()?.peak_resident_bytes,
        }
    }

    /// The peak GPU memory of a peer since its start, if the peer reports it.
    pub fn peak_device_bytes(&mut self) -> Option<u64> {
        match self {
            Running::Peer(engine) if engine.hello().device == "gpu" => engine.stats().ok()?.peak_device_bytes,
            _ => None,
        }
    }

    /// The versions of a peer's packages. gptoss's own engines have the version of this program.
    pub fn versions(&self) -> Option<&BTreeMap<String, String>> {
        match self {
            Running::Ours(_) => None,
            Running::Peer(engine) => Some(&engine.hello().versions),
        }
    }
}

impl Deref for Running {
    type Target = dyn Inspect;

    fn deref(&self) -> &Self::Target {
        match self {
            Running::Ours(engine) => &**engine,
            Running::Peer(engine) => &**engine,
        }
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Running::Ours(engine) => &mut **engine,
            Running::Peer(engine) => &mut **engine,
        }
    }
}
