//! The shape of a GPT-OSS model.

mod gguf;
mod json;

use crate::error::Defect;

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

impl AttentionKind {
    /// Even layers slide: what gpt-oss does where a file does not say.
    pub fn alternating(layers: usize) -> Vec<AttentionKind> {
        (0..layers).map(|layer| if layer % 2 == 0 { AttentionKind::Sliding } else { AttentionKind::Full }).collect()
    }
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
    pub ramp: YarnRamp,
}

/// Where YaRN's ramp from unscaled to scaled frequencies begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum YarnRamp {
    /// At fractions of a dimension, as the model was trained and as OpenAI and Hugging Face compute it.
    #[default]
    Exact,
    /// Rounded outwards to whole dimensions, as mlx-lm and llama.cpp do.
    Truncated,
}

impl YarnRamp {
    pub const ALL: [YarnRamp; 2] = [YarnRamp::Exact, YarnRamp::Truncated];

    pub const fn name(self) -> &'static str {
        match self {
            YarnRamp::Exact => "exact",
            YarnRamp::Truncated => "truncated",
        }
    }
}

impl GptOssConfig {
    pub fn layers(&self) -> usize {
        self.attention.len()
    }

    /// Bytes of keys and values cached for one sequence of `context` tokens, at `row_bytes` for the `head_dim` values of
    /// one head at one position.
    pub fn cache_bytes(&self, context: usize, row_bytes: usize) -> u64 {
        let position = 2 * self.kv_heads * row_bytes;
        let positions: usize = (self.attention.iter())
            .map(|kind| match kind {
                AttentionKind::Full => context,
                AttentionKind::Sliding => context.min(self.sliding_window),
            })
            .sum();
        (positions * position) as u64
    }

    /// Reads the dimensions under `names`, and checks that they make a model.
    fn read(
        file: &dyn Fields,
        names: &Names,
        vocab: usize,
        attention: Vec<AttentionKind>,
        rope: RopeConfig,
    ) -> Result<GptOssConfig, Defect> {
        let config = GptOssConfig {
            hidden: file.size(names.hidden)?,
            expert_width: file.size(names.expert_width)?,
            heads: file.size(names.heads)?,
            kv_heads: file.size(names.kv_heads)?,
            head_dim: file.size(names.head_dim)?,
            experts: file.size(names.experts)?,
            experts_per_token: file.size(names.experts_per_token)?,
            vocab,
            context_length: file.size(names.context_length)?,
            rms_eps: file.float(names.rms_eps)?,
            sliding_window: file.size(names.sliding_window)?,
            attention,
            rope,
        };
        let GptOssConfig { heads, kv_heads, head_dim, experts, experts_per_token, .. } = config;
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of the {heads} query heads");
            return Err(file.defect(names.kv_heads, expected, kv_heads.to_string()));
        }
        if head_dim % 2 != 0 {
            return Err(file.defect(names.head_dim, "an even number".into(), head_dim.to_string()));
        }
        if experts_per_token > experts {
            let expected = format!("at most the {experts} experts");
            return Err(file.defect(names.experts_per_token, expected, experts_per_token.to_string()));
        }
        Ok(config)
    }
}

/// What a file calls the dimensions.
struct Names {
    hidden: &'static str,
    expert_width: &'static str,
    heads: &'static str,
    kv_heads: &'static str,
    head_dim: &'static str,
    experts: &'static str,
    experts_per_token: &'static str,
    context_length: &'static str,
    rms_eps: &'static str,
    sliding_window: &'static str,
}

/// The largest believable dimension: it keeps products of a few dimensions far from overflow.
const MAX_SIZE: u64 = 1 << 24;

/// What a field of a file holds, as far as a configuration is concerned.
enum Found {
    Nothing,
    Integer(u64),
    Number(f64),
    /// Something else, in words.
    Other(&'static str),
}

/// A file's fields by name.
trait Fields {
    fn get(&self, name: &str) -> Found;

    /// An error that says where in the file the field is.
    fn defect(&self, name: &str, expected: String, found: String) -> Defect;

    fn size(&self, name: &str) -> Result<usize, Defect> {
        let defect = |found: String| self.defect(name, format!("an integer from 1 to {MAX_SIZE}"), found);
        match self.get(name) {
            Found::Integer(size) if (1..=MAX_SIZE).contains(&size) => Ok(size as usize),
            Found::Integer(size) => Err(defect(size.to_string())),
            Found::Nothing => Err(defect("no such key".into())),
            Found::Number(_) => Err(defect("a float".into())),
            Found::Other(what) => Err(defect(what.into())),
        }
    }

    fn float(&self, name: &str) -> Result<f32, Defect> {
        let defect = |found: String| self.defect(name, "a positive finite number".into(), found);
        match self.get(name) {
            Found::Number(number) if number.is_finite() && number as f32 > 0.0 => Ok(number as f32),
            Found::Number(number) => Err(defect(number.to_string())),
            Found::Nothing => Err(defect("no such key".into())),
            Found::Integer(_) => Err(defect("an integer".into())),
            Found::Other(what) => Err(defect(what.into())),
        }
    }
}
