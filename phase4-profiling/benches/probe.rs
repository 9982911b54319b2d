//! The cost of a probe that is switched off: a decode step through [`NoProbe`], and the step's calls of the probe alone.
//!
//! `cargo bench -p phase4-profiling --bench probe` prints both times; the second divided by the first is the relative cost.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use phase1_loading::Checkpoint;
use phase2_forward::{ComputeDevice, Engine, GptOss, Inspect, NoProbe, Operation, Probe, Span, Want, Work};
use phase3_kvcache::CachedEngine;
use synthetic::SyntheticModel;

fn probe(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    let model = SyntheticModel::preset("nano").expect("a preset");
    model.write(&path, 0, &mut |_, _| ()).expect("the model is written");
    let checkpoint = Checkpoint::open(&path).expect("the model opens");
    let layers = checkpoint.config.layers();
    let device = ComputeDevice::cpu("chosen by the benchmark");
    let model = GptOss::load(&checkpoint, device, &mut |_, _| ()).expect("the model loads");
    let mut engine = CachedEngine::new(model);

    let mut group = c.benchmark_group("probe switched off, nano, cpu");
    group.bench_function("decode step", |bencher| {
        bencher.iter(|| {
            let work = Work::tokens(0, &[1], Want::LastLogits);
            let outcomes = engine.inspect(&[work], &mut NoProbe).expect("a valid step");
            engine.release(0);
            outcomes
        });
    });
    group.bench_function("its calls alone", |bencher| {
        let mut off = NoProbe;
        bencher.iter(|| {
            let probe: &mut dyn Probe = black_box(&mut off);
            let outside = [Operation::Mask, Operation::Embed, Operation::HeadNorm, Operation::Head];
            let inside = &Operation::ALL[2..12];
            let of_layer = |layer| inside.iter().map(move |&operation| (operation, Some(layer)));
            for (operation, layer) in (0..layers).flat_map(of_layer).chain(outside.map(|operation| (operation, None))) {
                probe.done(black_box(Span { operation, layer, tokens: 1, sequences: 1, keys: 1 }));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, probe);
criterion_main!(benches);
