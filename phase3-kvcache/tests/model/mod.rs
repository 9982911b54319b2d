//! Small random models, different in every run.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gptoss_reference::test_seed;
use phase1_loading::Checkpoint;
use phase2_forward::{ComputeDevice, GptOss};
use synthetic::SyntheticModel;

/// Positions that a sliding layer keeps: few enough that its ring wraps several times.
pub const WINDOW: usize = 12;

pub fn checkpoint() -> Checkpoint {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| written(WINDOW));
    // Printed only if the test fails.
    thread_local!(static SAID: Cell<bool> = const { Cell::new(false) });
    if !SAID.replace(true) {
        println!("{}", weights());
    }
    Checkpoint::open(path).expect("opens")
}

pub fn model() -> GptOss {
    load(&checkpoint())
}

pub fn written(window: usize) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    write(&path, window);
    (directory, path)
}

fn write(path: &Path, window: usize) {
    let nano = SyntheticModel::preset("nano").expect("a preset");
    // All experts for every token, so that a small error of a cache cannot change the choice of experts.
    let model = SyntheticModel { sliding_window: window, layers: 3, experts: 4, experts_per_token: 4, ..nano };
    model.write(path, seed(), &mut |_, _| ()).expect("written");
}

/// The seed of all weights.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(test_seed)
}

/// The description of the weights that failure messages contain.
pub fn weights() -> String {
    format!("weights of TEST_SEED={}", seed())
}

pub fn load(checkpoint: &Checkpoint) -> GptOss {
    GptOss::load(checkpoint, ComputeDevice::cpu("a test"), &mut |_, _| ()).expect("loads")
}
