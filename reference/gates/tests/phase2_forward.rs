//! Phase 2's gate, the comparison of its results with MLX's golden outputs, on the CPU and on a GPU.

mod committed;

use std::collections::BTreeMap;

use gates::forward;
use gptoss_reference::Folder;
use phase1_loading::YarnRamp;
use phase2_forward::ComputeDevice;

/// Stands for the power of ten of an error of exactly zero.
const EQUAL: i32 = i32::MIN;

/// The comparison with the golden outputs passes, and the power of ten of each tensor's largest error equals the snapshot's.
#[test]
fn forward_equals_mlx_on_the_cpu() {
    let [cpu, _] = ComputeDevice::for_gates().expect("both devices");
    let mut decades: BTreeMap<(String, String), i32> = BTreeMap::new();
    let checks = committed::pass(|case, ramp| forward::run(case, &cpu, ramp));
    for check in checks.iter().filter(|check| check.limit.max > 0.0) {
        let tensor = check.tensor.split(" (").next().expect("a name").to_owned();
        let decade = if check.max == 0.0 { EQUAL } else { check.max.log10().ceil() as i32 };
        let worst = decades.entry((check.case.clone(), tensor)).or_insert(decade);
        *worst = decade.max(*worst);
    }
    let describe = |decade: &i32| if *decade == EQUAL { "equal".into() } else { format!("< 1e{decade}") };
    let lines: Vec<String> =
        decades.iter().map(|((case, tensor), decade)| format!("{case:6} {tensor:24} {}", describe(decade))).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn forward_equals_mlx_on_a_gpu() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    committed::pass(|case, ramp| forward::run(case, &gpu, ramp));
}

fn run_folders(device: &ComputeDevice) {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let folders = Folder::committed();
    assert_eq!(folders.len(), 4);
    for folder in folders {
        for ramp in YarnRamp::ALL {
            let checks = forward::run_folder(&folder, device, ramp, scratch.path()).expect("the gate runs");
            let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
            assert!(failed.is_empty(), "{}: {failed:#?}", device.name);
        }
    }
}

/// Hugging Face's folder, mlx-lm's conversions of it, and our GGUF of it: each gives the same logits here as in MLX.
#[test]
fn folders_equal_mlx_on_the_cpu() {
    let [cpu, _] = ComputeDevice::for_gates().expect("both devices");
    run_folders(&cpu);
}

#[test]
fn folders_equal_mlx_on_a_gpu() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    run_folders(&gpu);
}
