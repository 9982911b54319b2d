//! Invented but reproducible profiles of a model with gpt-oss-20b's shape.

use phase4_profiling::{Ceiling, Clock, LAUNCH, Profile, READBACK, TimedSpan, TimedStep, Workload};

const LAYERS: usize = 24;
const HIDDEN: u64 = 2880;
const WINDOW: usize = 128;
/// Bytes per weight, in Q8_0 and MXFP4.
const Q8: f64 = 34.0 / 32.0;
const FP4: f64 = 17.0 / 32.0;

/// The invented properties of a machine.
struct Machine {
    device: &'static str,
    name: &'static str,
    clock: Clock,
    ceiling: [f64; 3],
    /// Seconds of waiting before each operation, and of the transfer to the host after the last one.
    launch: f64,
    readback: f64,
    /// The least seconds that an operation takes.
    least: f64,
}

const CPU: Machine = Machine {
    device: "cpu",
    name: "2-core Zen 4",
    clock: Clock::Host,
    ceiling: [27e9, 180e9, 420e9],
    launch: 0.0,
    readback: 0.0,
    least: 12e-6,
};

const GPU: Machine = Machine {
    device: "NVIDIA H100 (vulkan)",
    name: "16-core Xeon",
    clock: Clock::DeviceTimestamps,
    ceiling: [2.4e12, 48e12, 160e12],
    launch: 4e-6,
    readback: 60e-6,
    least: 2.5e-6,
};

/// Decoding on a CPU.
pub fn decode(depth: usize, steps: usize) -> Profile {
    profile(&CPU, Workload::Decode { depth, sequences: 1 }, steps)
}

/// Prefill on a CPU.
pub fn prefill(tokens: usize) -> Profile {
    profile(&CPU, Workload::Prefill { tokens }, 1)
}

/// Decoding on a GPU that waits for its host between operations.
pub fn gpu(depth: usize, steps: usize) -> Profile {
    profile(&GPU, Workload::Decode { depth, sequences: 1 }, steps)
}

fn profile(machine: &Machine, workload: Workload, steps: usize) -> Profile {
    let [read_bandwidth, f32_rate, packed_rate] = machine.ceiling;
    let (name, device, date) = (String::from(machine.name), String::from(machine.device), String::from("2026-11-23"));
    let ceiling = Ceiling {
        read_bandwidth,
        f32_rate,
        packed_rate,
        machine: name.clone(),
        device: device.clone(),
        date: date.clone(),
    };
    let mut random = Random(7);
    let steps = (0..steps).map(|_| step(machine, &ceiling, workload, &mut random)).collect();
    let (model, clock) = ("gpt-oss-20b.gguf".into(), machine.clock);
    Profile { model, device, machine: name, date, phase: 3, workload, clock, ceiling, steps }
}

fn step(machine: &Machine, ceiling: &Ceiling, workload: Workload, random: &mut Random) -> TimedStep {
    let (tokens, earlier) = match workload {
        Workload::Decode { depth, sequences } => (sequences, depth),
        Workload::Prefill { tokens } => (tokens, 0),
    };
    let (mut spans, mut now) = (Vec::new(), 20e-6);
    let mut run = |name: &str, layer: Option<usize>, keys: usize, bytes: f64, operations: u64, reached: f64| {
        if machine.launch > 0.0 {
            let wait = machine.launch * random.between(0.7, 1.6);
            spans.push(TimedSpan::overhead(LAUNCH, now, wait));
            now += wait;
        }
        let mut span = TimedSpan {
            name: name.into(),
            layer,
            tokens: if name.starts_with("head") { 1 } else { tokens },
            keys,
            start: now,
            duration: 0.0,
            bytes: bytes as u64,
            operations,
        };
        span.duration = (span.floor(ceiling) / reached).max(machine.least) * random.between(0.95, 1.15);
        now += span.duration * 1.002;
        spans.push(span);
    };

    let n = tokens as u64;
    let rows = n as f64 * HIDDEN as f64 * 4.0;
    let experts = (4 * n).min(32) as f64;
    let square = HIDDEN * HIDDEN;
    run("mask", None, 0, 4096.0, 2048, 0.1);
    run("embed", None, 0, rows * 2.0, 0, 0.2);
    for layer in 0..LAYERS {
        let visible = if layer % 2 == 0 { (earlier + tokens).min(WINDOW) } else { earlier + tokens };
        let pairs = n * visible as u64;
        let at = Some(layer);
        run("attn.norm", at, 0, rows * 2.0, 4 * n * HIDDEN, 0.3);
        run("attn.qkv", at, 0, 5120.0 * 2880.0 * Q8 + rows * 2.7, 2 * n * 5120 * HIDDEN, 0.62);
        run("attn.rope", at, 0, n as f64 * 4608.0 * 8.0, 3 * n * 4608, 0.2);
        run("attn.cache", at, 0, n as f64 * 1024.0 * 6.0, 0, 0.25);
        run("attn.scores", at, visible, visible as f64 * 2048.0 + n as f64 * 32768.0, 4 * 4096 * pairs, 0.18);
        run("attn.out", at, 0, 4096.0 * 2880.0 * Q8 + rows * 2.4, 2 * n * 4096 * HIDDEN, 0.66);
        run("moe.norm", at, 0, rows * 2.0, 4 * n * HIDDEN, 0.3);
        run("moe.router", at, 0, 32.0 * 2880.0 * 4.0 + rows, 2 * n * 32 * HIDDEN, 0.4);
        run("moe.gate_up", at, 0, experts * 2.0 * square as f64 * FP4 + rows * 5.0, 16 * n * square, 0.41);
        run("moe.down", at, 0, experts * square as f64 * FP4 + rows * 5.0, 8 * n * square, 0.55);
    }
    run("head.norm", None, 0, 2880.0 * 8.0, 4 * HIDDEN, 0.3);
    run("head", None, 0, 201_088.0 * 2880.0 * Q8, 2 * 201_088 * HIDDEN, 0.83);
    if machine.readback > 0.0 {
        spans.push(TimedSpan::overhead(READBACK, now, machine.readback));
        now += machine.readback;
    }
    TimedStep { wall: now + 30e-6, spans }
}

/// Numbers that look random and are the same every time (xorshift).
struct Random(u64);

impl Random {
    fn between(&mut self, low: f64, high: f64) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        low + (high - low) * (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}
