//! A Responses answer: streamed items with an event per step, or one object.

use std::mem::take;

use harmony::Message;
use phase1_loading::Tokenizer;
use serde_json::{Map, Value, json};

use crate::api::chat::logprob;
use crate::api::error::ApiError;
use crate::api::id;
use crate::api::runs::{Answer, Flow};
use crate::api::stream::{Form, Frames};
use crate::api::turn::{Entry, Kind, Piece, Turn};
use crate::api::usage::Usage;
use crate::request::{Event, Finish};

/// A response in progress.
pub struct ResponseAnswer<'a> {
    /// The fields of the response that are known from the start.
    response: Map<String, Value>,
    tokenizer: &'a Tokenizer,
    turn: Turn<'a>,
    /// Whether text is returned with log probabilities.
    logprobs: bool,
    prompt_tokens: usize,
    cached_tokens: usize,
    /// The number of the next event.
    sequence: u64,
    /// The kind of the message that text currently belongs to. An item other than a call begins with its first text, so that it is never
    /// empty.
    kind: Option<Kind>,
    open: Option<Open>,
    output: Vec<Value>,
    /// The content of `output` as messages of harmony.
    messages: Vec<Message>,
    /// The calls so far: id and function.
    calls: Vec<(String, String)>,
    is_cut: bool,
    /// Stores the response. Called before the client receives the last event, so that the client can continue the response immediately.
    on_complete: Option<OnComplete<'a>>,
}

pub type OnComplete<'a> = Box<dyn FnOnce(CompleteResponse) + Send + 'a>;

/// The item that is being generated.
struct Open {
    kind: Kind,
    id: String,
    call_id: String,
    text: String,
    logprobs: Vec<Value>,
}

impl Open {
    /// The item, with its content so far.
    fn item(&self, status: &str) -> Value {
        let Open { kind, id, call_id, text, .. } = self;
        match kind {
            Kind::Reasoning => {
                json!({ "id": id, "type": "reasoning", "summary": [], "content": self.parts(), "status": status })
            }
            Kind::Preamble | Kind::Final => json!({
                "id": id,
                "type": "message",
                "status": status,
                "role": "assistant",
                "phase": if *kind == Kind::Final { "final_answer" } else { "commentary" },
                "content": self.parts(),
            }),
            Kind::Call { name } => json!({
                "id": id,
                "type": "function_call",
                "status": status,
                "call_id": call_id,
                "name": name,
                "arguments": text,
            }),
        }
    }

    fn parts(&self) -> Vec<Value> {
        if self.text.is_empty() { Vec::new() } else { vec![self.part()] }
    }

    fn part(&self) -> Value {
        match self.kind {
            Kind::Reasoning => json!({ "type": "reasoning_text", "text": self.text }),
            _ => json!({ "type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs }),
        }
    }
}

/// A complete response, to be stored.
pub struct CompleteResponse {
    pub response: Value,
    pub messages: Vec<Message>,
    pub calls: Vec<(String, String)>,
}

impl<'a> ResponseAnswer<'a> {
    pub fn new(
        response: Map<String, Value>,
        tokenizer: &'a Tokenizer,
        turn: Turn<'a>,
        logprobs: bool,
        prompt_tokens: usize,
        on_complete: Option<OnComplete<'a>>,
    ) -> ResponseAnswer<'a> {
        ResponseAnswer {
            response,
            tokenizer,
            turn,
            logprobs,
            prompt_tokens,
            cached_tokens: 0,
            sequence: 0,
            kind: None,
            open: None,
            output: Vec::new(),
            messages: Vec::new(),
            calls: Vec::new(),
            is_cut: false,
            on_complete,
        }
    }

    /// The final response object.
    pub fn ended(&self) -> Value {
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            tokens: self.turn.tokens,
            reasoning_tokens: self.turn.reasoning_tokens,
        };
        let mut response = self.with_status(if self.is_cut { "incomplete" } else { "completed" });
        response["usage"] = usage.of_response();
        match self.is_cut {
            true => response["incomplete_details"] = json!({ "reason": "max_output_tokens" }),
            false => response["completed_at"] = id::now().into(),
        }
        response
    }

    fn with_status(&self, status: &str) -> Value {
        let mut response = self.response.clone();
        response.insert("status".into(), status.into());
        response.insert("output".into(), self.output.clone().into());
        Value::Object(response)
    }

    fn event(&mut self, frames: &mut Frames, kind: &str, fields: Value) {
        let number = self.sequence;
        self.sequence += 1;
        frames.push(|| {
            let mut event = Map::new();
            event.insert("type".into(), kind.into());
            event.insert("sequence_number".into(), number.into());
            if let Value::Object(fields) = fields {
                event.extend(fields);
            }
            Value::Object(event)
        });
    }

    fn show(&mut self, pieces: Vec<Piece>, frames: &mut Frames) {
        for piece in pieces {
            match piece {
                Piece::Begin(kind) => {
                    let is_call = matches!(kind, Kind::Call { .. });
                    self.kind = Some(kind);
                    if is_call {
                        self.begin_item(frames);
                    }
                }
                Piece::Text { text, entries } => {
                    if self.open.is_none() && !text.is_empty() {
                        self.begin_item(frames);
                    }
                    self.add(text, &entries, frames);
                }
                Piece::End { .. } => {
                    self.end_item("completed", frames);
                    self.kind = None;
                }
            }
        }
    }

