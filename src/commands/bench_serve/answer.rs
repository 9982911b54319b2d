//! A streamed answer: its content, and the times at which its chunks arrived.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Failure, Target};

/// The server's token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: u64,
    /// Prompt tokens that were found in a cache; `None` if the server does not report them.
    pub cached: Option<u64>,
    pub generated: u64,
}

impl Usage {
    /// Reads the counts of an answer of Chat Completions or Completions.
    pub fn read(answer: &Value) -> Option<Usage> {
        let usage = &answer["usage"];
        Some(Usage {
            prompt: usage["prompt_tokens"].as_u64()?,
            cached: usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
            generated: usage["completion_tokens"].as_u64()?,
        })
    }
}

/// A call of a function: its id, name and arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

/// An answer; incomplete if its stream was abandoned.
#[derive(Debug, Default)]
pub struct Answer {
    pub text: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
    pub usage: Option<Usage>,
    /// Time from the request to the first chunk with content.
    pub first: Option<Duration>,
    /// Times between chunks with content.
    pub gaps: Vec<Duration>,
}

impl Answer {
    /// Requests a stream and reads it to its end.
    ///
    /// # Errors
    /// The server refuses the request, or the stream is interrupted, or contains an error or an event that is not JSON.
    pub fn stream(target: &Target, path: &str, body: &Value) -> Result<Answer, Failure> {
        Answer::stream_while(target, path, body, |_| true)
    }

    /// As [`Answer::stream`], but abandons the stream when `wants_more`, called with the arrival time of each chunk with content, returns
    /// false.
    pub fn stream_while(
        target: &Target,
        path: &str,
        body: &Value,
        mut wants_more: impl FnMut(Instant) -> bool,
    ) -> Result<Answer, Failure> {
        let mut body = body.clone();
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
        let begin = Instant::now();
        let mut response = target.post(path, &body)?;
        let mut answer = Answer::default();
        let mut last = begin;
        while let Some(line) = response.line()? {
            let Some(data) = line.strip_prefix("data:").map(str::trim_start) else { continue };
            if data == "[DONE]" {
                return Ok(answer);
            }
            let event: Value = serde_json::from_str(data)
                .map_err(|error| Failure::Failed(format!("an event that is not JSON: {error}")))?;
            if answer.take(&event)? {
                let now = Instant::now();
                match answer.first {
                    None => answer.first = Some(now - begin),
                    Some(_) => answer.gaps.push(now - last),
                }
                last = now;
                if !wants_more(now) {
                    return Ok(answer);
                }
            }
        }
        Err(Failure::Failed("the stream ended without its end marker".into()))
    }

    /// Adds an event; returns whether it has content.
    fn take(&mut self, event: &Value) -> Result<bool, Failure> {
        let error = &event["error"];
        if !error.is_null() {
            return Err(Failure::Failed(error["message"].as_str().unwrap_or("an error without a message").to_owned()));
        }
        self.usage = Usage::read(event).or(self.usage);
        let choice = &event["choices"][0];
        let delta = &choice["delta"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let more = text(&delta["content"]) + &text(&choice["text"]);
        let thought =
            [&delta["reasoning"], &delta["reasoning_content"]].map(text).into_iter().find(|text| !text.is_empty());
        let mut has_more = !more.is_empty() || thought.is_some();
        self.text += &more;
        self.reasoning += &thought.unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            has_more = true;
            // An index beyond the end counts as the next call, so that no call is missing in between.
            let index = call["index"].as_u64().map_or(0, |index| index as usize).min(self.calls.len());
            if index == self.calls.len() {
                self.calls.push(Call::default());
            }
            let known = &mut self.calls[index];
            known.id += &text(&call["id"]);
            known.name += &text(&call["function"]["name"]);
            known.arguments += &text(&call["function"]["arguments"]);
        }
        Ok(has_more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_pieces_are_joined() {
        let delta = |delta: Value| json!({ "choices": [{ "delta": delta }] });
        let call = |call: Value| delta(json!({ "tool_calls": [call] }));
        let events = [
            (delta(json!({ "role": "assistant", "content": "" })), false),
            (delta(json!({ "reasoning": "a", "reasoning_content": "a" })), true),
            (delta(json!({ "content": "b" })), true),
            (json!({ "choices": [{ "text": "c" }] }), true),
            (call(json!({ "index": 0, "id": "1", "function": { "name": "f", "arguments": "{" } })), true),
            (call(json!({ "index": 0, "function": { "arguments": "}" } })), true),
            (json!({ "choices": [], "usage": { "prompt_tokens": 7, "completion_tokens": 5 } }), false),
        ];
        let mut answer = Answer::default();
        for (event, says) in events {
            assert_eq!(answer.take(&event), Ok(says), "{event}");
        }
        assert_eq!((answer.text.as_str(), answer.reasoning.as_str()), ("bc", "a"));
        assert_eq!(answer.calls, [Call { id: "1".into(), name: "f".into(), arguments: "{}".into() }]);
        assert_eq!(answer.usage, Some(Usage { prompt: 7, cached: None, generated: 5 }));
        let failed = answer.take(&json!({ "error": { "message": "gone" } }));
        assert_eq!(failed, Err(Failure::Failed("gone".into())));
    }
}
