//! The trait `Engine` under a stress test and with bad requests, on the engines of the CPU.

mod stressed;

use gates::nan;
use gates::refusals::refuse_all;
use gptoss_reference::{Case, test_seed};
use phase1_loading::Checkpoint;
use phase2_forward::{ComputeDevice, Engine, GptOss, RecomputeEngine};
use phase3_kvcache::CacheType;
use phase5_flash::cpu::Isa;
use phase5_flash::{CpuEngine, CpuOptions};

use stressed::{KV_BYTES, PAGE, cached, run, write};

fn recompute(checkpoint: &Checkpoint) -> Box<dyn Engine> {
    let device = ComputeDevice::cpu("a test");
    Box::new(RecomputeEngine::new(GptOss::load(checkpoint, device, &mut |_, _| ()).expect("loads")))
}

#[test]
fn phase_2_batch_results_equal_single_results() {
    let happened = run(2, 12, recompute, cached);
    assert!(happened.forked > 0 && happened.cut_back > 0, "{happened:?}");
    assert_eq!((happened.restored, happened.full), (0, 0), "{happened:?}");
}

#[test]
fn phase_3_batch_results_equal_single_results() {
    let happened = run(3, 20, cached, recompute);
    assert!(happened.forked > 0 && happened.cut_back > 0 && happened.restored > 0, "{happened:?}");
    assert_eq!(happened.full, 0, "{happened:?}");
}

#[test]
fn phase_5_batch_results_equal_single_results() {
    for isa in Isa::all() {
        let load = |checkpoint: &Checkpoint| -> Box<dyn Engine> {
            // Three threads on any machine: more than one, and not a divisor of typical sizes.
            let options = CpuOptions {
                threads: Some(3),
                exact: true,
                isa: Some(isa),
                kv_bytes: Some(KV_BYTES),
                ..CpuOptions::default()
            };
            let engine = CpuEngine::load(checkpoint, options).expect("loads");
            assert_eq!(engine.capacity().pages_total, 18);
            Box::new(engine)
        };
        let happened = run(4, 30, load, cached);
        assert!(happened.forked > 0 && happened.cut_back > 0 && happened.restored > 0, "{isa}: {happened:?}");
        assert!(happened.full > 0, "{isa}: {happened:?}");
    }
}

#[test]
fn nan_does_not_spread_to_other_sequences() {
    let (_directory, whole) = write(test_seed());
    let mut with_nan = Checkpoint::open(&whole.path).expect("opens");
    nan::insert_nan(&mut with_nan);
    for load in [recompute, cached] {
        nan::check_isolation(&mut *load(&with_nan), &mut *load(&whole));
    }
    for exact in [false, true] {
        let kv_bytes = Some(nan::PAGES as u64 * PAGE);
        let options =
            CpuOptions { threads: Some(2), exact, kv: Some(CacheType::F32), kv_bytes, ..CpuOptions::default() };
        let [mut with_nan, mut whole] =
            [&with_nan, &whole].map(|checkpoint| CpuEngine::load(checkpoint, options).expect("loads"));
        nan::check_isolation(&mut with_nan, &mut whole);
    }
}

#[test]
fn bad_requests_are_refused() {
    let checkpoint = Checkpoint::open(&Case::committed().remove(0).model()).expect("opens");
    let sentences = refuse_all(&mut *recompute(&checkpoint));
    insta::assert_snapshot!(sentences.join("\n"));
    assert_eq!(refuse_all(&mut *cached(&checkpoint)), sentences);
    for exact in [false, true] {
        let options = CpuOptions { threads: Some(3), exact, ..CpuOptions::default() };
        let mut flash = CpuEngine::load(&checkpoint, options).expect("loads");
        assert_eq!(refuse_all(&mut flash), sentences);
    }
}
