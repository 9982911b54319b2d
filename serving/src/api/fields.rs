//! The request fields for sampling and stopping, shared by all endpoints.

use std::collections::BTreeMap;

use phase2_forward::Sampling;
use phase3_kvcache::SamplingParams;
use serde::Deserialize;

use super::error::ApiError;
use super::id;

/// Sampling fields of a request.
#[derive(Clone, Debug, Default)]
pub struct SamplingFields {
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    /// Biases by token id.
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub seed: Option<i64>,
}

impl SamplingFields {
    /// The sampling parameters; the default temperature is 1.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn params(&self, vocab: usize) -> Result<SamplingParams, ApiError> {
        let sampling = Sampling {
            temperature: in_range("temperature", self.temperature, 0.0, 2.0, 1.0)?,
            top_k: match self.top_k {
                // vLLM uses -1 for all tokens.
                None | Some(-1) => 0,
                Some(count) => usize::try_from(count)
                    .map_err(|_| ApiError::invalid("top_k", "`top_k` must be -1, 0, or a number of tokens."))?,
            },
            top_p: in_range("top_p", self.top_p, 0.0, 1.0, 1.0)?,
            min_p: in_range("min_p", self.min_p, 0.0, 1.0, 0.0)?,
        };
        let repetition_penalty = in_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, 1.0)?;
        if repetition_penalty <= 0.0 {
            return Err(ApiError::invalid("repetition_penalty", "`repetition_penalty` must be above 0."));
        }
        Ok(SamplingParams {
            sampling,
            repetition_penalty,
            presence_penalty: in_range("presence_penalty", self.presence_penalty, -2.0, 2.0, 0.0)?,
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0, 0.0)?,
            logit_bias: self.biases(vocab)?,
            seed: self.seed.map_or_else(id::seed, |seed| seed as u64),
        })
    }

    fn biases(&self, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
        let biases = self.logit_bias.iter().flatten();
        biases
            .map(|(key, &bias)| {
                let token = key.parse::<u32>().ok().filter(|&token| (token as usize) < vocab);
                let token = token.ok_or_else(|| {
                    let message = format!("`logit_bias` must name token ids below {vocab}, not `{key}`.");
                    ApiError::invalid("logit_bias", message)
                })?;
                match bias {
                    -100.0 => Ok((token, f32::NEG_INFINITY)),
                    -100.0..=100.0 => Ok((token, bias as f32)),
                    _ => Err(ApiError::invalid("logit_bias", "Each `logit_bias` must be from -100 to 100.")),
                }
            })
            .collect()
    }
}

fn in_range(name: &str, value: Option<f64>, least: f64, most: f64, default: f32) -> Result<f32, ApiError> {
    match value {
        None => Ok(default),
        Some(value) if (least..=most).contains(&value) => Ok(value as f32),
        Some(value) => Err(ApiError::invalid(name, format!("`{name}` must be from {least} to {most}, not {value}."))),
    }
}

/// One or several stop strings.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum Stop {
    One(String),
    Many(Vec<String>),
}

/// # Errors
/// Too many strings, an empty one or one that is too long.
pub fn stop_strings(stop: Option<Stop>) -> Result<Vec<String>, ApiError> {
    const MOST: usize = 16;
    const LONGEST: usize = 512;
    let stops = match stop {
        None => Vec::new(),
        Some(Stop::One(text)) => vec![text],
        Some(Stop::Many(texts)) => texts,
    };
    if stops.len() > MOST {
        return Err(ApiError::invalid("stop", format!("`stop` may hold at most {MOST} strings.")));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > LONGEST) {
        return Err(ApiError::invalid("stop", format!("Each `stop` string must hold 1 to {LONGEST} bytes.")));
    }
    Ok(stops)
}

/// The requested number of answers.
///
/// # Errors
/// The number is 0 or too large.
pub fn choices(n: Option<u64>) -> Result<usize, ApiError> {
    match n.unwrap_or(1) {
        n @ 1..=128 => Ok(n as usize),
        n => Err(ApiError::invalid("n", format!("`n` must be from 1 to 128, not {n}."))),
    }
}

/// The limit of generated tokens.
///
/// # Errors
/// The limit is 0.
pub fn limit(name: &str, tokens: Option<u64>) -> Result<Option<usize>, ApiError> {
    match tokens {
        None => Ok(None),
        Some(0) => Err(ApiError::invalid(name, format!("`{name}` must be at least 1."))),
        Some(tokens) => Ok(Some(usize::try_from(tokens).unwrap_or(usize::MAX))),
    }
}

/// The number of log probabilities per token.
///
/// # Errors
/// The number is above `most`.
pub fn top_logprobs(name: &str, count: u64, most: u64) -> Result<usize, ApiError> {
    match count <= most {
        true => Ok(count as usize),
        false => Err(ApiError::invalid(name, format!("`{name}` must be from 0 to {most}, not {count}."))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(sampling_fields: SamplingFields) -> Option<String> {
        sampling_fields.params(100).err().and_then(|error| error.param)
    }

    #[test]
    fn values_out_of_range_are_named() {
        let bias = |key: &str, bias| Some(BTreeMap::from([(key.to_owned(), bias)]));
        let cases = [
            (SamplingFields { temperature: Some(3.0), ..SamplingFields::default() }, "temperature"),
            (SamplingFields { temperature: Some(f64::NAN), ..SamplingFields::default() }, "temperature"),
            (SamplingFields { top_p: Some(-0.1), ..SamplingFields::default() }, "top_p"),
            (SamplingFields { top_k: Some(-2), ..SamplingFields::default() }, "top_k"),
            (SamplingFields { presence_penalty: Some(2.1), ..SamplingFields::default() }, "presence_penalty"),
            (SamplingFields { repetition_penalty: Some(0.0), ..SamplingFields::default() }, "repetition_penalty"),
            (SamplingFields { logit_bias: bias("word", 1.0), ..SamplingFields::default() }, "logit_bias"),
            (SamplingFields { logit_bias: bias("100", 1.0), ..SamplingFields::default() }, "logit_bias"),
            (SamplingFields { logit_bias: bias("5", 101.0), ..SamplingFields::default() }, "logit_bias"),
        ];
        for (sampling_fields, name) in cases {
            assert_eq!(fault(sampling_fields).as_deref(), Some(name));
        }
        let params = SamplingFields { seed: Some(-1), logit_bias: bias("5", -100.0), ..SamplingFields::default() };
        let params = params.params(100).expect("valid");
        assert_eq!((params.seed, params.logit_bias), (u64::MAX, vec![(5, f32::NEG_INFINITY)]));
        assert_eq!(params.sampling.temperature, 1.0);
    }

    #[test]
    fn stop_takes_one_text_or_several() {
        let parse = |json| serde_json::from_str::<Stop>(json);
        assert_eq!(stop_strings(parse(r#""a""#).ok()).expect("valid"), ["a"]);
        assert_eq!(stop_strings(parse(r#"["a","b"]"#).ok()).expect("valid"), ["a", "b"]);
        assert!(stop_strings(parse(r#"[""]"#).ok()).is_err());
        assert!(parse("7").expect_err("refused").to_string().starts_with("expected a string"));
    }
}
