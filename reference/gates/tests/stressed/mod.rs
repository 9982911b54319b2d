//! Random models for the tests of the trait `Engine`, and a function that runs its stress test on them.

use gates::seam::{Events, stress};
use gptoss_reference::{Random, test_seed};
use phase1_loading::Checkpoint;
use phase2_forward::{ComputeDevice, Engine, GptOss};
use phase3_kvcache::CachedEngine;
use synthetic::SyntheticModel;

/// Bytes of a page of the models' f32 cache: keys and values of 64 positions, for 2 heads of 32 values, in two pools of memory. The n-th
/// full and the n-th sliding layer share a pool, and the models have 2 sliding layers.
pub const PAGE: u64 = 2 * 64 * 2 * 32 * 4 * 2;
/// A cache with room for one request, but not for all that run at the same time.
pub const KV_BYTES: u64 = 18 * PAGE;

/// A new model for a seed.
pub fn write(seed: u64) -> (tempfile::TempDir, Checkpoint) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    let nano = SyntheticModel::preset("nano").expect("a preset");
    // A short window, so that sliding layers free pages. Every token uses all experts, because otherwise rounding could change the choice
    // of experts.
    let model = SyntheticModel { sliding_window: 20, layers: 3, experts: 4, experts_per_token: 4, ..nano };
    model.write(&path, seed, &mut |_, _| ()).expect("written");
    let checkpoint = Checkpoint::open(&path).expect("opens");
    (directory, checkpoint)
}

/// Phase 3's engine on the CPU.
pub fn cached(checkpoint: &Checkpoint) -> Box<dyn Engine> {
    let device = ComputeDevice::cpu("a test");
    Box::new(CachedEngine::new(GptOss::load(checkpoint, device, &mut |_, _| ()).expect("loads")))
}

/// Runs `requests` requests together on an engine, and each alone on another, for each of `count` seeds. Returns the sum of the events. A
/// failure of [`stress`] names the seed of its round; `TEST_SEED` set to it makes this round the first.
pub fn run(
    count: usize,
    requests: usize,
    together: impl Fn(&Checkpoint) -> Box<dyn Engine>,
    alone: impl Fn(&Checkpoint) -> Box<dyn Engine>,
) -> Events {
    let mut all = Events::default();
    let mut seed = test_seed();
    for _ in 0..count {
        let (_directory, checkpoint) = write(seed);
        all += stress(&mut *together(&checkpoint), &mut *alone(&checkpoint), seed, requests);
        seed = Random::new(seed).bits();
    }
    all
}
