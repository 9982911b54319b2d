//! The fields of a Completions request.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::api::app::Model;
use crate::api::error::ApiError;
use crate::api::fields::{SamplingFields, Stop};

/// The largest number of prompts in a request.
const MAX_PROMPTS: usize = 1024;

#[derive(Debug, Default, Deserialize)]
pub struct CompletionRequest {
    pub model: Option<String>,
    pub prompt: Option<Prompt>,
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub seed: Option<i64>,
    pub n: Option<u64>,
    pub best_of: Option<u64>,
    pub stop: Option<Stop>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub ignore_eos: Option<bool>,
    pub logprobs: Option<u64>,
    pub echo: Option<bool>,
    pub suffix: Option<String>,
    pub skip_special_tokens: Option<bool>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of such arrays"
)]
pub enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    Batch(Vec<Vec<u32>>),
}

impl Prompt {
    /// The tokens of each prompt. Control tokens in the text are recognized, because a raw prompt may contain whole messages of harmony.
    ///
    /// # Errors
    /// There are no prompts, or too many, a prompt is empty or has a token outside the vocabulary, or a text is too long for the context.
    pub fn tokens(self, model: &Model) -> Result<Vec<Vec<u32>>, ApiError> {
        let encode = |text: String| model.encode(&text, "prompt");
        let prompts = match self {
            Prompt::Text(text) => vec![encode(text)?],
            Prompt::Texts(texts) => texts.into_iter().map(encode).collect::<Result<_, _>>()?,
            Prompt::Tokens(tokens) => vec![tokens],
            Prompt::Batch(prompts) => prompts,
        };
        if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
            return Err(ApiError::invalid("prompt", format!("`prompt` must hold 1 to {MAX_PROMPTS} prompts.")));
        }
        let tokenizer = &model.tokenizer;
        let known = |token: &u32| tokenizer.token_bytes(*token).is_some();
        for prompt in &prompts {
            if prompt.is_empty() {
                return Err(ApiError::invalid(
                    "prompt",
                    "`prompt` must not be empty: a model continues at least one token.",
                ));
            }
            if let Some(token) = prompt.iter().find(|&token| !known(token)) {
                let message = format!("Token {token} is not in the vocabulary of {} tokens.", tokenizer.vocab());
                return Err(ApiError::invalid("prompt", message));
            }
        }
        Ok(prompts)
    }
}

impl CompletionRequest {
    pub fn sampling_fields(&self) -> SamplingFields {
        SamplingFields {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        }
    }
}
