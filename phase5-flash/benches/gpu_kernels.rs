//! Measures each operation of the engine on a GPU separately, in bytes per second and as a share of the measured roofline. Groups have the
//! names that `gptoss profile` uses, and names of cases end with the device's name.
//!
//! `cargo bench -p phase5-flash --bench gpu_kernels` first writes a few layers of gpt-oss-20b's shape to the temporary directory. On a
//! software rasterizer it uses a small model instead.

use std::cell::Cell;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use phase1_loading::Checkpoint;
use phase2_forward::{ComputeDevice, DeviceChoice, ModelNeeds};
use phase3_kvcache::CacheType;
use phase4_profiling::{Ceiling, Cost, CostModel, ceiling};
use phase5_flash::gpu::GpuError;
use phase5_flash::gpu::bench::{Case, Kernels};
use synthetic::SyntheticModel;

#[path = "../../benches/quick/mod.rs"]
mod quick;

/// The cases to measure.
struct Plan {
    model: SyntheticModel,
    /// Number of new tokens per pass.
    rows: &'static [usize],
    /// Number of positions before the new ones, for operations that access the cache.
    depths: &'static [usize],
    /// Number of rows of logits from which tokens are chosen together.
    choices: &'static [usize],
    /// Number of launches that are replayed together, cycling through the layers.
    launches: usize,
}

impl Plan {
    fn small() -> Plan {
        let model = SyntheticModel::preset("nano").expect("a preset");
        Plan { model, rows: &[1, 16, 40], depths: &[200], choices: &[1], launches: 4 }
    }

    fn full() -> Plan {
        // Enough layers that no last-level cache holds their weights.
        let model = SyntheticModel { layers: 6, ..SyntheticModel::preset("20b").expect("a preset") };
        Plan { model, rows: &[1, 16, 64, 512], depths: &[4096, 16_384], choices: &[1, 64], launches: 48 }
    }
}

fn kernels(c: &mut Criterion) {
    let (device, plan) = match ComputeDevice::find(DeviceChoice::Gpu, ModelNeeds::default()) {
        Ok(gpu) => (gpu, Plan::full()),
        Err(_) => {
            let software = ComputeDevice::find(DeviceChoice::Software, ModelNeeds::default());
            (software.expect("a GPU or a software rasterizer"), Plan::small())
        }
    };
    println!("{}", device.name);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    plan.model.write(&path, 0, &mut |_, _| ()).expect("written");
    let checkpoint = Checkpoint::open(&path).expect("opens");
    let mut kernels = Kernels::load(&checkpoint, &device).expect("loads");
    let smoke = std::env::args().any(|argument| argument == "--test");
    let ceiling = (!smoke).then(|| ceiling(&device).expect("measured"));
    let costs = |kv| CostModel::new(&checkpoint, kv);
    let mut measure =
        |case: &Case<'_>, costs: &CostModel| measure(c, &device.name, case, plan.launches, costs, ceiling.as_ref());

    for &rows in plan.rows {
        let costs = costs(CacheType::default());
        kernels.all(rows, &mut |case| measure(case, &costs)).expect("runs");
    }
    for &rows in plan.choices {
        kernels.choices(rows, &mut |case| measure(case, &costs(CacheType::default()))).expect("runs");
    }
    for kv in CacheType::ALL {
        let costs = costs(kv);
        for &depth in plan.depths {
            for rows in [1, plan.rows[plan.rows.len() - 1]] {
                kernels.cached(kv, rows, depth, &mut |case| measure(case, &costs)).expect("runs");
            }
        }
    }
}

fn measure(
    c: &mut Criterion,
    device: &str,
    case: &Case<'_>,
    together: usize,
    costs: &CostModel,
    ceiling: Option<&Ceiling>,
) -> Result<(), GpuError> {
    let work = case.span.map(|span| costs.of(span));
    let mut group = c.benchmark_group(case.operation);
    if let Some(Cost { bytes, .. }) = work {
        group.throughput(Throughput::BytesDecimal(bytes));
    }
    // Stays infinite for a case that the command line filters out.
    let quickest = Cell::new(f64::INFINITY);
    // With the device's name in the ID, criterion does not compare results of different devices.
    group.bench_function(BenchmarkId::new(&case.name, device), |bencher| {
        let captured = case.capture(together).expect("compiles");
        bencher.iter_custom(|launches| {
            let time = captured.time(launches).expect("runs");
            quickest.set(quickest.get().min(time.as_secs_f64() / launches as f64));
            time
        });
    });
    group.finish();
    if let (Some(work), Some(ceiling), true) = (work, ceiling, quickest.get().is_finite()) {
        println!("  of the roofline at best: {:.1} %", 100.0 * work.floor(ceiling) / quickest.get());
    }
    Ok(())
}

criterion_group! {
    name = benches;
    config = quick::quick();
    targets = kernels
}
criterion_main!(benches);
