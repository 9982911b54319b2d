//! Converts the items of a request to messages of harmony.

use harmony::{Message, Role};
use serde_json::{Value, json};

use super::history::History;
use super::request::Item;
use super::store::Store;
use crate::api::chat::{Content, InRole, instructions, text};
use crate::api::error::{ApiError, shortened};
use crate::api::id;

impl History {
    /// Adds the items of a request's `input`. References are replaced by the stored items of this owner.
    ///
    /// # Errors
    /// An item has an unsupported type, role or value, lacks a required field, or refers to an item or call that does not exist.
    pub fn add(&mut self, items: &[Value], store: &Store, owner: &str) -> Result<(), ApiError> {
        for (index, item) in items.iter().enumerate() {
            let at = format!("input[{index}]");
            match item["type"].as_str() {
                Some("item_reference") => {
                    let id = item["id"].as_str().unwrap_or_default();
                    let found = store.item(id, owner);
                    let missing = || {
                        let message = format!("Item with id `{}` not found.", shortened(id));
                        ApiError::not_found("input", message)
                    };
                    self.add_item(&at, &found.ok_or_else(missing)?)?;
                }
                _ => self.add_item(&at, item)?,
            }
        }
        Ok(())
    }

    fn add_item(&mut self, at: &str, item: &Value) -> Result<(), ApiError> {
        let parsed: Result<Item, _> = serde_path_to_error::deserialize(item);
        let item = parsed.map_err(|error| {
            let at = format!("{at}.{}", error.path());
            ApiError::invalid(&at, format!("Invalid value for `{at}`: {}.", shortened(&error.inner().to_string())))
        })?;
        let missing = |field: &str| ApiError::invalid(&format!("{at}.{field}"), format!("`{at}.{field}` is missing."));
        match item.kind.as_deref().unwrap_or("message") {
            "message" => {
                let role = item.role.ok_or_else(|| missing("role"))?;
                let content = text(at, item.content)?;
                self.messages.push(match role {
                    InRole::System | InRole::Developer => instructions(content),
                    InRole::User => Message::new(Role::User, content),
                    InRole::Assistant if item.phase.as_deref() == Some("commentary") => {
                        Message::assistant("commentary", content)
                    }
                    InRole::Assistant => Message::assistant("final", content),
                    InRole::Tool | InRole::Function => {
                        let at = format!("{at}.role");
                        return Err(ApiError::invalid(
                            &at,
                            "Results of calls are items of type `function_call_output`.",
                        ));
                    }
                });
            }
            "reasoning" => {
                // A reasoning item without content is left out: its summary is not the model's own reasoning.
                let thought = thought(item.content);
                if !thought.is_empty() {
                    self.messages.push(Message::assistant("analysis", thought));
                }
            }
            "function_call" => {
                let name = item.name.ok_or_else(|| missing("name"))?;
                let id = item.call_id.ok_or_else(|| missing("call_id"))?;
                self.messages.push(Message::call(&name, item.arguments.unwrap_or_default()));
                self.calls.made(id, &name);
            }
            "function_call_output" => {
                let id = item.call_id.ok_or_else(|| missing("call_id"))?;
                let output = text(at, item.output)?;
                self.messages.push(self.calls.result(&format!("{at}.call_id"), &id, output)?);
            }
            other => {
                let message = format!("Items of type `{}` are not supported.", shortened(other));
                return Err(ApiError::unsupported(&format!("{at}.type"), message));
            }
        }
        Ok(())
    }
}

fn thought(content: Option<Content>) -> String {
    match content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts.into_iter().filter_map(|part| part.text).collect(),
    }
}

/// The items as `/v1/responses/{id}/input_items` lists them: each with a type and an id, and messages with a status and their content as
/// parts.
pub fn listed(items: &[Value]) -> Vec<Value> {
    let listed = items.iter().map(|item| {
        let mut item = item.clone();
        if !item.is_object() {
            return item;
        }
        if item["type"].is_null() {
            item["type"] = "message".into();
        }
        let prefix = match item["type"].as_str() {
            Some("function_call") => "fc_",
            Some("function_call_output") => "fco_",
            Some("reasoning") => "rs_",
            _ => "msg_",
        };
        if item["id"].is_null() {
            item["id"] = id::random(prefix).into();
        }
        if item["type"] == "message" {
            if let Some(text) = item["content"].as_str() {
                let kind = if item["role"] == "assistant" { "output_text" } else { "input_text" };
                item["content"] = json!([{ "type": kind, "text": text }]);
            }
            if item["status"].is_null() {
                item["status"] = "completed".into();
            }
        }
        item
    });
    listed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(items: Value) -> Result<Vec<String>, Option<String>> {
        let mut history = History::default();
        let items = items.as_array().expect("items").clone();
        history.add(&items, &Store::new(1, 1000), "").map_err(|error| error.param)?;
        let brief = |message: &Message| {
            let to = message.recipient.as_deref().unwrap_or("-");
            let channel = message.channel.as_deref().unwrap_or("-");
            format!("{} {to} {channel} {}", message.role.name(), message.content)
        };
        Ok(history.messages.iter().map(brief).collect())
    }

    #[test]
    fn items_become_messages() {
        let items = json!([
            { "role": "user", "content": "Weather?" },
            { "type": "reasoning", "id": "rs_1", "summary": [], "content": [{ "type": "reasoning_text", "text": "Ask." }] },
            { "type": "reasoning", "id": "rs_2" },
            { "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}" },
            { "type": "function_call_output", "call_id": "c", "output": [{ "type": "input_text", "text": "rain" }] },
            { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "Rain.", "annotations": [] }] },
        ]);
        let expected = [
            "user - - Weather?",
            "assistant - analysis Ask.",
            "assistant functions.f commentary {}",
            "tool assistant commentary rain",
            "assistant - final Rain.",
        ];
        assert_eq!(added(items).expect("valid"), expected);
    }

    #[test]
    fn invalid_items_are_refused_by_name() {
        let fault = |item: Value| added(json!([item])).expect_err("refused");
        assert_eq!(
            fault(json!({ "type": "function_call_output", "call_id": "x", "output": "" })),
            Some("input[0].call_id".into())
        );
        assert_eq!(fault(json!({ "type": "computer_call" })), Some("input[0].type".into()));
        assert_eq!(fault(json!({ "content": "x" })), Some("input[0].role".into()));
        assert_eq!(fault(json!({ "type": "item_reference", "id": "msg_1" })), Some("input".into()));
        assert_eq!(fault(json!({ "role": 5, "content": "x" })), Some("input[0].role".into()));
    }
}
