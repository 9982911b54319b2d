//! The fields of a Chat Completions request.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::api::fields::{SamplingFields, Stop};
use crate::api::tools::Tool;

/// The body of a request. Unknown fields are ignored, because routers and clients of other servers add many.
#[derive(Debug, Default, Deserialize)]
pub struct ChatRequest {
    pub model: Option<String>,
    pub messages: Option<Vec<InMessage>>,
    pub max_completion_tokens: Option<u64>,
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
    pub stop: Option<Stop>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub ignore_eos: Option<bool>,
    pub logprobs: Option<bool>,
    pub top_logprobs: Option<u64>,
    pub response_format: Option<Value>,
    pub tools: Option<Vec<Tool>>,
    pub tool_choice: Option<Value>,
    #[allow(dead_code, reason = "the model makes one call per turn in any case; only the type is checked")]
    pub parallel_tool_calls: Option<bool>,
    pub functions: Option<Value>,
    pub function_call: Option<Value>,
    pub modalities: Option<Vec<String>>,
    pub reasoning_effort: Option<String>,
    pub include_reasoning: Option<bool>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}

impl ChatRequest {
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
    Function,
}

/// A message of the conversation so far.
#[derive(Debug, Deserialize)]
pub struct InMessage {
    pub role: InRole,
    pub content: Option<Content>,
    pub name: Option<String>,
    pub tool_calls: Option<Vec<InCall>>,
    /// A call in the older format of OpenAI's API, without an id.
    pub function_call: Option<InFunction>,
    pub tool_call_id: Option<String>,
    /// The assistant's reasoning, under the field names of several servers.
    pub reasoning: Option<String>,
    pub reasoning_content: Option<String>,
    pub thinking: Option<String>,
    pub refusal: Option<String>,
}

impl InMessage {
    /// A message with only content.
    pub fn with_content(role: InRole, content: Content) -> InMessage {
        InMessage {
            role,
            content: Some(content),
            name: None,
            tool_calls: None,
            function_call: None,
            tool_call_id: None,
            reasoning: None,
            reasoning_content: None,
            thinking: None,
            refusal: None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of content parts")]
pub enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
pub struct Part {
    #[serde(rename = "type")]
    pub kind: String,
    pub text: Option<String>,
    pub refusal: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct InCall {
    pub id: Option<String>,
    pub function: InFunction,
}

#[derive(Debug, Deserialize)]
pub struct InFunction {
    pub name: String,
    pub arguments: Option<String>,
}
