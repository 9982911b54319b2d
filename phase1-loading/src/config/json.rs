//! The configuration in a model folder's `config.json`, as Hugging Face and mlx-lm write it.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::constants::{BETA_FAST, BETA_SLOW, SWIGLU_ALPHA, SWIGLU_LIMIT, attention_factor, is_close};
use super::{AttentionKind, GptOssConfig, MAX_SIZE, Names, RopeConfig, YarnRamp};
use crate::error::Defect;

const NAMES: Names =
    Names { kv_heads: "num_key_value_heads", head_dim: "head_dim", experts_per_token: "num_experts_per_tok" };

/// The keys of `config.json` that are read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct HfConfig {
    model_type: Field,
    num_hidden_layers: Field,
    vocab_size: Field,
    hidden_size: Field,
    intermediate_size: Field,
    num_attention_heads: Field,
    num_key_value_heads: Field,
    head_dim: Field,
    num_local_experts: Field,
    /// Another name of `num_local_experts`.
    num_experts: Field,
    num_experts_per_tok: Field,
    /// Another name of `num_experts_per_tok`.
    experts_per_token: Field,
    max_position_embeddings: Field,
    /// Another name of `original_max_position_embeddings` in `rope_scaling`.
    initial_context_length: Field,
    rms_norm_eps: Field,
    sliding_window: Field,
    layer_types: Field,
    rope_theta: Field,
    /// An [`HfRope`] with θ: transformers 5 writes all RoPE parameters here.
    rope_parameters: Field,
    /// An [`HfRope`] without θ, as earlier versions of transformers and mlx-lm write it.
    rope_scaling: Field,
    // Keys with only one value in gpt-oss.
    partial_rotary_factor: Field,
    swiglu_limit: Field,
    swiglu_alpha: Field,
    hidden_act: Field,
    attention_bias: Field,
    tie_word_embeddings: Field,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HfRope {
    rope_type: Field,
    /// An older name of `rope_type`.
    r#type: Field,
    rope_theta: Field,
    factor: Field,
    original_max_position_embeddings: Field,
    beta_fast: Field,
    beta_slow: Field,
    truncate: Field,
    // Keys with only one value in gpt-oss, except the two `mscale` keys, which it does not have: a file with them is refused.
    attention_factor: Field,
    mscale: Field,
    mscale_all_dim: Field,
    partial_rotary_factor: Field,
}

/// A value of any type, or `None` for a missing key. Its type is checked when it is used, so that the error can say which key
/// it is, what was expected and what was found; serde's own errors do not.
#[derive(Default, Deserialize)]
#[serde(from = "Value")]
struct Field(Option<Value>);

impl From<Value> for Field {
    fn from(value: Value) -> Field {
        Field(Some(value))
    }
}

impl GptOssConfig {
    /// Reads the configuration of a folder that has `tensors` tensors.
    pub(crate) fn from_json(json: &Value, tensors: usize) -> Result<GptOssConfig, Defect> {
        let file: HfConfig = object(json).unwrap_or_default();
        file.model_type.expect_text("model_type", "gpt_oss")?;
        let layers = file.num_hidden_layers.size("num_hidden_layers")?;
        if layers > tensors {
            let expected = format!("at most the folder's {tensors} tensors");
            return Err(defect("num_hidden_layers", expected, layers.to_string()));
        }
        let config = GptOssConfig {
            vocab: file.vocab_size.size("vocab_size")?,
            attention: file.attention_kinds(layers)?,
            rope: file.rope()?,
            hidden: file.hidden_size.size("hidden_size")?,
            expert_width: file.intermediate_size.size("intermediate_size")?,
            heads: file.num_attention_heads.size("num_attention_heads")?,
            kv_heads: file.num_key_value_heads.size(NAMES.kv_heads)?,
            head_dim: file.head_dim.size(NAMES.head_dim)?,
            experts: either((&file.num_local_experts, "num_local_experts"), (&file.num_experts, "num_experts"))?,
            experts_per_token: either(
                (&file.num_experts_per_tok, NAMES.experts_per_token),
                (&file.experts_per_token, "experts_per_token"),
            )?,
            context_length: file.max_position_embeddings.size("max_position_embeddings")?,
            rms_eps: file.rms_norm_eps.float("rms_norm_eps")?,
            sliding_window: file.sliding_window.size("sliding_window")?,
        };
        config.check(&NAMES, defect)?;
        file.check_fixed()?;
        Ok(config)
    }
}

