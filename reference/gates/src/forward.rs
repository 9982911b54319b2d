//! Phase 2's gate: computes each golden case as one whole sequence, and compares activations and logits with MLX's.

use std::path::Path;

use gptoss_reference::{Case, Check, Folder, Golden, Limit};
use phase1_loading::{GptOssConfig, YarnRamp, convert};
use phase2_forward::{ComputeDevice, Dump, Engine, GptOss, Inspect, RecomputeEngine, Want, Work, argmax};

use crate::checks::{Checks, open};

/// Router logits closer than this count as tied: rounding may choose either expert.
const LEVEL: f32 = 1e-4;

/// Loads the case's model and checks the whole-sequence forward pass.
///
/// # Errors
/// A model or golden file cannot be read, or the engine refuses the tokens.
pub fn run(case: &Case, device: &ComputeDevice, ramp: YarnRamp) -> Checks {
    let checkpoint = open(&case.model(), ramp)?;
    let model = GptOss::load(&checkpoint, device.clone(), &mut |_, _| ())?;
    check_forward(case, ramp, &mut RecomputeEngine::new(model))
}

/// Compares the logits of one of the golden model folders with MLX's on the same folder. The folder named `hf` is also
/// converted to GGUF in `scratch`, and the logits of that file are compared with the same limit.
///
/// # Errors
/// A folder or golden file cannot be read, or the GGUF file cannot be written.
pub fn run_folder(folder: &Folder, device: &ComputeDevice, ramp: YarnRamp, scratch: &Path) -> Checks {
    let golden = folder.golden()?;
    let (tokens, expected) = (golden.u32s("tokens")?, golden.f32s(&format!("logits.{}", ramp.name()))?);
    let mut checkpoints = vec![("folder", open(&folder.path, ramp)?)];
    if folder.name == "hf" {
        let converted = scratch.join("converted.gguf");
        convert(&checkpoints[0].1, &converted, None, &mut |_, _| ())?;
        checkpoints.push(("converted to GGUF", open(&converted, ramp)?));
    }
    let mut checks = Vec::new();
    for (what, checkpoint) in checkpoints {
        let model = GptOss::load(&checkpoint, device.clone(), &mut |_, _| ())?;
        let logits = RecomputeEngine::new(model).all_logits(0, &tokens)?;
        let label = format!("logits of the {what} ({})", ramp.name());
        checks.push(Check::values(&folder.name, label, &expected, &logits, Limit::F32));
    }
    Ok(checks)
}

/// Feeds the golden tokens to an engine in one chunk and compares the results: embeddings, the residual stream, router logits and chosen
/// experts of every layer, the final norm, the logits, and the greedy choices from them. If the engine does not report an activation, its
/// check fails.
///
/// # Errors
/// A golden file cannot be read, or the engine refuses the tokens.
pub fn check_forward(case: &Case, ramp: YarnRamp, engine: &mut dyn Inspect) -> Checks {
    let (mut checks, logits) = check_values(case, ramp, engine, Limit::F32)?;
    let golden = case.golden(ramp.name())?;
    let (tokens, prompt) = (golden.u32s("tokens")?, golden.number("prompt_len")?);
    let choices: Vec<u32> = logits.chunks_exact(engine.config().vocab).map(argmax).collect();
    let greedy = &choices[prompt - 1..choices.len() - 1];
    checks.push(Check::ids(&case.name, format!("greedy tokens ({})", ramp.name()), &tokens[prompt..], greedy));
    Ok(checks)
}

/// As [`check_forward`], with another limit and without the greedy choices. Also returns the logits, `[tokens, vocab]`.
///
/// # Errors
/// As [`check_forward`].
pub fn check_values(
    case: &Case,
    ramp: YarnRamp,
    engine: &mut dyn Inspect,
    limit: Limit,
) -> Result<(Vec<Check>, Vec<f32>), Box<dyn std::error::Error>> {
    let golden = case.golden(ramp.name())?;
    let tokens = golden.u32s("tokens")?;
    let mut dump = Dump::default();
    let work = Work::tokens(0, &tokens, Want::AllLogits);
    let logits = engine.inspect(&[work], &mut dump)?.remove(0).logits()?;
    engine.release(0);

    let label = |tensor: &str| format!("{tensor} ({})", ramp.name());
    let mut checks = Vec::new();
    for name in golden.names().iter().filter(|name| is_activation(name)) {
        let expected = golden.f32s(name)?;
        // An activation that the engine does not report has no values, so its check fails.
        let values = dump.tensors.get(name).map(|(_, values)| values.as_slice()).unwrap_or_default();
        checks.push(Check::values(&case.name, label(name), &expected, values, limit));
        if let Some(layer) = name.strip_suffix(".router_logits") {
            let errors = expected.iter().zip(values).map(|(expected, found)| (expected - found).abs());
            // Two logits may have errors in opposite directions, so twice the largest error may change their order.
            let level = errors.fold(LEVEL, |level, error| level.max(2.0 * error));
            checks.push(check_choices(case, &golden, engine.config(), layer, ramp, values, level)?);
        }
    }
    checks.push(Check::values(&case.name, label("logits"), &golden.f32s("logits")?, &logits, limit));
    Ok((checks, logits))
}

/// Whether a golden tensor is an activation that every engine reports. Other tensors are inputs, or have separate checks.
fn is_activation(name: &str) -> bool {
    !matches!(name.rsplit('.').next(), Some("tokens" | "logits" | "experts" | "cache_k" | "cache_v"))
}

/// Whether each expert that MLX chose is among those with the largest logits here too. An expert whose logit differs from the last chosen
/// one's by at most `level` counts, because either of two tied experts is correct.
fn check_choices(
    case: &Case,
    golden: &Golden,
    config: &GptOssConfig,
    layer: &str,
    ramp: YarnRamp,
    router_logits: &[f32],
    level: f32,
) -> Result<Check, gptoss_reference::GoldenError> {
    const NOT_CHOSEN: u32 = u32::MAX;
    let chosen = config.experts_per_token;
    let name = format!("{layer}.experts");
    let expected = golden.u32s(&name)?;
    let mut found = Vec::new();
    for (logits, experts) in router_logits.chunks_exact(config.experts).zip(expected.chunks_exact(chosen)) {
        let mut descending = logits.to_vec();
        descending.sort_by(|a, b| b.total_cmp(a));
        let least = descending[chosen - 1] - level;
        found.extend(experts.iter().map(|&e| if logits[e as usize] >= least { e } else { NOT_CHOSEN }));
    }
    Ok(Check::ids(&case.name, format!("{name} ({})", ramp.name()), &expected, &found))
}
