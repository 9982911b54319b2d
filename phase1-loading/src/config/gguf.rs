//! The configuration as GGUF metadata, read and written.

use super::{ARCHITECTURE, AttentionKind, GptOssConfig, MAX_SIZE, Names, RopeConfig, YarnRamp};
use crate::error::Defect;
use crate::gguf::{Gguf, MetadataValue, Value};

const NAMES: Names = Names {
    kv_heads: "attention.head_count_kv",
    head_dim: "attention.key_length",
    experts_per_token: "expert_used_count",
};

impl GptOssConfig {
    /// Reads the configuration; `vocab` comes from the embedding's shape.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<GptOssConfig, Defect> {
        match gguf.metadata.get("general.architecture").and_then(Value::as_str) {
            Some(ARCHITECTURE) => {}
            found => {
                let found = found.map_or("none".into(), |name| format!("`{name}`"));
                let part = "metadata `general.architecture`";
                return Err(Defect::new(part, format!("`{ARCHITECTURE}`"), found));
            }
        }
        let metadata = Metadata { gguf };
        let layers = metadata.size("block_count")?;
        if layers > gguf.tensors.len() {
            let expected = format!("at most the file's {} tensors", gguf.tensors.len());
            return Err(metadata.defect("block_count", expected, layers.to_string()));
        }
        let config = GptOssConfig {
            attention: metadata.attention_kinds(layers)?,
            vocab: metadata.vocab()?,
            rope: metadata.rope()?,
            hidden: metadata.size("embedding_length")?,
            expert_width: metadata.size("expert_feed_forward_length")?,
            heads: metadata.size("attention.head_count")?,
            kv_heads: metadata.size(NAMES.kv_heads)?,
            head_dim: metadata.size(NAMES.head_dim)?,
            experts: metadata.size("expert_count")?,
            experts_per_token: metadata.size(NAMES.experts_per_token)?,
            context_length: metadata.size("context_length")?,
            rms_eps: metadata.float("attention.layer_norm_rms_epsilon")?,
            sliding_window: metadata.size("attention.sliding_window")?,
        };
        config.check(&NAMES, |name, expected, found| metadata.defect(name, expected, found))?;
        let value_length = metadata.size("attention.value_length")?;
        if value_length != config.head_dim {
            let expected = format!("the key length {}", config.head_dim);
            return Err(metadata.defect("attention.value_length", expected, value_length.to_string()));
        }
        Ok(config)
    }
}

impl GptOssConfig {
    /// The configuration as GGUF metadata, with what other programs expect beside it.
    pub fn to_gguf(&self, name: &str) -> Vec<(String, MetadataValue)> {
        use MetadataValue::{F32, Text, U32};
        let size = |value: usize| U32(value as u32);
        let general = [
            ("general.architecture".into(), Text(ARCHITECTURE.into())),
            ("general.name".into(), Text(name.into())),
            ("general.file_type".into(), U32(38)),
            ("general.quantization_version".into(), U32(2)),
        ];
        let model = [
            ("block_count", size(self.layers())),
            ("context_length", size(self.context_length)),
            ("embedding_length", size(self.hidden)),
            ("feed_forward_length", size(self.expert_width)),
            ("expert_feed_forward_length", size(self.expert_width)),
            ("expert_count", size(self.experts)),
            ("expert_used_count", size(self.experts_per_token)),
            ("attention.head_count", size(self.heads)),
            ("attention.head_count_kv", size(self.kv_heads)),
            ("attention.key_length", size(self.head_dim)),
            ("attention.value_length", size(self.head_dim)),
            ("attention.sliding_window", size(self.sliding_window)),
            ("attention.layer_norm_rms_epsilon", F32(self.rms_eps)),
            ("rope.freq_base", F32(self.rope.theta)),
            ("rope.scaling.type", Text("yarn".into())),
            ("rope.scaling.factor", F32(self.rope.factor)),
            ("rope.scaling.original_context_length", size(self.rope.original_context)),
        ];
        let model = model.map(|(key, value)| (format!("{ARCHITECTURE}.{key}"), value));
        let slides: Vec<bool> = self.attention.iter().map(|&kind| kind == AttentionKind::Sliding).collect();
        // What every reader assumes is not written.
        let pattern = (self.attention != AttentionKind::alternating(self.layers()))
            .then(|| (format!("{ARCHITECTURE}.attention.sliding_window_pattern"), MetadataValue::Bools(slides)));
        general.into_iter().chain(model).chain(pattern).collect()
    }
}

/// Metadata under the architecture's prefix.
struct Metadata<'a> {
    gguf: &'a Gguf,
}

impl Metadata<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.gguf.metadata.get(&format!("{ARCHITECTURE}.{key}"))
    }

    fn defect(&self, key: &str, expected: impl Into<String>, found: impl Into<String>) -> Defect {
        Defect::new(format!("metadata `{ARCHITECTURE}.{key}`"), expected, found)
    }

    fn size(&self, key: &str) -> Result<usize, Defect> {
        let found = match self.value(key) {
            None => "no such key".into(),
            Some(Value::Float(_)) => "a float".into(),
            Some(value) => match value.as_u64() {
                Some(size) if (1..=MAX_SIZE).contains(&size) => return Ok(size as usize),
                Some(size) => size.to_string(),
                None => value.kind().into(),
            },
        };
        Err(self.defect(key, format!("an integer from 1 to {MAX_SIZE}"), found))
    }

    fn float(&self, key: &str) -> Result<f32, Defect> {
        let found = match self.value(key) {
            None => "no such key".into(),
            Some(&Value::Float(number)) if number.is_finite() && number as f32 > 0.0 => return Ok(number as f32),
            Some(Value::Float(number)) => number.to_string(),
            Some(value) => value.kind().into(),
        };
        Err(self.defect(key, "a positive finite number", found))
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
        match self.value(key).and_then(Value::as_str) {
            Some("yarn") => Ok(RopeConfig {
                theta: self.float("rope.freq_base")?,
                factor: self.float("rope.scaling.factor")?,
                original_context: self.size("rope.scaling.original_context_length")?,
                // GGUF has no key for it.
                ramp: YarnRamp::default(),
            }),
            found => Err(self.defect(key, "`yarn`", found.map_or("none".into(), |f| format!("`{f}`")))),
        }
    }

    /// Even layers slide unless the file says which do.
    fn attention_kinds(&self, layers: usize) -> Result<Vec<AttentionKind>, Defect> {
        let kind = |slides| if slides { AttentionKind::Sliding } else { AttentionKind::Full };
        let key = "attention.sliding_window_pattern";
        let Some(value) = self.value(key) else { return Ok(AttentionKind::alternating(layers)) };
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
