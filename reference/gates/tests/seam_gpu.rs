//! The trait `Engine` under a stress test, with NaN and with bad requests, on a GPU or a software rasterizer.

mod stressed;

use gates::nan;
use gates::refusals::refuse_all;
use gptoss_reference::{Case, test_seed};
use phase1_loading::Checkpoint;
use phase2_forward::{ComputeDevice, Engine};
use phase5_flash::gpu::{GpuEngine, Options};

use stressed::{KV_BYTES, PAGE, cached, run, write};

#[test]
fn phase_5_batch_results_equal_single_results() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    let load = |checkpoint: &Checkpoint| -> Box<dyn Engine> {
        let options = Options { exact: true, kv_bytes: Some(KV_BYTES), ..Options::default() };
        let engine = GpuEngine::load(checkpoint, &gpu, options, &mut |_, _| ()).expect("loads");
        // One page is for padding.
        assert_eq!(engine.capacity().pages_total, 17);
        assert!(engine.capacity().steps_in_flight > 1);
        Box::new(engine)
    };
    let happened = run(3, 20, load, cached);
    assert!(happened.forked > 0 && happened.cut_back > 0 && happened.restored > 0, "{}: {happened:?}", gpu.name);
    assert!(happened.full > 0, "{}: {happened:?}", gpu.name);
}

#[test]
fn nan_does_not_spread_to_other_sequences() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    let (_directory, whole) = write(test_seed());
    let mut with_nan = Checkpoint::open(&whole.path).expect("opens");
    nan::insert_nan(&mut with_nan);
    // One page is for padding.
    let kv_bytes = Some((nan::PAGES as u64 + 1) * PAGE);
    let options = Options { exact: true, kv_bytes, ..Options::default() };
    let [mut with_nan, mut whole] = [&with_nan, &whole]
        .map(|checkpoint| GpuEngine::load(checkpoint, &gpu, options, &mut |_, _| ()).expect("loads"));
    nan::check_isolation(&mut with_nan, &mut whole);
    nan::check_isolation_in_flight(&mut with_nan, &mut whole);
}

#[test]
fn bad_requests_are_refused() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    let checkpoint = Checkpoint::open(&Case::committed().remove(0).model()).expect("opens");
    let options = Options { exact: true, ..Options::default() };
    let mut engine = GpuEngine::load(&checkpoint, &gpu, options, &mut |_, _| ()).expect("loads");
    let sentences = refuse_all(&mut engine);
    // The CPU's engines do not limit the number of tokens per step, so their refusals do not include this one.
    assert!(sentences.iter().any(|sentence| sentence.contains("this engine takes at most")), "{sentences:#?}");
}