    fn begin_item(&mut self, frames: &mut Frames) {
        let kind = self.kind.clone().unwrap_or(Kind::Final);
        let (prefix, call_id) = match kind {
            Kind::Reasoning => ("rs_", String::new()),
            Kind::Preamble | Kind::Final => ("msg_", String::new()),
            Kind::Call { .. } => ("fc_", id::random("call_")),
        };
        let open = Open { kind, id: id::random(prefix), call_id, text: String::new(), logprobs: Vec::new() };
        let index = self.output.len();
        let item = open.item("in_progress");
        self.event(frames, "response.output_item.added", json!({ "output_index": index, "item": item }));
        if !matches!(open.kind, Kind::Call { .. }) {
            let part = json!({ "item_id": open.id, "output_index": index, "content_index": 0, "part": open.part() });
            self.event(frames, "response.content_part.added", part);
        }
        self.open = Some(open);
    }

    fn add(&mut self, text: String, entries: &[Entry], frames: &mut Frames) {
        let Some(open) = &mut self.open else { return };
        open.text.push_str(&text);
        let mut logprobs = Vec::new();
        if self.logprobs {
            logprobs.extend(entries.iter().map(|entry| logprob(self.tokenizer, entry)));
            open.logprobs.extend_from_slice(&logprobs);
        }
        if (text.is_empty() && logprobs.is_empty()) || frames.form == Form::Silent {
            return;
        }
        let mut fields = json!({ "item_id": open.id, "output_index": self.output.len() });
        let kind = match open.kind {
            Kind::Reasoning => {
                fields["content_index"] = 0.into();
                "response.reasoning_text.delta"
            }
            Kind::Preamble | Kind::Final => {
                fields["content_index"] = 0.into();
                fields["logprobs"] = logprobs.into();
                "response.output_text.delta"
            }
            Kind::Call { .. } => "response.function_call_arguments.delta",
        };
        fields["delta"] = text.into();
        self.event(frames, kind, fields);
    }

    fn end_item(&mut self, status: &str, frames: &mut Frames) {
        let Some(open) = self.open.take() else { return };
        let index = self.output.len();
        let Open { id, call_id, text, logprobs, kind } = &open;
        match kind {
            Kind::Call { name } => {
                let fields = json!({ "item_id": id, "output_index": index, "arguments": text, "name": name });
                self.event(frames, "response.function_call_arguments.done", fields);
                self.calls.push((call_id.clone(), name.clone()));
                self.messages.push(Message::call(name, text.clone()));
            }
            Kind::Reasoning => {
                let fields = json!({ "item_id": id, "output_index": index, "content_index": 0, "text": text });
                self.event(frames, "response.reasoning_text.done", fields);
                self.messages.push(Message::assistant("analysis", text.clone()));
            }
            Kind::Preamble | Kind::Final => {
                let fields = json!({
                    "item_id": id,
                    "output_index": index,
                    "content_index": 0,
                    "text": text,
                    "logprobs": logprobs,
                });
                self.event(frames, "response.output_text.done", fields);
                let channel = if *kind == Kind::Final { "final" } else { "commentary" };
                self.messages.push(Message::assistant(channel, text.clone()));
            }
        }
        if !matches!(kind, Kind::Call { .. }) {
            let part = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": open.part() });
            self.event(frames, "response.content_part.done", part);
        }
        let item = open.item(status);
        self.event(frames, "response.output_item.done", json!({ "output_index": index, "item": item }));
        self.output.push(item);
    }
}

impl Answer for ResponseAnswer<'_> {
    fn begin(&mut self, frames: &mut Frames) {
        for kind in ["response.created", "response.in_progress"] {
            let response = self.with_status("in_progress");
            self.event(frames, kind, json!({ "response": response }));
        }
    }

    fn take(&mut self, _run: usize, event: Event, frames: &mut Frames) -> Flow {
        match event {
            Event::Started { cached_tokens } => self.cached_tokens = cached_tokens,
            Event::Token { id, logprobs } => {
                let pieces = self.turn.push(id, logprobs);
                self.show(pieces, frames);
            }
            Event::Finished(finish) => {
                self.is_cut = finish == Finish::Length;
                let mut pieces = self.turn.finish();
                // An item that was cut off has the status `incomplete`.
                let is_open = matches!(pieces.last(), Some(Piece::End { complete: false }));
                if self.is_cut && is_open {
                    pieces.pop();
                }
                self.show(pieces, frames);
                self.end_item(if self.is_cut { "incomplete" } else { "completed" }, frames);
            }
        }
        Flow::Continue
    }

    fn end(&mut self, frames: &mut Frames) {
        let kind = if self.is_cut { "response.incomplete" } else { "response.completed" };
        let response = self.ended();
        if let Some(on_complete) = self.on_complete.take() {
            let (messages, calls) = (take(&mut self.messages), take(&mut self.calls));
            on_complete(CompleteResponse { response: response.clone(), messages, calls });
        }
        self.event(frames, kind, json!({ "response": response }));
    }

    fn fail(&mut self, error: &ApiError, frames: &mut Frames) {
        let mut response = self.with_status("failed");
        response["error"] = json!({ "code": "server_error", "message": error.message });
        self.event(frames, "response.failed", json!({ "response": response }));
    }
}
