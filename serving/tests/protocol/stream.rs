//! Streams: joins their frames, and checks the order of events.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::check::brief;
use crate::http::Answer;

/// The frames of a stream, and the joined result.
///
/// # Errors
/// A frame that is not JSON.
pub fn gathered(answer: &Answer) -> Result<Value, String> {
    let frames = answer.body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let parse = |frame: &str| serde_json::from_str::<Value>(frame).map_err(|error| format!("{error}: {frame}"));
    let data = frames.map(parse).collect::<Result<Vec<Value>, String>>()?;
    let names: Vec<&str> = answer.body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let errors: Vec<&Value> = data.iter().filter(|frame| !frame["error"].is_null()).collect();
    let (mut finishes, mut joined) = (Map::new(), Map::new());
    for choice in data.iter().flat_map(|frame| frame["choices"].as_array().into_iter().flatten()) {
        let index = choice["index"].to_string();
        let finishes = finishes.entry(index.clone()).or_insert_with(|| json!([])).as_array_mut().expect("an array");
        finishes.extend(choice.get("finish_reason").filter(|reason| !reason.is_null()).cloned());
        let empty = || json!({ "content": "", "reasoning": "", "text": "", "logprobs": [], "tool_calls": [] });
        join(joined.entry(index).or_insert_with(empty), choice);
    }
    Ok(json!({
        "data": data,
        "events": names,
        "done": answer.body.ends_with("data: [DONE]\n\n"),
        "errors": errors,
        // Reading the response fails if it is not valid UTF-8.
        "frames_valid_utf8": true,
        "finish_reasons": finishes,
        "joined": joined,
    }))
}

fn join(joined: &mut Value, choice: &Value) {
    let delta = &choice["delta"];
    for (field, part) in [("content", &delta["content"]), ("reasoning", &delta["reasoning"]), ("text", &choice["text"])]
    {
        let text = format!("{}{}", joined[field].as_str().unwrap_or_default(), part.as_str().unwrap_or_default());
        joined[field] = text.into();
    }
    let entries = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
    joined["logprobs"].as_array_mut().expect("an array").extend(entries);
    for delta in delta["tool_calls"].as_array().into_iter().flatten() {
        let calls = joined["tool_calls"].as_array_mut().expect("an array");
        let at = delta["index"].as_u64().unwrap_or(0) as usize;
        while calls.len() <= at {
            calls.push(json!({ "function": { "arguments": "" } }));
        }
        let call = &mut calls[at];
        if !delta["id"].is_null() {
            call["id"] = delta["id"].clone();
            call["function"]["name"] = delta["function"]["name"].clone();
        }
        let more = delta["function"]["arguments"].as_str().unwrap_or_default();
        let arguments = format!("{}{more}", call["function"]["arguments"].as_str().unwrap_or_default());
        call["function"]["arguments"] = arguments.into();
    }
}

/// The calls of all choices. Each call must have its id, type and name in its first delta and in no other, because clients concatenate
/// deltas.
///
/// # Errors
/// A delta with missing or additional fields.
pub fn tool_calls(whole: &Value) -> Result<Value, String> {
    let mut seen = BTreeSet::new();
    for choice in whole["data"].as_array().into_iter().flatten().flat_map(choices) {
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let key = (choice["index"].as_u64(), delta["index"].as_u64());
            let is_first = seen.insert(key);
            let found = [&delta["id"], &delta["type"], &delta["function"]["name"]];
            let is_right = match is_first {
                true => found.iter().all(|value| value.as_str().is_some_and(|text| !text.is_empty())),
                false => found.iter().all(|value| value.is_null()),
            };
            if !is_right || !delta["function"]["arguments"].is_string() {
                return Err(format!("the delta {}", brief(delta)));
            }
        }
    }
    let joined = whole["joined"].as_object().into_iter().flat_map(|joined| joined.values());
    Ok(joined.flat_map(|choice| choice["tool_calls"].as_array().into_iter().flatten()).cloned().collect())
}

fn choices(frame: &Value) -> impl Iterator<Item = &Value> {
    frame["choices"].as_array().into_iter().flatten()
}

