//! OpenAI's own layout, the folder `original` beside its Hugging Face files: the same tensors under other names, with q, k and v in one
//! matrix; a configuration with other keys; the tokenizer in the parent folder. This module translates it to Hugging Face's layout.

use serde_json::{Value, json};

use crate::config::GptOssConfig;
use crate::error::Defect;
use crate::safetensors_file::{Part, Parts};

/// ε of the RMS norms. It is the same in every gpt-oss model, and OpenAI's configuration does not contain it.
const RMS_EPS: f64 = 1e-5;

/// OpenAI's configuration keys, and Hugging Face's.
const KEYS: [(&str, &str); 11] = [
    ("num_hidden_layers", "num_hidden_layers"),
    ("num_experts", "num_local_experts"),
    ("experts_per_token", "num_experts_per_tok"),
    ("vocab_size", "vocab_size"),
    ("hidden_size", "hidden_size"),
    ("intermediate_size", "intermediate_size"),
    ("head_dim", "head_dim"),
    ("num_attention_heads", "num_attention_heads"),
    ("num_key_value_heads", "num_key_value_heads"),
    ("sliding_window", "sliding_window"),
    ("rope_theta", "rope_theta"),
];

/// Names of tensors outside the layers, and of those in a layer after `block.N.`, with Hugging Face's names (for layers, after
/// `model.layers.N.`).
const NAMES: [(&str, &str); 16] = [
    ("embedding.weight", "model.embed_tokens.weight"),
    ("norm.scale", "model.norm.weight"),
    ("unembedding.weight", "lm_head.weight"),
    ("attn.norm.scale", "input_layernorm.weight"),
    ("attn.sinks", "self_attn.sinks"),
    ("attn.out.weight", "self_attn.o_proj.weight"),
    ("attn.out.bias", "self_attn.o_proj.bias"),
    ("mlp.norm.scale", "post_attention_layernorm.weight"),
    ("mlp.gate.weight", "mlp.router.weight"),
    ("mlp.gate.bias", "mlp.router.bias"),
    ("mlp.mlp1_weight.blocks", "mlp.experts.gate_up_proj_blocks"),
    ("mlp.mlp1_weight.scales", "mlp.experts.gate_up_proj_scales"),
    ("mlp.mlp1_bias", "mlp.experts.gate_up_proj_bias"),
    ("mlp.mlp2_weight.blocks", "mlp.experts.down_proj_blocks"),
    ("mlp.mlp2_weight.scales", "mlp.experts.down_proj_scales"),
    ("mlp.mlp2_bias", "mlp.experts.down_proj_bias"),
];

/// Whether this `config.json` is OpenAI's own.
pub(super) fn is_original(config: &Value) -> bool {
    config.get("model_type").is_none() && config.get("num_experts").is_some()
}

/// The configuration with Hugging Face's keys.
pub(super) fn config(original: &Value) -> Result<Value, Defect> {
    let get = |key: &str| {
        let missing =
            || Defect::new(format!("config.json: `{key}`"), "a number, as in OpenAI's files", "no such number");
        original.get(key).filter(|value| value.is_number()).ok_or_else(missing)
    };
    let (trained, factor) = (get("initial_context_length")?, get("rope_scaling_factor")?);
    let context = trained.as_f64().unwrap_or(0.0) * factor.as_f64().unwrap_or(0.0);
    let mut config = json!({
        "model_type": "gpt_oss",
        "max_position_embeddings": context,
        "rms_norm_eps": RMS_EPS,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": trained,
            "beta_fast": get("rope_ntk_beta")?,
            "beta_slow": get("rope_ntk_alpha")?,
        },
    });
    if let Some(limit) = original.get("swiglu_limit") {
        config["swiglu_limit"] = limit.clone();
    }
    for (ours, theirs) in KEYS {
        config[theirs] = get(ours)?.clone();
    }
    Ok(config)
}

/// The tensors under Hugging Face's names. A tensor without an entry in [`NAMES`] keeps its name.
pub(super) fn rename(parts: Parts, config: &GptOssConfig) -> Result<Parts, Defect> {
    let mut renamed = Parts::new();
    for (name, part) in parts {
        let (prefix, stem) = match name.strip_prefix("block.").and_then(|rest| rest.split_once('.')) {
            Some((layer, stem)) => (format!("model.layers.{layer}."), stem),
            None => (String::new(), name.as_str()),
        };
        if let Some(kind) = stem.strip_prefix("attn.qkv.") {
            for (projection, part) in split_fused_qkv(&name, &part, config)? {
                renamed.insert(format!("{prefix}self_attn.{projection}.{kind}"), part);
            }
            continue;
        }
        let theirs = NAMES.iter().find(|(ours, _)| *ours == stem).map(|(_, theirs)| format!("{prefix}{theirs}"));
        renamed.insert(theirs.unwrap_or(name), part);
    }
    Ok(renamed)
}

/// Splits a tensor that holds the rows of q, k and v one after another.
fn split_fused_qkv(name: &str, part: &Part, config: &GptOssConfig) -> Result<[(&'static str, Part); 3], Defect> {
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let rows = q + 2 * kv;
    if part.shape.first() != Some(&rows) {
        let found = format!("shape {:?}", part.shape);
        return Err(Defect::new(format!("tensor `{name}`"), format!("{rows} rows of q, k and v"), found));
    }
    let row_bytes = part.data.len() / rows;
    let piece = |first: usize, count: usize| {
        let mut shape = part.shape.clone();
        shape[0] = count;
        Part { dtype: part.dtype, shape, data: part.data.slice(first * row_bytes..(first + count) * row_bytes) }
    };
    Ok([("q_proj", piece(0, q)), ("k_proj", piece(q, kv)), ("v_proj", piece(q + kv, kv))])
}
