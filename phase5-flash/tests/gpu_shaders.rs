//! The WGSL of every kernel that the engine launches is valid, and translates to Metal's and Direct3D's languages. The translations are not
//! run. Kernels on matrix units are not included, because they are used only through SPIR-V.

use std::collections::BTreeMap;
use std::process::Command;

use naga::back::{hlsl, msl};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use phase1_loading::{Checkpoint, DenseFormat};
use phase2_forward::{Adjustment, ComputeDevice, Draw, Engine, Want, Work};
use phase3_kvcache::CacheType;
use phase5_flash::gpu::bench::{Case, Kernels};
use phase5_flash::gpu::{GpuEngine, GpuError, Options};
use synthetic::SyntheticModel;

/// The files of `gpu-kernels` whose kernels are launched.
const FILES: [&str; 19] = [
    "attention::decode",
    "attention::merge",
    "attention::prefill",
    "embed",
    "kv::pages",
    "matmul::small",
    "matmul::tiles",
    "matvec::dense",
    "matvec::experts",
    "moe::combine",
    "moe::router",
    "moe::sort",
    "norm",
    "rope",
    "sampling::argmax",
    "sampling::draw",
    "sampling::logprobs",
    "sampling::restrict",
    "sampling::threshold",
];

/// Launches every kernel, in a separate process: CubeCL reads only once where to write the compiled shaders.
#[test]
#[ignore = "the test below runs it"]
fn launch_every_kernel() {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let once = &mut |case: &Case<'_>| -> Result<(), GpuError> { case.capture(1)?.time(1).map(|_| ()) };
    let nano = SyntheticModel { layers: 2, ..SyntheticModel::preset("nano").expect("a preset") };
    // Large enough that cubes of the mat-vec kernels process several groups of rows, as in a real model.
    let walked = SyntheticModel { layers: 1, hidden: 640, expert_width: 320, heads: 40, head_dim: 64, ..nano.clone() };
    let formats = [DenseFormat::F16, DenseFormat::BF16, DenseFormat::F32];
    for model in formats.map(|rest| SyntheticModel { rest, ..nano.clone() }).into_iter().chain([walked]) {
        let path = directory.path().join("model.gguf");
        model.write(&path, 0, &mut |_, _| ()).expect("written");
        let mut kernels = Kernels::load(&Checkpoint::open(&path).expect("opens"), &gpu).expect("loads");
        // Few rows, some, and many, because each uses different kernels.
        for rows in [1, 16, 40] {
            kernels.all(rows, once).expect("runs");
        }
        kernels.choices(1, once).expect("runs");
        for kv in CacheType::ALL {
            kernels.cached(kv, 1, 200, once).expect("runs");
            kernels.cached(kv, 40, 200, once).expect("runs");
        }
    }
    restricted_draw(&Checkpoint::open(&directory.path().join("model.gguf")).expect("opens"), &gpu);
}

/// A draw with a mask and an adjustment, which the launches above do not include.
fn restricted_draw(checkpoint: &Checkpoint, gpu: &ComputeDevice) {
    let mut engine = GpuEngine::load(checkpoint, gpu, Options::default(), &mut |_, _| ()).expect("loads");
    let allowed = vec![u32::MAX; checkpoint.config.vocab.div_ceil(32)];
    let adjustments = [Adjustment { token: 1, bias: 1.0, repetition_penalty: 1.0, penalty: 0.0 }];
    let draw = Draw { allowed: Some(&allowed), adjustments: &adjustments, ..Draw::GREEDY };
    engine.step(&[Work::tokens(0, &[1], Want::Token(draw))]).expect("runs");
}

#[test]
fn every_kernel_translates_to_metal_and_direct3d() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let log = directory.path().join("kernels.log");
    let settings = format!("[compilation.logger]\nlevel = \"full\"\nfile = {:?}\n", log.display().to_string());
    std::fs::write(directory.path().join("cubecl.toml"), settings).expect("written");
    let program = std::env::current_exe().expect("this program");
    let status = Command::new(program)
        .args(["--ignored", "--exact", "launch_every_kernel"])
        .current_dir(&directory)
        .stdout(std::process::Stdio::null())
        .status()
        .expect("starts");
    assert!(status.success());
    let log = std::fs::read_to_string(log).expect("a log");
    let mut translated: BTreeMap<&str, usize> = BTreeMap::new();
    for piece in log.split("[START_KERNEL_COMPILATION]").skip(1) {
        let name = piece.lines().find_map(|line| line.strip_prefix("name: ")).expect("a name");
        if let Some(kernel) = name.strip_prefix("gpu_kernels::") {
            let source = piece.split("```wgsl\n").nth(1).and_then(|rest| rest.split("```").next()).expect("WGSL");
            translate(kernel, source);
            let file = FILES.into_iter().find(|file| kernel.starts_with(&format!("{file}::"))).unwrap_or(kernel);
            *translated.entry(file).or_default() += 1;
        }
    }
    assert_eq!(translated.keys().copied().collect::<Vec<_>>(), FILES, "{translated:?}");
}

fn translate(kernel: &str, source: &str) {
    let translated = to_metal_and_direct3d(source);
    assert!(translated.is_ok(), "{kernel}: {}\n{source}", translated.unwrap_err());
}

fn to_metal_and_direct3d(source: &str) -> Result<(), String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|error| error.emit_to_string(source))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(&module).map_err(|error| error.emit_to_string(source))?;
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let pipeline = msl::PipelineOptions::default();
    msl::write_string(&module, &info, &options, &pipeline).map_err(|error| format!("Metal: {error}"))?;
    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
    let mut text = String::new();
    let pipeline = hlsl::PipelineOptions::default();
    let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
    writer.write(&module, &info, None).map_err(|error| format!("Direct3D: {error}"))?;
    Ok(())
}
