//! Converts the messages of a request to messages of harmony.

use std::collections::BTreeMap;

use harmony::{DeveloperPrompt, Function, Message, ReasoningEffort, ResponseFormat, Role, SystemPrompt};

use super::request::{Content, InCall, InMessage, InRole};
use crate::api::error::{ApiError, shortened};

/// The beginning of a conversation, for all endpoints.
pub struct ConversationStart {
    pub date: String,
    pub effort: ReasoningEffort,
    pub instructions: Option<String>,
    pub functions: Vec<Function>,
    /// The required format of the final answer.
    pub format: Option<ResponseFormat>,
}

impl ConversationStart {
    /// The system message, and the developer message if it is not empty.
    pub fn messages(self) -> Vec<Message> {
        let ConversationStart { date, effort, instructions, functions, format } = self;
        let system =
            SystemPrompt { date: Some(date), effort, functions: !functions.is_empty(), ..SystemPrompt::default() };
        let response_formats = format.into_iter().collect();
        let developer = DeveloperPrompt { instructions, functions, response_formats };
        let developer = (!developer.is_empty()).then(|| developer.message());
        [system.message()].into_iter().chain(developer).collect()
    }
}

/// A developer message with instructions.
pub fn instructions(text: String) -> Message {
    DeveloperPrompt { instructions: Some(text), ..DeveloperPrompt::default() }.message()
}

/// All messages of the prompt. If the first message has instructions (role `system` or `developer`), these are put into the developer
/// message at the beginning; later instructions stay in place.
///
/// # Errors
/// A message has content other than text, or is the result of a call that does not exist.
pub fn conversation(mut start: ConversationStart, messages: Vec<InMessage>) -> Result<Vec<Message>, ApiError> {
    let mut messages = messages.into_iter().enumerate().peekable();
    let is_instruction = |(_, message): &(usize, InMessage)| matches!(message.role, InRole::System | InRole::Developer);
    if let Some((_, first)) = messages.next_if(is_instruction) {
        start.instructions = Some(text("messages[0]", first.content)?);
    }
    let mut conversation = start.messages();
    let mut calls = Calls::default();
    for (index, message) in messages {
        let at = format!("messages[{index}]");
        match message.role {
            InRole::System | InRole::Developer => conversation.push(instructions(text(&at, message.content)?)),
            InRole::User => {
                let name = message.name.filter(|name| !name.is_empty());
                conversation.push(Message { name, ..Message::new(Role::User, text(&at, message.content)?) });
            }
            InRole::Assistant => assistant(&at, message, &mut calls, &mut conversation)?,
            InRole::Tool => {
                let id = message.tool_call_id.as_deref().unwrap_or_default();
                conversation.push(calls.result(&format!("{at}.tool_call_id"), id, text(&at, message.content)?)?);
            }
            InRole::Function => {
                let name = message.name.as_deref().unwrap_or_default();
                conversation.push(Message::tool_result(name, text(&at, message.content)?));
            }
        }
    }
    Ok(conversation)
}

/// Adds an assistant's message as messages of harmony, in the order in which the model generates them: reasoning, text, calls.
fn assistant(at: &str, message: InMessage, calls: &mut Calls, out: &mut Vec<Message>) -> Result<(), ApiError> {
    let InMessage { content, tool_calls, function_call, reasoning, reasoning_content, thinking, refusal, .. } = message;
    let thought = [reasoning, reasoning_content, thinking].into_iter().flatten().find(|text| !text.is_empty());
    let older = function_call.map(|function| InCall { id: None, function });
    let made: Vec<InCall> = tool_calls.unwrap_or_default().into_iter().chain(older).collect();
    let found = match content {
        None => refusal,
        content => Some(text(at, content)?),
    };
    let says_nothing_else = made.is_empty() && thought.is_none();
    out.extend(thought.map(|text| Message::assistant("analysis", text)));
    let channel = if made.is_empty() { "final" } else { "commentary" };
    let found = match found {
        Some(text) if text.is_empty() && !says_nothing_else => None,
        None if says_nothing_else => Some(String::new()),
        found => found,
    };
    out.extend(found.map(|text| Message::assistant(channel, text)));
    for InCall { id, function } in made {
        let call = Message::call(&function.name, function.arguments.unwrap_or_default());
        calls.made(id.unwrap_or_default(), &function.name);
        out.push(call);
    }
    Ok(())
}

/// The tool calls so far: the name of the function for each call id.
#[derive(Clone, Debug, Default)]
pub struct Calls(BTreeMap<String, String>);

