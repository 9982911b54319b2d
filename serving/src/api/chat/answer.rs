//! A Chat Completions answer: streamed in chunks, or as one object.

use phase1_loading::Tokenizer;
use serde_json::{Value, json};

use crate::api::id;
use crate::api::runs::{Answer, Flow};
use crate::api::stops;
use crate::api::stream::Frames;
use crate::api::turn::{Entry, Kind, Piece, Turn};
use crate::api::usage::Usage;
use crate::request::{Event, Finish};

/// The fields of the answer that are known before the first token, and which optional parts the request wants.
pub struct Head {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub fingerprint: String,
    pub prompt_tokens: usize,
    pub logprobs: bool,
    pub include_reasoning: bool,
    /// Whether a last chunk reports the usage.
    pub include_usage: bool,
}

pub struct ChatAnswer<'a> {
    head: Head,
    tokenizer: &'a Tokenizer,
    choices: Vec<Choice<'a>>,
}

struct Choice<'a> {
    turn: Turn<'a>,
    /// `None` until a visible message begins.
    content: Option<String>,
    reasoning: String,
    calls: Vec<Call>,
    entries: Vec<Value>,
    cached_tokens: usize,
    finish: Option<&'static str>,
    /// The stop string or token, in vLLM's format.
    stop_reason: Value,
    /// The kind of the message that text currently belongs to.
    kind: Option<Kind>,
}

struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl<'a> ChatAnswer<'a> {
    /// An answer with one turn per choice.
    pub fn new(head: Head, tokenizer: &'a Tokenizer, turns: Vec<Turn<'a>>) -> ChatAnswer<'a> {
        let choices = turns.into_iter().map(|turn| Choice {
            turn,
            content: None,
            reasoning: String::new(),
            calls: Vec::new(),
            entries: Vec::new(),
            cached_tokens: 0,
            finish: None,
            stop_reason: Value::Null,
            kind: None,
        });
        ChatAnswer { head, tokenizer, choices: choices.collect() }
    }

    /// The answer as one object.
    pub fn whole(self) -> Value {
        let usage = self.usage().of_chat();
        let Head { id, created, model, fingerprint, logprobs, include_reasoning, .. } = self.head;
        let choices = self.choices.into_iter().enumerate().map(|(index, choice)| {
            let content = choice.content.filter(|content| choice.calls.is_empty() || !content.is_empty());
            let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
            if include_reasoning && !choice.reasoning.is_empty() {
                message["reasoning"] = choice.reasoning.clone().into();
                message["reasoning_content"] = choice.reasoning.into();
            }
            if !choice.calls.is_empty() {
                let calls = choice.calls.into_iter().map(|Call { id, name, arguments }| {
                    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
                });
                message["tool_calls"] = calls.collect();
            }
            let logprobs = logprobs.then(|| json!({ "content": choice.entries, "refusal": null }));
            json!({
                "index": index,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": choice.finish,
                "stop_reason": choice.stop_reason,
            })
        });
        json!({
            "id": id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": choices.collect::<Vec<_>>(),
            "usage": usage,
            "system_fingerprint": fingerprint,
        })
    }

    fn usage(&self) -> Usage {
        let turns = || self.choices.iter().map(|choice| &choice.turn);
        Usage {
            prompt_tokens: self.head.prompt_tokens,
            cached_tokens: self.choices.first().map_or(0, |choice| choice.cached_tokens),
            tokens: turns().map(|turn| turn.tokens).sum(),
            reasoning_tokens: turns().map(|turn| turn.reasoning_tokens).sum(),
        }
    }

    /// A chunk of the stream with these `choices`. `usage` is included only if the request wants a report of it.
    fn chunk(&self, choices: Value, usage: Value) -> Value {
        let Head { id, created, model, fingerprint, include_usage, .. } = &self.head;
        let mut chunk = json!({
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "choices": choices,
            "system_fingerprint": fingerprint,
        });
        if *include_usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    fn delta(&self, index: usize, delta: Value, entries: Vec<Value>) -> Value {
        let logprobs = (!entries.is_empty()).then(|| json!({ "content": entries, "refusal": null }));
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null });
        self.chunk(json!([choice]), Value::Null)
    }

    fn show(&mut self, index: usize, pieces: Vec<Piece>, frames: &mut Frames) {
        for piece in pieces {
            let choice = &mut self.choices[index];
            match piece {
                Piece::Begin(kind) => {
                    choice.kind = Some(kind.clone());
                    match kind {
                        Kind::Call { name } => {
                            let id = id::random("call_");
                            let nth = choice.calls.len();
                            choice.calls.push(Call { id: id.clone(), name: name.clone(), arguments: String::new() });
                            let function = json!({ "name": name, "arguments": "" });
                            let call = json!({ "index": nth, "id": id, "type": "function", "function": function });
                            frames.push(|| self.delta(index, json!({ "tool_calls": [call] }), Vec::new()));
                        }
                        Kind::Preamble | Kind::Final => {
                            choice.content.get_or_insert_default();
                        }
                        Kind::Reasoning => {}
                    }
                }
                Piece::Text { text, entries } => match choice.kind {
                    Some(Kind::Reasoning) => {
                        choice.reasoning.push_str(&text);
                        if self.head.include_reasoning {
                            let delta = json!({ "reasoning": text, "reasoning_content": text });
                            frames.push(|| self.delta(index, delta, Vec::new()));
                        }
                    }
                    Some(Kind::Call { .. }) => {
                        let nth = choice.calls.len().saturating_sub(1);
                        if let Some(call) = choice.calls.last_mut() {
                            call.arguments.push_str(&text);
                        }
                        let call = json!({ "index": nth, "function": { "arguments": text } });
                        frames.push(|| self.delta(index, json!({ "tool_calls": [call] }), Vec::new()));
                    }
                    Some(Kind::Preamble | Kind::Final) | None => {
                        choice.content.get_or_insert_default().push_str(&text);
                        let entries: Vec<Value> = entries.iter().map(|entry| logprob(self.tokenizer, entry)).collect();
                        choice.entries.extend_from_slice(&entries);
                        frames.push(|| self.delta(index, json!({ "content": text }), entries));
                    }
                },
                Piece::End { .. } => choice.kind = None,
            }
        }
    }

    fn close(&mut self, index: usize, finish: &'static str, stop_reason: Value, frames: &mut Frames) {
        let choice = &mut self.choices[index];
        let finish = match finish {
            "stop" if !choice.calls.is_empty() => "tool_calls",
            finish => finish,
        };
        choice.finish = Some(finish);
        choice.stop_reason = stop_reason.clone();
        frames.push(|| {
            let choice = json!({
                "index": index,
                "delta": {},
                "logprobs": null,
                "finish_reason": finish,
                "stop_reason": stop_reason,
            });
            self.chunk(json!([choice]), Value::Null)
        });
    }
}

