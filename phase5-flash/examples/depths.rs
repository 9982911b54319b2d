//! Measures the time of attention at several depths, on the CPU: `cargo run --release -p phase5-flash --example depths`.
//!
//! The model has gpt-oss-20b's heads and window, but only one sliding and one full layer. At each depth, phase 5's engine (flash attention)
//! is fed single tokens and chunks of 512 tokens. The printed times are medians of attention alone. At depth 4096 phase 3's engine (plain
//! attention over a KV cache) is measured too.

use std::time::Instant;

use phase1_loading::Checkpoint;
use phase2_forward::{ComputeDevice, GptOss, Inspect, Operation, Probe, Span, Want, Work, sample_tokens};
use phase3_kvcache::{CacheType, CachedEngine};
use phase5_flash::{CpuEngine, CpuOptions};
use synthetic::SyntheticModel;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const CHUNK: usize = 512;
const DECODED: usize = 32;
/// Number of chunks that are timed at a depth.
const CHUNKS: usize = 3;
const COMPARED: usize = 4096;

/// Seconds of attention by layer: the first is a sliding layer, the second a full one.
struct Stopwatch {
    began: Instant,
    attention: [f64; 2],
}

impl Probe for Stopwatch {
    fn done(&mut self, span: Span) {
        if let (Operation::Attention, Some(layer)) = (span.operation, span.layer) {
            self.attention[layer] = self.began.elapsed().as_secs_f64();
        }
        self.began = Instant::now();
    }
}

/// Median seconds of attention over `steps` steps of `tokens` tokens each.
fn attention(engine: &mut dyn Inspect, tokens: usize, steps: usize) -> Result<[f64; 2]> {
    let mut seconds = [Vec::new(), Vec::new()];
    for step in 0..steps {
        let tokens = sample_tokens(step, tokens, engine.config().vocab);
        let mut stopwatch = Stopwatch { began: Instant::now(), attention: [0.0; 2] };
        engine.inspect(&[Work::tokens(0, &tokens, Want::Nothing)], &mut stopwatch)?;
        seconds.iter_mut().zip(stopwatch.attention).for_each(|(all, one)| all.push(one));
    }
    Ok(seconds.map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }))
}

/// Fills sequence 0 up to `depth`.
fn fill(engine: &mut dyn Inspect, depth: usize) -> Result<()> {
    while engine.length(0) < depth {
        let tokens = CHUNK.min(depth - engine.length(0));
        attention(engine, tokens, 1)?;
    }
    Ok(())
}

fn row(engine: &mut dyn Inspect, name: &str, depth: usize) -> Result<[f64; 4]> {
    fill(engine, depth)?;
    let decode = attention(engine, 1, DECODED)?;
    let prefill = attention(engine, CHUNK, CHUNKS)?;
    let [a, b] = decode.map(|seconds| seconds * 1e6);
    let [c, d] = prefill.map(|seconds| seconds * 1e6 / CHUNK as f64);
    println!("{name:9} {depth:>6} {a:>12.1} {b:>12.1} {c:>12.1} {d:>12.1}");
    Ok([a, b, c, d])
}

fn main() -> Result<()> {
    let like_20b = SyntheticModel::preset("20b").ok_or("a preset")?;
    let nano = SyntheticModel::preset("nano").ok_or("a preset")?;
    let SyntheticModel { heads, kv_heads, head_dim, sliding_window, .. } = like_20b;
    let model = SyntheticModel { layers: 2, heads, kv_heads, head_dim, sliding_window, ..nano };
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("model.gguf");
    model.write(&path, 1, &mut |_, _| ())?;
    let checkpoint = Checkpoint::open(&path)?;

    println!("µs of attention per token in one layer; the depth grows with each token that is measured");
    println!("{:9} {:>6} {:>12} {:>12} {:>12} {:>12}", "", "depth", "decode", "", "prefill", "");
    println!("{:16} {:>12} {:>12} {:>12} {:>12}", "", "sliding", "full", "sliding", "full");
    let mut flash = CpuEngine::load(&checkpoint, CpuOptions::default())?;
    let mut at_compared = [0.0; 4];
    for depth in [0, 1, 2, 4, 8, 16, 32].map(|thousands| thousands * 1024) {
        let found = row(&mut flash, "phase 5", depth)?;
        if depth == COMPARED {
            at_compared = found;
        }
    }
    let loaded = GptOss::load(&checkpoint, ComputeDevice::cpu("an example"), &mut |_, _| ())?;
    let mut cached = CachedEngine::with_cache(loaded, CacheType::F16)?;
    let plain = row(&mut cached, "phase 3", COMPARED)?;
    let ratio = |i: usize| plain[i] / at_compared[i];
    println!("phase 3 over phase 5 at {COMPARED}: {:.1} {:.1} {:.1} {:.1}", ratio(0), ratio(1), ratio(2), ratio(3));
    Ok(())
}
