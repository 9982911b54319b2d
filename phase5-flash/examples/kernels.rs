//! Times and checks every kernel of phase 5 on a GPU: `kernels [small] [software] [json]`.

use phase2_forward::{ComputeDevice, DeviceChoice};
use phase5_flash::gpu::bench::{self, Size};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given = |word: &str| std::env::args().any(|argument| argument == word);
    let choice = if given("software") { DeviceChoice::Software } else { DeviceChoice::Gpu };
    let size = if given("small") { Size::Small } else { Size::Full };
    let device = ComputeDevice::find(choice, 0)?;
    let json = given("json");
    bench::run(&device, size, &mut |line| eprintln!("{line}"), &mut |measured| {
        let (name, variant, rate) = (&measured.name, &measured.variant, measured.gigabytes_per_second());
        let microseconds = measured.seconds * 1e6;
        let error = measured.error.map_or("–".into(), |error| format!("{error:.1e}"));
        if json {
            println!(
                "{{\"kernel\":\"{name}\",\"variant\":\"{variant}\",\"us\":{microseconds:.3},\"gb_s\":{rate:.2},\"error\":\"{error}\"}}"
            );
        } else {
            println!("{name:32} {variant:36} {microseconds:>10.2} us {rate:>9.1} GB/s  error {error}");
        }
    })?;
    Ok(())
}