impl HfConfig {
    /// Refuses a configuration that requires a computation that the engines do not support, because they would compute wrong results for
    /// it.
    fn check_fixed(&self) -> Result<(), Defect> {
        self.swiglu_limit.expect_number("swiglu_limit", SWIGLU_LIMIT)?;
        self.swiglu_alpha.expect_number("swiglu_alpha", SWIGLU_ALPHA)?;
        self.partial_rotary_factor.expect_number("partial_rotary_factor", 1.0)?;
        if !self.hidden_act.is_missing() {
            self.hidden_act.expect_text("hidden_act", "silu")?;
        }
        self.attention_bias.expect_flag("attention_bias", true)?;
        self.tie_word_embeddings.expect_flag("tie_word_embeddings", false)
    }

    fn rope(&self) -> Result<RopeConfig, Defect> {
        if let Some(parameters) = self.rope_parameters.object::<HfRope>() {
            let inside = parameters.rope_theta.float("rope_parameters.rope_theta");
            let theta = inside.or_else(|defect| self.rope_theta.float("rope_theta").map_err(|_| defect))?;
            parameters.config("rope_parameters", theta, &self.initial_context_length)
        } else if let Some(scaling) = self.rope_scaling.object::<HfRope>() {
            scaling.config("rope_scaling", self.rope_theta.float("rope_theta")?, &self.initial_context_length)
        } else {
            let expected = "an object with YaRN's parameters, or one named `rope_scaling`";
            Err(defect("rope_parameters", expected, "neither"))
        }
    }

    /// The attention kind of each layer. Even layers slide unless the file says otherwise.
    fn attention_kinds(&self, layers: usize) -> Result<Vec<AttentionKind>, Defect> {
        let wrong = |found: String| {
            defect("layer_types", format!("{layers} times `sliding_attention` or `full_attention`"), found)
        };
        let list = match &self.layer_types.0 {
            None | Some(Value::Null) => return Ok(AttentionKind::alternating(layers)),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(wrong(kind(other).into())),
        };
        if list.len() != layers {
            return Err(wrong(format!("{} elements", list.len())));
        }
        let read = |value: &Value| match value.as_str() {
            Some("sliding_attention") => Ok(AttentionKind::Sliding),
            Some("full_attention") => Ok(AttentionKind::Full),
            Some(other) => Err(wrong(quoted(other))),
            None => Err(wrong(kind(value).into())),
        };
        list.iter().map(read).collect()
    }
}

impl HfRope {
    /// `initial` is the context length before scaling, `initial_context_length`, if the enclosing configuration gives it.
    fn config(&self, section: &str, theta: f32, initial: &Field) -> Result<RopeConfig, Defect> {
        let name = |key: &str| format!("{section}.{key}");
        match self.rope_type.0 {
            Some(_) => self.rope_type.expect_text(&name("rope_type"), "yarn")?,
            None => self.r#type.expect_text(&name("type"), "yarn")?,
        }
        let ramp = match &self.truncate.0 {
            None | Some(Value::Null | Value::Bool(false)) => YarnRamp::Exact,
            Some(Value::Bool(true)) => YarnRamp::Truncated,
            Some(_) => return Err(defect(&name("truncate"), "a boolean", self.truncate.found())),
        };
        let factor = self.factor.float(&name("factor"))?;
        for (field, key, usual) in [
            (&self.beta_fast, "beta_fast", BETA_FAST),
            (&self.beta_slow, "beta_slow", BETA_SLOW),
            (&self.attention_factor, "attention_factor", attention_factor(f64::from(factor))),
            (&self.partial_rotary_factor, "partial_rotary_factor", 1.0),
        ] {
            field.expect_number(&name(key), usual)?;
        }
        for (field, key) in [(&self.mscale, "mscale"), (&self.mscale_all_dim, "mscale_all_dim")] {
            if !field.is_missing() {
                return Err(defect(&name(key), "no such key", field.found()));
            }
        }
        let original_context = either(
            (&self.original_max_position_embeddings, &name("original_max_position_embeddings")),
            (initial, "initial_context_length"),
        )?;
        Ok(RopeConfig { theta, factor, original_context, ramp })
    }
}

