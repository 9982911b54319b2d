//! Checked access to a GGUF file's metadata.

use super::{AttentionKind, MAX_SIZE, RopeConfig, YarnRamp};
use crate::dialect::Dialect;
use crate::error::Defect;
use crate::gguf::{Gguf, Value};

/// Metadata under the architecture's prefix, such as `gpt-oss.`.
pub(super) struct Metadata<'a> {
    gguf: &'a Gguf,
    dialect: Dialect,
}

impl Metadata<'_> {
    pub fn new(gguf: &Gguf, dialect: Dialect) -> Metadata<'_> {
        Metadata { gguf, dialect }
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.dialect.architecture())
    }

    pub fn value(&self, key: &str) -> Option<&Value> {
        self.gguf.metadata.get(&self.name(key))
    }

    pub fn defect(&self, key: &str, expected: impl Into<String>, found: impl Into<String>) -> Defect {
        Defect::new(format!("metadata `{}`", self.name(key)), expected, found)
    }

    /// An integer, or an array that holds the same integer for every layer.
    pub fn size(&self, key: &str) -> Result<usize, Defect> {
        let found = match self.value(key) {
            None => "no such key".into(),
            Some(Value::Float(_)) => "a float".into(),
            Some(value) => match value.as_u64().or_else(|| same_integer(value)) {
                Some(size) if (1..=MAX_SIZE).contains(&size) => return Ok(size as usize),
                Some(size) => size.to_string(),
                None => value.kind().into(),
            },
        };
        Err(self.defect(key, format!("an integer from 1 to {MAX_SIZE}"), found))
    }

    /// A float; an integer is accepted, because metadata written by hand often has integers here.
    pub fn float(&self, key: &str) -> Result<f32, Defect> {
        let number = match self.value(key) {
            Some(&Value::Float(number)) => Some(number),
            Some(value) => value.as_u64().map(|number| number as f64),
            None => None,
        };
        let found = match (number, self.value(key)) {
            (Some(number), _) if number.is_finite() && number as f32 > 0.0 => return Ok(number as f32),
            (Some(number), _) => number.to_string(),
            (None, Some(value)) => value.kind().into(),
            (None, None) => "no such key".into(),
        };
        Err(self.defect(key, "a positive finite number", found))
    }

    pub fn vocab(&self) -> Result<usize, Defect> {
        let embedding = "token_embd.weight";
        match self.gguf.tensors.get(embedding) {
            Some(tensor) => Ok(tensor.rows()),
            None => Err(Defect::new(format!("tensor `{embedding}`"), "the embedding matrix", "no such tensor")),
        }
    }

    pub fn rope(&self) -> Result<RopeConfig, Defect> {
        let key = "rope.scaling.type";
        let yarn = RopeConfig {
            theta: self.float("rope.freq_base")?,
            factor: self.float("rope.scaling.factor")?,
            original_context: self.size("rope.scaling.original_context_length")?,
            // GGUF has no key for the ramp.
            ramp: YarnRamp::default(),
        };
        match self.value(key) {
            // Ollama's code assumes YaRN and does not write this key.
            None if self.dialect == Dialect::Ollama => Ok(yarn),
            Some(value) if value.as_str() == Some("yarn") => Ok(yarn),
            found => {
                let found = found.and_then(Value::as_str).map_or("none".into(), |name| format!("`{name}`"));
                Err(self.defect(key, "`yarn`", found))
            }
        }
    }

    /// The attention kind of each layer. The file has one flag per layer (true: sliding), or a number n: every nth layer has full attention
    /// (with 0, no layer). Without the key, even layers have sliding attention.
    pub fn attention_kinds(&self, layers: usize) -> Result<Vec<AttentionKind>, Defect> {
        let kind = |slides| if slides { AttentionKind::Sliding } else { AttentionKind::Full };
        let key = "attention.sliding_window_pattern";
        let Some(value) = self.value(key) else { return Ok(AttentionKind::alternating(layers)) };
        if let Some(period) = value.as_u64() {
            let slides = |layer: usize| period == 0 || layer as u64 % period < period - 1;
            return Ok((0..layers).map(|layer| kind(slides(layer))).collect());
        }
        let expected = format!("a number, or an array of {layers} booleans, one per layer");
        let Some(array) = value.as_array().filter(|array| array.count() == layers) else {
            let found = value.as_array().map_or(value.kind().into(), |a| format!("{} elements", a.count()));
            return Err(self.defect(key, expected, found));
        };
        let flag = |value: Value| match (&value, value.as_u64()) {
            (Value::Bool(slides), _) => Some(kind(*slides)),
            (_, Some(number @ (0 | 1))) => Some(kind(number == 1)),
            _ => None,
        };
        let flags = array.scalars().and_then(|scalars| scalars.map(flag).collect());
        flags.ok_or_else(|| self.defect(key, expected, "an array of something else"))
    }
}

/// The integer that all elements of an array are equal to.
fn same_integer(value: &Value) -> Option<u64> {
    let mut integers = value.as_array()?.scalars()?.map(|value| value.as_u64());
    let first = integers.next()??;
    integers.all(|integer| integer == Some(first)).then_some(first)
}
