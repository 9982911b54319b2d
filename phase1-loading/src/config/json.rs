//! The configuration in a model folder's `config.json`, as Hugging Face and mlx-lm write it.

use serde_json::Value;

use super::{AttentionKind, Fields, Found, GptOssConfig, MAX_SIZE, Names, RopeConfig, YarnRamp};
use crate::error::Defect;

const NAMES: Names = Names {
    hidden: "hidden_size",
    expert_width: "intermediate_size",
    heads: "num_attention_heads",
    kv_heads: "num_key_value_heads",
    head_dim: "head_dim",
    experts: "num_local_experts",
    experts_per_token: "num_experts_per_tok",
    context_length: "max_position_embeddings",
    rms_eps: "rms_norm_eps",
    sliding_window: "sliding_window",
};

/// YaRN's β and α, which every gpt-oss has and GGUF does not even write.
const BETAS: [(&str, f64); 2] = [("beta_fast", 32.0), ("beta_slow", 1.0)];

impl GptOssConfig {
    /// Reads the configuration of a folder with that many tensors.
    pub(crate) fn from_json(json: &Value, tensors: usize) -> Result<GptOssConfig, Defect> {
        let config = Section { json, path: "" };
        config.expect_text("model_type", "gpt_oss")?;
        let layers = config.size("num_hidden_layers")?;
        if layers > tensors {
            let expected = format!("at most the folder's {tensors} tensors");
            return Err(config.defect("num_hidden_layers", expected, layers.to_string()));
        }
        let (vocab, attention) = (config.size("vocab_size")?, config.attention_kinds(layers)?);
        GptOssConfig::read(&config, &NAMES, vocab, attention, config.rope()?)
    }
}

/// An object in the file.
struct Section<'a> {
    json: &'a Value,
    /// Its own name and a dot; nothing for the outermost.
    path: &'static str,
}

impl Fields for Section<'_> {
    fn get(&self, name: &str) -> Found {
        match self.json.get(name) {
            None | Some(Value::Null) => Found::Nothing,
            Some(Value::Number(number)) => match number.as_u64() {
                Some(integer) => Found::Integer(integer),
                None => Found::Number(number.as_f64().unwrap_or(f64::NAN)),
            },
            Some(other) => Found::Other(kind(other)),
        }
    }

    fn defect(&self, name: &str, expected: String, found: String) -> Defect {
        Defect::new(format!("config.json: `{}{name}`", self.path), expected, found)
    }

    /// A whole number may stand for itself: JSON writers drop `.0`. So may a size written with it.
    fn float(&self, name: &str) -> Result<f32, Defect> {
        let number = match self.get(name) {
            Found::Number(number) => number,
            Found::Integer(integer) => integer as f64,
            _ => f64::NAN,
        };
        if number.is_finite() && number as f32 > 0.0 {
            return Ok(number as f32);
        }
        Err(self.defect(name, "a positive finite number".into(), self.described(name)))
    }

    fn size(&self, name: &str) -> Result<usize, Defect> {
        let size = match self.get(name) {
            Found::Integer(integer) => integer,
            Found::Number(number) if number.fract() == 0.0 && number > 0.0 => number as u64,
            _ => 0,
        };
        if (1..=MAX_SIZE).contains(&size) {
            return Ok(size as usize);
        }
        Err(self.defect(name, format!("an integer from 1 to {MAX_SIZE}"), self.described(name)))
    }
}

impl<'a> Section<'a> {
    fn described(&self, name: &str) -> String {
        match self.json.get(name) {
            None => "no such key".into(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::String(text)) => format!("`{}`", text.chars().take(40).collect::<String>()),
            Some(other) => kind(other).into(),
        }
    }

    fn expect_text(&self, name: &str, expected: &str) -> Result<(), Defect> {
        match self.json.get(name).and_then(Value::as_str) {
            Some(found) if found == expected => Ok(()),
            _ => Err(self.defect(name, format!("`{expected}`"), self.described(name))),
        }
    }

    fn section(&self, name: &str, path: &'static str) -> Option<Section<'a>> {
        self.json.get(name).filter(|json| json.is_object()).map(|json| Section { json, path })
    }

    /// transformers 5 keeps everything in `rope_parameters`; earlier ones, and mlx-lm, keep θ outside `rope_scaling`.
    fn rope(&self) -> Result<RopeConfig, Defect> {
        let (section, theta) = if let Some(parameters) = self.section("rope_parameters", "rope_parameters.") {
            let theta =
                parameters.float("rope_theta").or_else(|defect| self.float("rope_theta").map_err(|_| defect))?;
            (parameters, theta)
        } else if let Some(scaling) = self.section("rope_scaling", "rope_scaling.") {
            (scaling, self.float("rope_theta")?)
        } else {
            let expected = "an object with YaRN's parameters, or one named `rope_scaling`";
            return Err(self.defect("rope_parameters", expected.into(), "neither".into()));
        };
        let kind = if section.json.get("rope_type").is_some() { "rope_type" } else { "type" };
        section.expect_text(kind, "yarn")?;
        for (name, usual) in BETAS {
            if !matches!(section.get(name), Found::Nothing) && f64::from(section.float(name)?) != usual {
                return Err(section.defect(name, usual.to_string(), section.described(name)));
            }
        }
        let ramp = match section.json.get("truncate") {
            None | Some(Value::Null | Value::Bool(false)) => YarnRamp::Exact,
            Some(Value::Bool(true)) => YarnRamp::Truncated,
            Some(_) => return Err(section.defect("truncate", "a boolean".into(), section.described("truncate"))),
        };
        Ok(RopeConfig {
            theta,
            factor: section.float("factor")?,
            original_context: section.size("original_max_position_embeddings")?,
            ramp,
        })
    }

    /// Even layers slide unless the file says which do.
    fn attention_kinds(&self, layers: usize) -> Result<Vec<AttentionKind>, Defect> {
        let name = "layer_types";
        let Some(list) = self.json.get(name).filter(|list| !list.is_null()) else {
            return Ok(AttentionKind::alternating(layers));
        };
        let expected = || format!("{layers} times `sliding_attention` or `full_attention`");
        let list = list.as_array().ok_or_else(|| self.defect(name, expected(), kind(list).into()))?;
        if list.len() != layers {
            return Err(self.defect(name, expected(), format!("{} elements", list.len())));
        }
        let read = |value: &Value| match value.as_str() {
            Some("sliding_attention") => Ok(AttentionKind::Sliding),
            Some("full_attention") => Ok(AttentionKind::Full),
            Some(other) => {
                let found = format!("`{}`", other.chars().take(40).collect::<String>());
                Err(self.defect(name, expected(), found))
            }
            None => Err(self.defect(name, expected(), kind(value).into())),
        };
        list.iter().map(read).collect()
    }
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
