//! Metadata keys whose value is fixed for gpt-oss. Some programs write these keys, and some read them. A file with another value is
//! refused, because the engines would compute wrong results for it.

use super::constants::{BETA_FAST, BETA_SLOW, SWIGLU_ALPHA, SWIGLU_LIMIT, attention_factor, is_close};
use super::metadata::Metadata;
use super::{GptOssConfig, RopeConfig};
use crate::error::Defect;
use crate::gguf::Value;

/// Keys, and the values that describe what the engines compute, the usual value first. Some writers use 0 for "unset".
const FIXED: &[(&str, &[f64])] = &[
    ("rope.scaling.yarn_beta_fast", &[BETA_FAST]),
    ("rope.scaling.yarn_beta_slow", &[BETA_SLOW]),
    ("rope.scaling.yarn_ext_factor", &[1.0]),
    ("rope.scaling.yarn_log_multiplier", &[0.0]),
    ("rope.scaling.attn_factor", &[1.0]),
    ("rope.scale_linear", &[1.0]),
    // llama.cpp's number for a softmax over the logits of the chosen experts.
    ("expert_gating_func", &[3.0, 0.0]),
    ("expert_weights_scale", &[1.0, 0.0]),
    ("expert_shared_count", &[0.0]),
    ("expert_group_count", &[1.0, 0.0]),
    ("expert_group_used_count", &[1.0, 0.0]),
    ("leading_dense_block_count", &[0.0]),
    ("nextn_predict_layers", &[0.0]),
    ("attention.causal", &[1.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.temperature_length", &[0.0]),
    ("attention.temperature_scale", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("router_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logit_scale", &[1.0, 0.0]),
    ("residual_scale", &[1.0, 0.0]),
    ("embedding_scale", &[1.0, 0.0]),
    ("swiglu_limit", &[SWIGLU_LIMIT]),
    ("swiglu_alpha", &[SWIGLU_ALPHA]),
    ("swiglu_clamp_exp", &[SWIGLU_LIMIT]),
    ("use_parallel_residual", &[0.0]),
];

/// Refuses metadata that requires a computation that the engines do not support.
///
/// # Errors
/// Names the key, its required value and the value found.
pub(super) fn check(metadata: &Metadata, config: &GptOssConfig) -> Result<(), Defect> {
    for &(key, allowed) in FIXED {
        expect(metadata, key, allowed)?;
    }
    let RopeConfig { theta, factor, .. } = config.rope;
    let head_dim = config.head_dim as f64;
    for (key, usual) in [
        ("rope.freq_base_swa", f64::from(theta)),
        ("rope.dimension_count", head_dim),
        ("rope.dimension_count_swa", head_dim),
        ("attention.key_length_swa", head_dim),
        ("attention.value_length", head_dim),
        ("attention.value_length_swa", head_dim),
        ("rope.scaling.yarn_attn_factor", attention_factor(f64::from(factor))),
    ] {
        expect(metadata, key, &[usual])?;
    }
    expect(metadata, "attention.scale", &[1.0 / head_dim.sqrt(), 0.0])
}

fn expect(metadata: &Metadata, key: &str, allowed: &[f64]) -> Result<(), Defect> {
    let Some(value) = metadata.value(key) else { return Ok(()) };
    match number(value) {
        Some(found) if allowed.iter().any(|&usual| is_close(found, usual)) => Ok(()),
        Some(found) => Err(metadata.defect(key, allowed[0].to_string(), found.to_string())),
        None => Err(metadata.defect(key, allowed[0].to_string(), value.kind())),
    }
}

/// A number of any type, or an array that holds the same number for every layer.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Unsigned(number) => Some(*number as f64),
        Value::Signed(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::Text(_) => None,
        Value::Array(array) => {
            let mut numbers = array.scalars()?.map(|value| number(&value));
            let first = numbers.next()??;
            numbers.all(|number| number == Some(first)).then_some(first)
        }
    }
}
