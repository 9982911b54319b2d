//! Starts the real peers, MLX and llama.cpp, if they are installed.

use std::io::{Write, stderr};
use std::path::Path;

use gates::Check;
use peers::{Installation, Launch, Options, Peer, PeerEngine};
use phase1_loading::{Checkpoint, YarnRamp};

/// The environment variable that lists peers, separated by commas, which must be installed. CI sets it.
const REQUIRED: &str = "GPTOSS_REQUIRED_PEERS";

/// How to start a peer. If it is not installed, prints that `test` did not run.
///
/// # Panics
/// If the peer is required but not installed.
pub fn launch(peer: Peer, test: &str) -> Option<Launch> {
    let folder = phase4_profiling::cache_directory().unwrap_or_default().join("peers");
    match Installation::find(peer, &folder) {
        Ok(found) => Some(Launch::new(peer, found.python)),
        Err(error) => {
            let required = std::env::var(REQUIRED).unwrap_or_default();
            assert!(!required.split(',').any(|name| name == peer.name()), "{error}");
            // Written directly to stderr, because the test harness hides the output of passing tests.
            let _ = writeln!(stderr(), "NOT RUN: {test}: {error}");
            None
        }
    }
}

/// A model with this ramp, in a peer on the CPU.
pub fn start(launch: &Launch, model: &Path, ramp: YarnRamp) -> (PeerEngine, Checkpoint) {
    let mut checkpoint = Checkpoint::open(model).expect("opens");
    checkpoint.config.rope.ramp = ramp;
    let options = Options { device: "cpu", dtype: Some("float32"), ..Options::default() };
    let engine = PeerEngine::start(launch, &checkpoint, model, &options);
    (engine.unwrap_or_else(|error| panic!("{}: {error}", model.display())), checkpoint)
}

pub fn assert_passed(checks: &[Check]) {
    assert!(!checks.is_empty());
    let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