/// Checks the order of a response's events: they are numbered without gaps, items are added before their parts and parts before their
/// deltas, each is closed with its joined deltas, and the final response has exactly these items.
///
/// # Errors
/// The first event that is not allowed at its place, or a stream of fewer than three events.
pub fn responses(whole: &Value) -> Result<(), String> {
    let data = whole["data"].as_array().ok_or("no data")?;
    let mut items = Items::default();
    for (number, event) in data.iter().enumerate() {
        let unfit = || format!("event {number} is {}", brief(event));
        let is_named = whole["events"].get(number) == Some(&event["type"]);
        if event["sequence_number"] != number || !is_named {
            return Err(unfit());
        }
        let kind = event["type"].as_str().ok_or_else(unfit)?;
        let is_in_place = match number {
            0 => kind == "response.created" && event["response"]["status"] == "in_progress",
            1 => kind == "response.in_progress",
            _ if number + 1 == data.len() => {
                let ends = ["response.completed", "response.incomplete", "response.failed"];
                ends.contains(&kind) && items.open.is_none() && event["response"]["output"] == json!(items.done)
            }
            _ => items.take(kind, event),
        };
        if !is_in_place {
            return Err(unfit());
        }
    }
    if data.len() < 3 { Err("it is too short".into()) } else { Ok(()) }
}

/// The items of a response, according to its events.
#[derive(Default)]
struct Items {
    /// The id of the open item.
    open: Option<Value>,
    has_part: bool,
    /// Its joined deltas.
    text: String,
    /// Whether the event that completes its text has come.
    is_whole: bool,
    done: Vec<Value>,
}

impl Items {
    /// Whether the event is allowed now.
    fn take(&mut self, kind: &str, event: &Value) -> bool {
        let is_of_open = event["output_index"] == self.done.len() && self.open.as_ref() == Some(&event["item_id"]);
        match kind {
            "response.output_item.added" => {
                let is_next = self.open.is_none() && event["output_index"] == self.done.len();
                let open = Some(event["item"]["id"].clone());
                *self = Items { open, done: std::mem::take(&mut self.done), ..Items::default() };
                is_next && event["item"]["status"] == "in_progress"
            }
            "response.content_part.added" => !std::mem::replace(&mut self.has_part, true) && is_of_open,
            "response.function_call_arguments.delta" => self.more(event) && is_of_open,
            "response.output_text.delta" | "response.reasoning_text.delta" => {
                self.more(event) && is_of_open && self.has_part
            }
            "response.function_call_arguments.done" => self.close(&event["arguments"]) && is_of_open,
            "response.output_text.done" | "response.reasoning_text.done" => self.close(&event["text"]) && is_of_open,
            "response.content_part.done" => event["part"]["text"] == self.text && self.is_whole && is_of_open,
            "response.output_item.done" => {
                let is_open = self.open.take() == Some(event["item"]["id"].clone());
                self.done.push(event["item"].clone());
                is_open && self.is_whole
            }
            _ => false,
        }
    }

    fn more(&mut self, event: &Value) -> bool {
        let delta = event["delta"].as_str();
        self.text += delta.unwrap_or_default();
        delta.is_some() && !self.is_whole
    }

    fn close(&mut self, text: &Value) -> bool {
        !std::mem::replace(&mut self.is_whole, true) && *text == self.text
    }
}

/// The calls of a response's stream, each of which began without arguments.
///
/// # Errors
/// A call that begins with arguments, and the errors of [`responses`].
pub fn response_calls(whole: &Value) -> Result<Value, String> {
    responses(whole)?;
    let events = whole["data"].as_array().into_iter().flatten();
    let items =
        events.clone().filter(|event| event["type"] == "response.output_item.added").map(|event| &event["item"]);
    for item in items.filter(|item| item["type"] == "function_call") {
        if item["arguments"] != "" || item["status"] != "in_progress" {
            return Err(format!("the call begins as {}", brief(item)));
        }
    }
    let done = events.filter(|event| event["type"] == "response.output_item.done").map(|event| &event["item"]);
    Ok(done.filter(|item| item["type"] == "function_call").cloned().collect())
}
