//! The fields of a Responses request.

use harmony::Function;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::chat::{Content, InRole};
use crate::api::error::{ApiError, shortened};
use crate::api::tools::{ToolFunction, declared};

#[derive(Debug, Default, Deserialize)]
pub struct ResponseRequest {
    pub model: Option<String>,
    pub input: Option<Input>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub seed: Option<i64>,
    pub top_logprobs: Option<u64>,
    pub tools: Option<Vec<Value>>,
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    pub reasoning: Option<Reasoning>,
    pub text: Option<TextOptions>,
    pub previous_response_id: Option<String>,
    pub conversation: Option<Value>,
    pub prompt: Option<Value>,
    pub store: Option<bool>,
    pub metadata: Option<serde_json::Map<String, Value>>,
    pub include: Option<Vec<String>>,
    pub truncation: Option<Truncation>,
    pub background: Option<bool>,
    pub stream: Option<bool>,
    pub user: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of items")]
pub enum Input {
    Text(String),
    Items(Vec<Value>),
}

#[derive(Debug, Default, Deserialize)]
pub struct Reasoning {
    pub effort: Option<String>,
    pub summary: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub struct TextOptions {
    pub format: Option<Value>,
    pub verbosity: Option<Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Truncation {
    /// The oldest messages are left out if the conversation does not fit.
    Auto,
    #[default]
    Disabled,
}

/// The fields of an input item of any type.
#[derive(Debug, Deserialize)]
pub struct Item {
    /// May be missing for messages.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub role: Option<InRole>,
    pub phase: Option<String>,
    pub content: Option<Content>,
    pub call_id: Option<String>,
    pub name: Option<String>,
    pub arguments: Option<String>,
    pub output: Option<Content>,
}

/// The functions among the tools of a Responses request, and these tools as the response repeats them. Tools of other types are ignored:
/// clients declare them whether or not a server supports them.
///
/// # Errors
/// A tool has no `type`, or a function has an invalid field.
pub fn functions(tools: &[Value]) -> Result<(Vec<Function>, Vec<Value>), ApiError> {
    let (mut functions, mut echoed) = (Vec::new(), Vec::new());
    for (index, tool) in tools.iter().enumerate() {
        let at = format!("tools[{index}]");
        match tool["type"].as_str() {
            Some("function") => {}
            Some(_) => continue,
            None => return Err(ApiError::invalid(&at, format!("`{at}` must be an object with a `type`."))),
        }
        let function: ToolFunction = serde_json::from_value(tool.clone())
            .map_err(|error| ApiError::invalid(&at, format!("Invalid `{at}`: {}.", shortened(&error.to_string()))))?;
        functions.push(declared(&at, &function)?);
        let ToolFunction { name, description, parameters, strict } = function;
        echoed.push(json!({
            "type": "function",
            "name": name,
            "description": description,
            "parameters": parameters,
            "strict": strict.unwrap_or(false),
        }));
    }
    Ok((functions, echoed))
}
