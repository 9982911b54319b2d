//! The shape of a GPT-OSS model.

pub mod constants;
mod gguf;
mod gguf_fixed;
mod json;
mod metadata;

use crate::error::Defect;

/// Which keys a layer's queries can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// The last `sliding_window` positions, including the query's own.
    Sliding,
    /// Every position up to and including the query's own.
    Full,
}

impl AttentionKind {
    /// Sliding attention in even layers, full attention in odd ones: the pattern of gpt-oss, and the default if a file gives none.
    pub fn alternating(layers: usize) -> Vec<AttentionKind> {
        (0..layers).map(|layer| if layer % 2 == 0 { AttentionKind::Sliding } else { AttentionKind::Full }).collect()
    }
}

/// Dimensions and constants of a model, read from its metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct GptOssConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of an expert's hidden layer: `intermediate_size` of Hugging Face, `expert_feed_forward_length` of llama.cpp.
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
    /// Positions that a query of a sliding layer sees, its own included.
    pub sliding_window: usize,
    /// One entry per layer.
    pub attention: Vec<AttentionKind>,
    pub rope: RopeConfig,
}

/// Rotary embedding with YaRN scaling (<https://arxiv.org/abs/2309.00071>).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// θ, the base of the frequencies.
    pub theta: f32,
    /// Ratio of the scaled context length to the one the model was trained on before scaling.
    pub factor: f32,
    /// The context length before scaling.
    pub original_context: usize,
    pub ramp: YarnRamp,
}

/// Where YaRN's ramp from unscaled to scaled frequencies begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum YarnRamp {
    /// At fractional dimension indices, as the model was trained and as OpenAI and Hugging Face compute it.
    #[default]
    Exact,
    /// Rounded outwards to whole dimension indices, as mlx-lm and llama.cpp do.
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

    /// Checks that the dimensions are consistent. `defect` builds an error from the name of a field in the file, the expected value and the
    /// found one.
    fn check(&self, names: &Names, defect: impl Fn(&str, String, String) -> Defect) -> Result<(), Defect> {
        let GptOssConfig { heads, kv_heads, head_dim, experts, experts_per_token, .. } = *self;
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of the {heads} query heads");
            return Err(defect(names.kv_heads, expected, kv_heads.to_string()));
        }
        if head_dim % 2 != 0 {
            return Err(defect(names.head_dim, "an even number".into(), head_dim.to_string()));
        }
        if experts_per_token > experts {
            let expected = format!("at most the {experts} experts");
            return Err(defect(names.experts_per_token, expected, experts_per_token.to_string()));
        }
        Ok(())
    }
}

/// The names that a file has for the dimensions that [`GptOssConfig::check`] can refuse.
struct Names {
    kv_heads: &'static str,
    head_dim: &'static str,
    experts_per_token: &'static str,
}

/// The largest accepted dimension. It is small enough that the product of two dimensions does not overflow 64 bits.
const MAX_SIZE: u64 = 1 << 24;
