//! Measures how much accuracy a cache in f16 or q8_0 loses against one in f32: the error of each layer's output, and how often the greedy
//! choice of a token is the same. The root mean square is over all tokens, and is dominated by the few tokens that are routed to another
//! expert; the median is over the errors of single tokens.
//!
//!     cargo run --release -p phase3-kvcache --example cache_loss -- assets/gptoss-tiny.gguf 512
//!
//! Generates tokens greedily with an f32 cache, then feeds the same tokens, one at a time, to engines with the other caches.

use std::error::Error;

use gptoss_reference::{Check, Limit};
use phase1_loading::Checkpoint;
use phase2_forward::{ComputeDevice, DeviceChoice, Dump, Engine, GptOss, Inspect, Want, Work, argmax};
use phase3_kvcache::{CacheType, CachedEngine};

const PROMPT: &str = "Once upon a time there was a";

/// What one engine computed: every layer's output `[tokens · hidden]`, and the greedy choice after each token.
struct Trace {
    layers: Vec<Vec<f32>>,
    choices: Vec<u32>,
    cache_bytes: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: cache_loss MODEL [TOKENS] [cpu|gpu|software]";
    let checkpoint = Checkpoint::open(arguments.next().ok_or(usage)?.as_ref())?;
    let count: usize = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let named = |name: String| DeviceChoice::ALL.into_iter().find(|choice| choice.name() == name).ok_or(usage);
    let device = arguments.next().map_or(Ok(DeviceChoice::Cpu), named)?;
    let device = ComputeDevice::find(device, GptOss::needs(&checkpoint))?;
    let engine = |kind| -> Result<CachedEngine, Box<dyn Error>> {
        let model = GptOss::load(&checkpoint, device.clone(), &mut |_, _| ())?;
        Ok(CachedEngine::with_cache(model, kind)?)
    };
    let prompt = checkpoint.tokenizer()?.encode(PROMPT);
    let mut tokens = prompt.clone();
    let plain = run(&mut engine(CacheType::F32)?, &mut tokens, prompt.len() + count)?;
    println!(
        "{} on {}: {} tokens, cache {} bytes in f32",
        checkpoint.path.display(),
        device.name,
        tokens.len(),
        plain.cache_bytes
    );
    for kind in [CacheType::F16, CacheType::Q8_0] {
        let packed = run(&mut engine(kind)?, &mut tokens.clone(), tokens.len())?;
        let layers = || plain.layers.iter().zip(&packed.layers);
        let errors = layers().map(|(plain, packed)| rms(plain, packed));
        let hidden = plain.layers[0].len() / tokens.len();
        let medians = layers().map(|(plain, packed)| {
            let pairs = plain.chunks_exact(hidden).zip(packed.chunks_exact(hidden));
            let mut errors: Vec<f64> = pairs.map(|(plain, packed)| rms(plain, packed)).collect();
            errors.sort_by(f64::total_cmp);
            errors[errors.len() / 2]
        });
        let generated = prompt.len() - 1..tokens.len() - 1;
        let equal = generated.clone().filter(|&at| plain.choices[at] == packed.choices[at]).count();
        println!(
            "{:5} cache {:.3} of f32's; rms error by layer {}; of the median token {}; greedy choice equal at {equal} of {}",
            kind.name(),
            packed.cache_bytes as f64 / plain.cache_bytes as f64,
            listed(errors),
            listed(medians),
            generated.len(),
        );
    }
    Ok(())
}

/// The root mean square of the error, relative to the standard deviation of `plain`.
fn rms(plain: &[f32], packed: &[f32]) -> f64 {
    Check::values("", "", plain, packed, Limit::EQUAL).rms
}

fn listed(errors: impl Iterator<Item = f64>) -> String {
    errors.map(|error| format!("{error:.1e}")).collect::<Vec<_>>().join(" ")
}

/// Feeds `tokens` one by one, then the engine's greedy choices until there are `total` tokens.
fn run(engine: &mut CachedEngine, tokens: &mut Vec<u32>, total: usize) -> Result<Trace, Box<dyn Error>> {
    let layers = engine.config().layers();
    let mut trace = Trace { layers: vec![Vec::new(); layers], choices: Vec::new(), cache_bytes: 0 };
    for at in 0..total {
        let mut dump = Dump::default();
        let work = Work::tokens(0, &tokens[at..=at], Want::LastLogits);
        let choice = argmax(&engine.inspect(&[work], &mut dump)?.remove(0).logits()?);
        trace.choices.push(choice);
        if at + 1 == tokens.len() && tokens.len() < total {
            tokens.push(choice);
        }
        for (layer, values) in trace.layers.iter_mut().enumerate() {
            values.extend(&dump.tensors[&format!("layers.{layer}.resid_mlp")].1);
        }
    }
    trace.cache_bytes = engine.cache_bytes(0);
    Ok(trace)
}
