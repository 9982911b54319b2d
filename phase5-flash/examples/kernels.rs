//! Times and checks every kernel of phase 5 on a GPU: `kernels [small] [software] [json]`; or whole steps of a model:
//! `kernels MODEL.gguf [software] [json] [f16|q8_0]`.

use std::path::Path;

use phase1_loading::Checkpoint;
use phase2_forward::{ComputeDevice, DeviceChoice};
use phase3_kvcache::CacheType;
use phase5_flash::gpu::bench::{self, Measurement, Size};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given = |word: &str| std::env::args().any(|argument| argument == word);
    let choice = if given("software") { DeviceChoice::Software } else { DeviceChoice::Gpu };
    let device = ComputeDevice::find(choice, 0)?;
    let json = given("json");
    let describe = &mut |line: &str| eprintln!("{line}");
    let report = &mut |measured: &Measurement| print(measured, json);
    if let Some(model) = std::env::args().find(|argument| argument.ends_with(".gguf")) {
        let checkpoint = Checkpoint::open(Path::new(&model))?;
        let kv = CacheType::ALL.into_iter().find(|kind| given(kind.name())).unwrap_or_default();
        let depths: &[usize] = if given("small") { &[1, 300] } else { &[1, 4096, 16_384] };
        bench::steps(&checkpoint, &device, kv, depths, describe, report)?;
    } else {
        let size = if given("small") { Size::Small } else { Size::Full };
        bench::run(&device, size, describe, report)?;
    }
    Ok(())
}

fn print(measured: &Measurement, json: bool) {
    let Measurement { name, variant, .. } = measured;
    let microseconds = measured.seconds * 1e6;
    let (rate, tokens) = (measured.gigabytes_per_second(), measured.tokens_per_second());
    let error = measured.error.map_or("–".into(), |error| format!("{error:.1e}"));
    if json {
        println!(
            "{{\"kernel\":\"{name}\",\"variant\":\"{variant}\",\"us\":{microseconds:.3},\"gb_s\":{rate:.2},\"tok_s\":{tokens:.2},\"error\":\"{error}\"}}"
        );
    } else if measured.tokens > 0 {
        println!("{name:32} {variant:40} {microseconds:>12.2} us {tokens:>9.1} tok/s");
    } else {
        println!("{name:32} {variant:40} {microseconds:>12.2} us {rate:>9.1} GB/s  error {error}");
    }
}
