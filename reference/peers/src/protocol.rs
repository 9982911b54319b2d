//! Requests to a worker, the Python process that runs a peer (MLX or llama.cpp), and its replies: the JSON part of frames.

use std::collections::BTreeMap;

use phase1_loading::{AttentionKind, GptOssConfig};
use phase2_forward::SequenceId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A request, which has no payload.
#[derive(Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Request<'a> {
    /// The first request to every worker.
    Load(Load<'a>),
    Step {
        items: Vec<Item<'a>>,
    },
    Fork {
        from: SequenceId,
        to: SequenceId,
        length: usize,
    },
    Truncate {
        sequence: SequenceId,
        length: usize,
    },
    Release {
        sequence: SequenceId,
    },
    Stats,
}

#[derive(Serialize)]
pub(crate) struct Load<'a> {
    pub model: &'a str,
    /// With the field names of transformers and mlx-lm.
    pub config: Value,
    /// `exact` or `truncated`.
    pub rope: &'a str,
    /// `auto`, `cpu` or `gpu`.
    pub device: &'a str,
    /// Type of MLX's activations, or of llama.cpp's cache; the worker's own choice if not given.
    pub dtype: Option<&'a str>,
    pub threads: usize,
    /// Tokens and sequences for which a peer allocates its cache when it starts.
    pub context: usize,
    pub sequences: usize,
}

#[derive(Serialize)]
pub(crate) struct Item<'a> {
    pub sequence: SequenceId,
    pub tokens: &'a [u32],
    pub want: Wanted,
}

/// The requested result for an item's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wanted {
    Nothing,
    /// Logits after the last token.
    Last,
    /// Logits after every token.
    All,
    /// The most likely next token; no logits are transferred.
    Greedy,
}

/// The JSON part of every reply.
#[derive(Deserialize)]
pub(crate) struct Header {
    /// Bytes of the payload that follows.
    pub bytes: u64,
    /// Why the request failed.
    pub error: Option<String>,
    #[serde(default)]
    pub kind: Kind,
    #[serde(flatten)]
    pub body: serde_json::Map<String, Value>,
}

/// The kind of an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The worker's state is undefined.
    #[default]
    Failed,
    Unsupported,
    CannotGoBack,
}

/// The worker's description of itself after its model is loaded.
#[derive(Clone, Debug, Deserialize)]
pub struct Hello {
    /// `cpu` or `gpu`.
    pub device: String,
    /// Type of the activations; if a peer computes with several types, the type of its cache.
    pub dtype: String,
    /// Versions of packages, by name.
    pub versions: BTreeMap<String, String>,
    pub vocab: usize,
    pub layers: usize,
}

/// The reply to a step.
#[derive(Deserialize)]
pub(crate) struct Drawn {
    /// One entry per item that requested the most likely token; `None` if its logits are NaN.
    pub tokens: Vec<Option<u32>>,
}

/// Memory use of a worker.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Stats {
    /// Peak resident memory, including mapped file pages.
    pub peak_resident_bytes: Option<u64>,
    /// Peak memory of the peer's own allocator, if it reports that.
    pub peak_device_bytes: Option<u64>,
}

/// The configuration with the keys of Hugging Face's `config.json`, including those that mlx-lm would otherwise guess.
pub(crate) fn config_json(config: &GptOssConfig) -> Value {
    let kind = |kind: &AttentionKind| match kind {
        AttentionKind::Sliding => "sliding_attention",
        AttentionKind::Full => "full_attention",
    };
    json!({
        "model_type": "gpt_oss",
        "num_hidden_layers": config.layers(),
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "vocab_size": config.vocab,
        "rms_norm_eps": config.rms_eps,
        "hidden_size": config.hidden,
        "intermediate_size": config.expert_width,
        "head_dim": config.head_dim,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "sliding_window": config.sliding_window,
        "rope_theta": config.rope.theta,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": config.rope.factor,
            "original_max_position_embeddings": config.rope.original_context,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
        "layer_types": config.attention.iter().map(kind).collect::<Vec<_>>(),
    })
}
