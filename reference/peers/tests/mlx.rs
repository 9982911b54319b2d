//! Compares MLX, run through its worker, with the goldens, which MLX computed without the worker, and with phase 3.

mod real;

use gates::{engine, refusals, seam};
use gptoss_reference::{Case, Folder, Limit, test_seed};
use peers::{Options, Peer, PeerEngine};
use phase1_loading::{Checkpoint, YarnRamp};
use phase2_forward::{ComputeDevice, Engine, EngineError, GptOss};
use phase3_kvcache::CachedEngine;
use synthetic::SyntheticModel;

use real::{assert_passed, launch, start};

#[test]
fn mlx_equals_the_goldens() {
    let Some(launch) = launch(Peer::Mlx, "mlx_equals_the_goldens") else { return };
    for case in Case::committed() {
        for ramp in YarnRamp::ALL {
            let (mut mlx, checkpoint) = start(&launch, &case.model(), ramp);
            assert_passed(&engine::run(&case, ramp, &mut mlx, &checkpoint, Limit::F32).expect("it runs"));
        }
    }
}

#[test]
fn mlx_reads_every_kind_of_folder() {
    let Some(launch) = launch(Peer::Mlx, "mlx_reads_every_kind_of_folder") else { return };
    let folders = Folder::committed();
    assert!(!folders.is_empty());
    for folder in folders {
        for ramp in YarnRamp::ALL {
            let (mut mlx, _) = start(&launch, &folder.path, ramp);
            assert_passed(&[engine::run_folder(&folder, ramp, &mut mlx, Limit::F32).expect("it runs")]);
        }
    }
}

/// Sequences that join, leave, are forked and truncated, in batches.
#[test]
fn mlx_batches_equal_our_engine() {
    let Some(launch) = launch(Peer::Mlx, "mlx_batches_equal_our_engine") else { return };
    let seed = test_seed();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    let nano = SyntheticModel::preset("nano").expect("a preset");
    // A short window, so that MLX's rotating cache wraps; all experts for every token, so that rounding cannot change their choice.
    let model = SyntheticModel { sliding_window: 20, layers: 3, experts: 4, experts_per_token: 4, ..nano };
    model.write(&path, seed, &mut |_, _| ()).expect("written");
    let (mut mlx, checkpoint) = start(&launch, &path, YarnRamp::Exact);
    let device = ComputeDevice::cpu("a test");
    let mut ours = CachedEngine::new(GptOss::load(&checkpoint, device, &mut |_, _| ()).expect("loads"));
    let happened = seam::stress(&mut mlx, &mut ours, seed, 12);
    assert!(happened.forked > 0 && happened.cut_back > 0, "{happened:?}");
    assert_eq!((happened.restored, happened.full), (0, 0), "{happened:?}");
}

#[test]
fn mlx_refuses_bad_requests() {
    let Some(launch) = launch(Peer::Mlx, "mlx_refuses_bad_requests") else { return };
    let (mut mlx, _) = start(&launch, &Case::committed().remove(0).model(), YarnRamp::Exact);
    assert!(!refusals::refuse_all(&mut mlx).is_empty());
    // Positions that have left the window cannot be restored.
    let window = mlx.config().sliding_window;
    mlx.last_logits(0, &vec![1; window + 1]).expect("logits");
    let sentence = mlx.truncate(0, 1).expect_err("the window has wrapped").to_string();
    assert_eq!(sentence, format!("sequence 0 has {} tokens and cannot go back to 1", window + 1));
}

#[test]
fn mlx_refuses_bf16_on_the_cpu() {
    let Some(launch) = launch(Peer::Mlx, "mlx_refuses_bf16_on_the_cpu") else { return };
    let path = Case::committed().remove(0).model();
    let checkpoint = Checkpoint::open(&path).expect("opens");
    let options = Options { device: "cpu", dtype: Some("bfloat16"), ..Options::default() };
    match PeerEngine::start(&launch, &checkpoint, &path, &options) {
        Err(EngineError::Unsupported(sentence)) => assert!(sentence.contains("float32"), "{sentence}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("bf16 was accepted"),
    }
}
