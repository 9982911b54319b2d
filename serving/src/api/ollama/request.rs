//! The fields of Ollama's requests.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::api::chat::{Content, InCall, InFunction, InMessage, InRole};
use crate::api::error::ApiError;
use crate::api::fields::{SamplingFields, Stop};
use crate::api::tools::{Tool, effort};

#[derive(Debug, Deserialize)]
pub struct ChatRequest {
    pub model: Option<String>,
    pub messages: Option<Vec<ChatMessage>>,
    pub tools: Option<Vec<Tool>>,
    pub format: Option<Value>,
    pub options: Option<Options>,
    pub stream: Option<bool>,
    pub think: Option<Think>,
}

#[derive(Debug, Deserialize)]
pub struct GenerateRequest {
    pub model: Option<String>,
    pub prompt: Option<String>,
    pub suffix: Option<String>,
    pub system: Option<String>,
    pub images: Option<Vec<Value>>,
    pub format: Option<Value>,
    pub options: Option<Options>,
    pub stream: Option<bool>,
    pub think: Option<Think>,
    /// Passes the prompt to the model unchanged.
    pub raw: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub struct ChatMessage {
    pub role: InRole,
    pub content: Option<String>,
    pub thinking: Option<String>,
    pub images: Option<Vec<Value>>,
    pub tool_calls: Option<Vec<ChatCall>>,
    /// For a result: the function that returned it.
    pub tool_name: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct ChatCall {
    pub function: ChatFunction,
}

#[derive(Debug, Deserialize)]
pub struct ChatFunction {
    pub name: String,
    pub arguments: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a boolean, or one of low, medium, high")]
pub enum Think {
    Shown(bool),
    Effort(String),
}

impl Think {
    /// # Errors
    /// The effort is unknown.
    pub fn effort(think: Option<&Think>) -> Result<harmony::ReasoningEffort, ApiError> {
        match think {
            Some(Think::Effort(name)) => effort("think", Some(name)),
            // The model always reasons; low effort is the closest to no reasoning.
            Some(Think::Shown(false)) => effort("think", Some("low")),
            Some(Think::Shown(true)) | None => effort("think", None),
        }
    }

    pub fn is_shown(think: Option<&Think>) -> bool {
        !matches!(think, Some(Think::Shown(false)))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Options {
    pub temperature: Option<f64>,
    pub top_k: Option<i64>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub repeat_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub seed: Option<i64>,
    /// The most tokens to generate. Values below 1, such as -1 and -2, mean as many as fit into the context.
    pub num_predict: Option<i64>,
    pub stop: Option<Stop>,
}

impl Options {
    pub fn sampling_fields(&self) -> SamplingFields {
        SamplingFields {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repeat_penalty,
            logit_bias: None,
            seed: self.seed,
        }
    }

    pub fn max_tokens(&self) -> Option<usize> {
        self.num_predict.and_then(|tokens| usize::try_from(tokens).ok()).filter(|&tokens| tokens > 0)
    }
}

/// Messages in OpenAI's format. Ollama's calls have no ids: results refer to the calls by order or by name.
///
/// # Errors
/// A message has images.
pub fn messages(asked: Vec<ChatMessage>) -> Result<Vec<InMessage>, ApiError> {
    let mut open: Vec<(String, String)> = Vec::new();
    let mut count = 0;
    let mut messages = Vec::new();
    for (index, message) in asked.into_iter().enumerate() {
        no_images(&format!("messages[{index}].images"), message.images.as_deref())?;
        let calls = message.tool_calls.unwrap_or_default().into_iter().map(|ChatCall { function }| {
            count += 1;
            let id = format!("call_{count}");
            open.push((id.clone(), function.name.clone()));
            let arguments = Value::Object(function.arguments.unwrap_or_default()).to_string();
            InCall { id: Some(id), function: InFunction { name: function.name, arguments: Some(arguments) } }
        });
        let calls: Vec<InCall> = calls.collect();
        let tool_call_id = (message.role == InRole::Tool).then(|| {
            let named = open.iter().position(|(_, name)| message.tool_name.as_ref().is_none_or(|tool| tool == name));
            named.map_or(String::new(), |at| open.remove(at).0)
        });
        messages.push(InMessage {
            role: message.role,
            content: message.content.map(Content::Text),
            name: None,
            tool_calls: Some(calls),
            function_call: None,
            tool_call_id,
            reasoning: message.thinking,
            reasoning_content: None,
            thinking: None,
            refusal: None,
        });
    }
    Ok(messages)
}

/// # Errors
/// The request contains an image.
pub fn no_images(param: &str, images: Option<&[Value]>) -> Result<(), ApiError> {
    match images {
        None | Some([]) => Ok(()),
        Some(_) => Err(ApiError::invalid(param, "Images are not supported; this model reads text.")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn results_answer_calls_in_order_or_by_name() {
        let asked = json!([
            { "role": "user", "content": "Weather?" },
            { "role": "assistant", "content": "", "tool_calls": [
                { "function": { "name": "f", "arguments": { "a": 1 } } },
                { "function": { "name": "g" } },
            ] },
            { "role": "tool", "content": "1", "tool_name": "g" },
            { "role": "tool", "content": "2" },
        ]);
        let messages = messages(serde_json::from_value(asked).expect("messages")).expect("valid");
        let calls = messages[1].tool_calls.as_ref().expect("calls");
        assert_eq!(calls[0].function.arguments.as_deref(), Some("{\"a\":1}"));
        let answered: Vec<_> = messages[2..].iter().map(|message| message.tool_call_id.as_deref()).collect();
        assert_eq!(answered, [Some("call_2"), Some("call_1")]);
    }
}