impl Calls {
    pub fn made(&mut self, id: String, function: &str) {
        self.0.insert(id, function.to_owned());
    }

    /// The result of the call with that id.
    ///
    /// # Errors
    /// No earlier call has the id; `param` is the field that contains it.
    pub fn result(&self, param: &str, id: &str, content: String) -> Result<Message, ApiError> {
        match self.0.get(id) {
            Some(function) => Ok(Message::tool_result(function, content)),
            None => {
                let message = format!("No tool call found for the result with id `{}`.", shortened(id));
                Err(ApiError::invalid(param, message))
            }
        }
    }
}

/// The text of a message's content; `at` is the path of the message in the request.
///
/// # Errors
/// The content is not text.
pub fn text(at: &str, content: Option<Content>) -> Result<String, ApiError> {
    match content {
        None => Ok(String::new()),
        Some(Content::Text(text)) => Ok(text),
        Some(Content::Parts(parts)) => {
            let texts = parts.into_iter().enumerate().map(|(index, part)| match (part.kind.as_str(), part.text) {
                ("text" | "input_text" | "output_text", Some(text)) => Ok(text),
                ("refusal", text) => Ok(part.refusal.or(text).unwrap_or_default()),
                ("text" | "input_text" | "output_text", None) => {
                    let at = format!("{at}.content[{index}].text");
                    Err(ApiError::invalid(&at, format!("`{at}` is missing.")))
                }
                (kind, _) => {
                    let at = format!("{at}.content[{index}]");
                    let message =
                        format!("Content of type `{}` is not supported; this model reads text.", shortened(kind));
                    Err(ApiError::invalid(&at, message))
                }
            });
            texts.collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn messages(value: Value) -> Result<Vec<String>, Option<String>> {
        let start = ConversationStart {
            date: "2026-01-01".into(),
            effort: ReasoningEffort::Low,
            instructions: None,
            functions: Vec::new(),
            format: None,
        };
        let messages = serde_json::from_value(value).expect("messages");
        let messages = conversation(start, messages).map_err(|error| error.param)?;
        let brief = |message: &Message| {
            let who = message.name.as_deref().unwrap_or(message.role.name());
            let to = message.recipient.as_ref().map_or(String::new(), |to| format!(">{to}"));
            let channel = message.channel.as_ref().map_or(String::new(), |channel| format!("/{channel}"));
            format!("{who}{to}{channel}: {}", message.content)
        };
        Ok(messages[1..].iter().map(brief).collect())
    }

    #[test]
    fn tool_calls_and_results_keep_their_order() {
        let value = json!([
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "Wea" }, { "type": "text", "text": "ther?" }] },
            { "role": "assistant", "content": "I look.", "reasoning": "Ask the tool.", "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{}" } }
            ] },
            { "role": "tool", "tool_call_id": "c1", "content": "rain" },
            { "role": "developer", "content": "Now rhyme." },
            { "role": "assistant", "content": "Rain again.", "tool_calls": [] },
        ]);
        let expected = [
            "developer: # Instructions\n\nBe brief.",
            "user: Weather?",
            "assistant/analysis: Ask the tool.",
            "assistant/commentary: I look.",
            "assistant>functions.f/commentary: {}",
            "functions.f>assistant/commentary: rain",
            "developer: # Instructions\n\nNow rhyme.",
            "assistant/final: Rain again.",
        ];
        assert_eq!(messages(value).expect("valid"), expected);
    }

    #[test]
    fn legacy_function_calls_are_read() {
        let value = json!([
            { "role": "assistant", "content": null, "function_call": { "name": "f", "arguments": "{}" } },
            { "role": "function", "name": "f", "content": "rain" },
        ]);
        let expected = ["assistant>functions.f/commentary: {}", "functions.f>assistant/commentary: rain"];
        assert_eq!(messages(value).expect("valid"), expected);
    }

    #[test]
    fn unsupported_message_content_is_refused() {
        let image = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]);
        assert_eq!(messages(image), Err(Some("messages[0].content[0]".into())));
        let result =
            json!([{ "role": "user", "content": "a" }, { "role": "tool", "tool_call_id": "x", "content": "1" }]);
        assert_eq!(messages(result), Err(Some("messages[1].tool_call_id".into())));
        assert_eq!(messages(json!([{ "role": "assistant", "content": null }])), Ok(vec!["assistant/final: ".into()]));
    }
}