/// A size with two possible names. A file may give both, with equal values.
fn either((first, name): (&Field, &str), (second, other): (&Field, &str)) -> Result<usize, Defect> {
    if first.is_missing() && !second.is_missing() {
        return second.size(other);
    }
    let size = first.size(name)?;
    if !second.is_missing() && second.size(other)? != size {
        return Err(defect(other, format!("the {size} of `{name}`"), second.found()));
    }
    Ok(size)
}

impl Field {
    fn object<T: DeserializeOwned>(&self) -> Option<T> {
        self.0.as_ref().and_then(object)
    }

    /// `null` counts as missing, because transformers writes it for keys without a value.
    fn is_missing(&self) -> bool {
        matches!(self.0, None | Some(Value::Null))
    }

    /// Refuses a number other than `usual`; a missing key is accepted.
    fn expect_number(&self, name: &str, usual: f64) -> Result<(), Defect> {
        match self.is_missing() || is_close(self.float(name)?.into(), usual) {
            true => Ok(()),
            false => Err(defect(name, usual.to_string(), self.found())),
        }
    }

    /// Refuses a boolean other than `usual`; a missing key is accepted.
    fn expect_flag(&self, name: &str, usual: bool) -> Result<(), Defect> {
        match self.is_missing() || self.0 == Some(Value::Bool(usual)) {
            true => Ok(()),
            false => Err(defect(name, usual.to_string(), self.found())),
        }
    }

    fn expect_text(&self, name: &str, expected: &str) -> Result<(), Defect> {
        match &self.0 {
            Some(Value::String(found)) if found == expected => Ok(()),
            _ => Err(defect(name, format!("`{expected}`"), self.found())),
        }
    }

    /// A whole number; one written with a zero fraction (`64.0`) is accepted.
    fn size(&self, name: &str) -> Result<usize, Defect> {
        let size = match &self.0 {
            Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
                (Some(integer), _) => integer,
                (None, Some(float)) if float.fract() == 0.0 && float > 0.0 => float as u64,
                _ => 0,
            },
            _ => 0,
        };
        if (1..=MAX_SIZE).contains(&size) {
            return Ok(size as usize);
        }
        Err(defect(name, format!("an integer from 1 to {MAX_SIZE}"), self.found()))
    }

    /// A float; a whole number is accepted, because JSON writers drop `.0`.
    fn float(&self, name: &str) -> Result<f32, Defect> {
        let float = self.0.as_ref().and_then(Value::as_f64).map(|float| float as f32);
        match float.filter(|float| float.is_finite() && *float > 0.0) {
            Some(float) => Ok(float),
            None => Err(defect(name, "a positive finite number", self.found())),
        }
    }

    /// The value as an error message quotes it.
    fn found(&self) -> String {
        match &self.0 {
            None => "no such key".into(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::String(text)) => quoted(text),
            Some(other) => kind(other).into(),
        }
    }
}

/// The fields of an object; `None` for any other value.
fn object<T: DeserializeOwned>(value: &Value) -> Option<T> {
    value.is_object().then(|| T::deserialize(value).expect("every field takes any value"))
}

fn defect(name: &str, expected: impl Into<String>, found: impl Into<String>) -> Defect {
    Defect::new(format!("config.json: `{name}`"), expected, found)
}

/// The beginning of a text, quoted for an error message.
fn quoted(text: &str) -> String {
    format!("`{}`", text.chars().take(40).collect::<String>())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