impl Answer for ChatAnswer<'_> {
    fn begin(&mut self, frames: &mut Frames) {
        for index in 0..self.choices.len() {
            frames.push(|| self.delta(index, json!({ "role": "assistant", "content": "" }), Vec::new()));
        }
    }

    fn take(&mut self, run: usize, event: Event, frames: &mut Frames) -> Flow {
        let choice = &mut self.choices[run];
        match event {
            Event::Started { cached_tokens } => choice.cached_tokens = cached_tokens,
            Event::Token { id, logprobs } => {
                let pieces = choice.turn.push(id, logprobs);
                let stopped = choice.turn.stopped_by().map(Value::from);
                self.show(run, pieces, frames);
                if let Some(stop) = stopped {
                    self.close(run, "stop", stop, frames);
                    return Flow::Stop;
                }
            }
            Event::Finished(finish) => {
                let pieces = choice.turn.finish();
                let stopped = choice.turn.stopped_by().map(Value::from);
                self.show(run, pieces, frames);
                match (finish, stopped) {
                    (_, Some(stop)) => self.close(run, "stop", stop, frames),
                    (Finish::Length, None) => self.close(run, "length", Value::Null, frames),
                    (Finish::Stop(token), None) => {
                        self.close(run, "stop", stops::reason(self.tokenizer, token), frames);
                    }
                    (Finish::Deadline | Finish::Failed(_), None) => {}
                }
            }
        }
        Flow::Continue
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.head.include_usage {
            frames.push(|| self.chunk(json!([]), self.usage().of_chat()));
        }
        frames.done();
    }
}

/// A token of the content with its log probabilities.
pub fn logprob(tokenizer: &Tokenizer, entry: &Entry) -> Value {
    let top = entry.top.iter().map(|&(token, logprob)| {
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        json!({ "token": String::from_utf8_lossy(bytes), "logprob": finite(logprob), "bytes": bytes })
    });
    json!({
        "token": String::from_utf8_lossy(&entry.bytes),
        "logprob": finite(entry.logprob),
        "bytes": entry.bytes,
        "top_logprobs": top.collect::<Vec<_>>(),
    })
}

/// A log probability for JSON. JSON has no infinity, so a value that is not finite becomes -9999, as in vLLM. Rounding may give a token
/// with probability 1 a value slightly above 0, which becomes 0.
pub fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.min(0.0) } else { -9999.0 }
}
