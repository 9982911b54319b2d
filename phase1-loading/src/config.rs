//! The shape of a GPT-OSS model.

use crate::error::Defect;
use crate::gguf::{Gguf, Value};

/// The architecture's name in `general.architecture`, and the prefix of its metadata keys.
pub const ARCHITECTURE: &str = "gpt-oss";

/// Which keys a layer's queries can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// The last `sliding_window` positions, the query's own among them.
    Sliding,
    /// Every position up to the query's own.
    Full,
}

/// Dimensions and constants of a model, as its metadata gives them.
#[derive(Clone, Debug, PartialEq)]
pub struct GptOssConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of an expert's hidden layer.
    pub expert_width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    pub head_dim: usize,
    pub experts: usize,
    pub experts_per_token: usize,
    pub vocab: usize,
    pub context_length: usize,
    pub rms_eps: f32,
    /// Positions that a sliding layer sees.
    pub sliding_window: usize,
    /// One entry a layer.
    pub attention: Vec<AttentionKind>,
    pub rope: RopeConfig,
}

/// Rotary embedding with YaRN scaling (<https://arxiv.org/abs/2309.00071>).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// θ, the base of the frequencies.
    pub theta: f32,
    /// How many times longer the context is than the one trained before scaling.
    pub factor: f32,
    /// The context length before scaling.
    pub original_context: usize,
}

impl GptOssConfig {
    pub fn layers(&self) -> usize {
        self.attention.len()
    }

    /// Bytes of keys and values cached for one sequence of `context` tokens, at `value_bytes` a value.
    pub fn cache_bytes(&self, context: usize, value_bytes: usize) -> u64 {
        let position = 2 * self.kv_heads * self.head_dim * value_bytes;
        let positions: usize = (self.attention.iter())
            .map(|kind| match kind {
                AttentionKind::Full => context,
                AttentionKind::Sliding => context.min(self.sliding_window),
            })
            .sum();
        (positions * position) as u64
    }

    /// Reads the configuration from GGUF metadata; `vocab` comes from the embedding's shape.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<GptOssConfig, Defect> {
        let metadata = Metadata { gguf };
        match gguf.metadata.get("general.architecture").and_then(Value::as_str) {
            Some(ARCHITECTURE) => {}
            found => {
                let found = found.map_or("none".into(), |name| format!("`{name}`"));
                let part = "metadata `general.architecture`";
                return Err(Defect::new(part, format!("`{ARCHITECTURE}`"), found));
            }
        }
        let layers = metadata.size("block_count")?;
        if layers > gguf.tensors.len() {
            let expected = format!("at most the file's {} tensors", gguf.tensors.len());
            return Err(metadata.defect("block_count", expected, layers));
        }
        let heads = metadata.size("attention.head_count")?;
        let kv_heads = metadata.size("attention.head_count_kv")?;
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of the {heads} query heads");
            return Err(metadata.defect("attention.head_count_kv", expected, kv_heads));
        }
        let head_dim = metadata.size("attention.key_length")?;
        if head_dim % 2 != 0 {
            return Err(metadata.defect("attention.key_length", "an even number", head_dim));
        }
        let value_length = metadata.size("attention.value_length")?;
        if value_length != head_dim {
            let expected = format!("the key length {head_dim}");
            return Err(metadata.defect("attention.value_length", expected, value_length));
        }
        let experts = metadata.size("expert_count")?;
        let experts_per_token = metadata.size("expert_used_count")?;
        if experts_per_token > experts {
            let expected = format!("at most the {experts} experts");
            return Err(metadata.defect("expert_used_count", expected, experts_per_token));
        }
        Ok(GptOssConfig {
            hidden: metadata.size("embedding_length")?,
            expert_width: metadata.size("expert_feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            experts,
            experts_per_token,
            vocab: metadata.vocab()?,
            context_length: metadata.size("context_length")?,
            rms_eps: metadata.float("attention.layer_norm_rms_epsilon")?,
            sliding_window: metadata.size("attention.sliding_window")?,
            attention: metadata.attention_kinds(layers)?,
            rope: metadata.rope()?,
        })
    }
}

/// Metadata under the architecture's prefix, with errors that name the key.
struct Metadata<'a> {
    gguf: &'a Gguf,
}

impl Metadata<'_> {
    /// The largest believable dimension: it keeps products of a few dimensions far from overflow.
    const MAX_SIZE: u64 = 1 << 24;

    fn get(&self, key: &str) -> Option<&Value> {
        self.gguf.metadata.get(&format!("{ARCHITECTURE}.{key}"))
    }

    fn defect(&self, key: &str, expected: impl Into<String>, found: impl ToString) -> Defect {
        let part = format!("metadata `{ARCHITECTURE}.{key}`");
        Defect::new(part, expected, found.to_string())
    }

    fn size(&self, key: &str) -> Result<usize, Defect> {
        let expected = || format!("an integer from 1 to {}", Self::MAX_SIZE);
        let value = self.get(key).ok_or_else(|| self.defect(key, expected(), "no such key"))?;
        match value.as_u64() {
            Some(size) if (1..=Self::MAX_SIZE).contains(&size) => Ok(size as usize),
            Some(size) => Err(self.defect(key, expected(), size)),
            None => Err(self.defect(key, expected(), value.kind())),
        }
    }

    fn float(&self, key: &str) -> Result<f32, Defect> {
        let expected = "a positive finite number";
        let value = self.get(key).ok_or_else(|| self.defect(key, expected, "no such key"))?;
        match value.as_f64() {
            Some(number) if number.is_finite() && number > 0.0 => Ok(number as f32),
            Some(number) => Err(self.defect(key, expected, number)),
            None => Err(self.defect(key, expected, value.kind())),
        }
    }

    fn vocab(&self) -> Result<usize, Defect> {
        let embedding = "token_embd.weight";
        match self.gguf.tensors.get(embedding) {
            Some(tensor) => Ok(tensor.rows()),
            None => Err(Defect::new(format!("tensor `{embedding}`"), "the embedding matrix", "no such tensor")),
        }
    }

    fn rope(&self) -> Result<RopeConfig, Defect> {
        let key = "rope.scaling.type";
        match self.get(key).and_then(Value::as_str) {
            Some("yarn") => Ok(RopeConfig {
                theta: self.float("rope.freq_base")?,
                factor: self.float("rope.scaling.factor")?,
                original_context: self.size("rope.scaling.original_context_length")?,
            }),
            found => Err(self.defect(key, "`yarn`", found.map_or("none".into(), |f| format!("`{f}`")))),
        }
    }

    /// Even layers slide unless the file says which do.
    fn attention_kinds(&self, layers: usize) -> Result<Vec<AttentionKind>, Defect> {
        let kind = |slides| if slides { AttentionKind::Sliding } else { AttentionKind::Full };
        let key = "attention.sliding_window_pattern";
        let Some(value) = self.get(key) else {
            return Ok((0..layers).map(|layer| kind(layer % 2 == 0)).collect());
        };
        let expected = format!("an array of {layers} booleans, one a layer");
        let Some(array) = value.as_array().filter(|array| array.count() == layers) else {
            let found = value.as_array().map_or(value.kind().into(), |a| format!("{} elements", a.count()));
            return Err(self.defect(key, expected, found));
        };
        let booleans = array.scalars().and_then(|scalars| {
            scalars
                .map(|value| match value {
                    Value::Bool(slides) => Some(kind(slides)),
                    _ => None,
                })
                .collect()
        });
        booleans.ok_or_else(|| self.defect(key, expected, "an array of something else"))
    }
}
