//! Answers in Ollama's format: one line of JSON per chunk, or one object.

use std::time::{Duration, Instant};

use phase1_loading::Tokenizer;
use phase2_forward::Logprobs;
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::runs::{Answer, Flow};
use crate::api::stream::Frames;
use crate::api::turn::{Kind, Piece, Turn};
use crate::request::{Event, Finish};

/// The layout of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `/api/chat`: a message.
    Chat,
    /// `/api/generate`: text.
    Generate,
}

pub struct OllamaAnswer<'a> {
    layout: Layout,
    model: String,
    created: String,
    shows_thinking: bool,
    prompt_tokens: usize,
    reader: Reader<'a>,
    kind: Option<Kind>,
    message: PartialMessage,
    /// Arguments of the current call.
    arguments: String,
    begin: Instant,
    started: Option<Instant>,
    first: Option<Instant>,
    finish: &'static str,
}

/// Reads a turn of harmony or raw text.
pub enum Reader<'a> {
    Turn(Box<Turn<'a>>),
    Raw(crate::api::completions::Text<'a>),
}

impl<'a> Reader<'a> {
    fn push(&mut self, token: u32, logprobs: Option<Logprobs>) -> Vec<Piece> {
        match self {
            Reader::Turn(turn) => turn.push(token, logprobs),
            Reader::Raw(text) => raw(text.push(token, logprobs).0),
        }
    }

    fn finish(&mut self) -> Vec<Piece> {
        match self {
            Reader::Turn(turn) => turn.finish(),
            Reader::Raw(text) => raw(text.finish().0),
        }
    }

    fn is_stopped(&self) -> bool {
        match self {
            Reader::Turn(turn) => turn.stopped_by().is_some(),
            Reader::Raw(text) => text.stopped_by().is_some(),
        }
    }

    fn tokens(&self) -> usize {
        match self {
            Reader::Turn(turn) => turn.tokens,
            Reader::Raw(text) => text.tokens,
        }
    }

    /// A reader of raw text, up to a stop string; stop tokens are left out.
    pub fn raw(tokenizer: &'a Tokenizer, stops: &[String], stop_tokens: &[u32]) -> Reader<'a> {
        Reader::Raw(crate::api::completions::Text::new(tokenizer, stops, stop_tokens, false))
    }
}

fn raw(text: String) -> Vec<Piece> {
    if text.is_empty() { Vec::new() } else { vec![Piece::Text { text, entries: Vec::new() }] }
}

/// The message so far.
#[derive(Default)]
struct PartialMessage {
    content: String,
    thinking: String,
    calls: Vec<Value>,
}

impl<'a> OllamaAnswer<'a> {
    pub fn new(
        layout: Layout,
        model: String,
        created: String,
        shows_thinking: bool,
        prompt_tokens: usize,
        reader: Reader<'a>,
    ) -> OllamaAnswer<'a> {
        OllamaAnswer {
            layout,
            model,
            created,
            shows_thinking,
            prompt_tokens,
            reader,
            kind: None,
            message: PartialMessage::default(),
            arguments: String::new(),
            begin: Instant::now(),
            started: None,
            first: None,
            finish: "stop",
        }
    }

    /// The answer as one object.
    pub fn whole(mut self) -> Value {
        let PartialMessage { content, thinking, calls } = std::mem::take(&mut self.message);
        self.last_line(&content, &thinking, calls)
    }

    fn line(&self, content: &str, thinking: &str, calls: Vec<Value>) -> Value {
        let (model, created) = (&self.model, &self.created);
        match self.layout {
            Layout::Chat => {
                let mut message = json!({ "role": "assistant", "content": content });
                if !thinking.is_empty() {
                    message["thinking"] = thinking.into();
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                json!({ "model": model, "created_at": created, "message": message, "done": false })
            }
            Layout::Generate => {
                let mut line = json!({ "model": model, "created_at": created, "response": content, "done": false });
                if !thinking.is_empty() {
                    line["thinking"] = thinking.into();
                }
                line
            }
        }
    }

    fn last_line(&self, content: &str, thinking: &str, calls: Vec<Value>) -> Value {
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let now = Instant::now();
        let (started, first) = (self.started.unwrap_or(now), self.first.unwrap_or(now));
        let mut line = self.line(content, thinking, calls);
        line["done"] = true.into();
        line["done_reason"] = self.finish.into();
        line["total_duration"] = nanoseconds(now - self.begin).into();
        line["load_duration"] = 0.into();
        line["prompt_eval_count"] = self.prompt_tokens.into();
        line["prompt_eval_duration"] = nanoseconds(first.saturating_duration_since(started)).into();
        line["eval_count"] = self.reader.tokens().into();
        line["eval_duration"] = nanoseconds(now - first).into();
        line
    }

    fn show(&mut self, pieces: Vec<Piece>, frames: &mut Frames) {
        for piece in pieces {
            match (piece, self.kind.clone()) {
                (Piece::Begin(kind), _) => self.kind = Some(kind),
                (Piece::Text { text, .. }, Some(Kind::Call { .. })) => self.arguments.push_str(&text),
                (Piece::Text { text, .. }, Some(Kind::Reasoning)) => {
                    if self.shows_thinking && !text.is_empty() {
                        frames.push(|| self.line("", &text, Vec::new()));
                        self.message.thinking.push_str(&text);
                    }
                }
                (Piece::Text { text, .. }, _) => {
                    if !text.is_empty() {
                        frames.push(|| self.line(&text, "", Vec::new()));
                        self.message.content.push_str(&text);
                    }
                }
                (Piece::End { .. }, Some(Kind::Call { name })) => {
                    let arguments = std::mem::take(&mut self.arguments);
                    // Clients expect an object; arguments that are not valid JSON are passed on as a string.
                    let arguments = serde_json::from_str(&arguments).unwrap_or(Value::String(arguments));
                    let call = json!({ "function": { "name": name, "arguments": arguments } });
                    frames.push(|| self.line("", "", vec![call.clone()]));
                    self.message.calls.push(call);
                    self.kind = None;
                }
                (Piece::End { .. }, _) => self.kind = None,
            }
        }
    }
}

impl Answer for OllamaAnswer<'_> {
    fn begin(&mut self, _frames: &mut Frames) {}

    fn take(&mut self, _run: usize, event: Event, frames: &mut Frames) -> Flow {
        match event {
            Event::Started { .. } => self.started = Some(Instant::now()),
            Event::Token { id, logprobs } => {
                self.first.get_or_insert_with(Instant::now);
                let pieces = self.reader.push(id, logprobs);
                self.show(pieces, frames);
                if self.reader.is_stopped() {
                    return Flow::Stop;
                }
            }
            Event::Finished(finish) => {
                if finish == Finish::Length {
                    self.finish = "length";
                }
                let pieces = self.reader.finish();
                self.show(pieces, frames);
            }
        }
        Flow::Continue
    }

    fn end(&mut self, frames: &mut Frames) {
        frames.push(|| self.last_line("", "", Vec::new()));
    }

    fn fail(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.fail(error);
    }
}

#[cfg(test)]
mod tests {
    use harmony::Harmony;

    use super::*;
    use crate::api::scripted::{THINK_AND_CALL, feed, function, tokenizer};
    use crate::api::stream::Form;

    #[test]
    fn a_chat_that_calls() {
        let tokenizer = tokenizer();
        let harmony = Harmony::new(&tokenizer).expect("harmony's control tokens");
        let answer = |shows_thinking| {
            let reader = Reader::Turn(Box::new(Turn::new(&harmony, &[function()], &[], &[])));
            OllamaAnswer::new(Layout::Chat, "m".into(), "2026-01-01T00:00:00Z".into(), shows_thinking, 10, reader)
        };
        let mut whole = answer(true);
        assert_eq!(feed(&mut whole, &tokenizer, THINK_AND_CALL, Form::Silent), "");
        let whole = whole.whole();
        let message = &whole["message"];
        assert_eq!((&message["thinking"], &message["content"]), (&json!("Ask the tool."), &json!("I look.")));
        // Arguments are an object, not text as in OpenAI's API.
        let calls = json!([{ "function": { "name": "f", "arguments": { "a": 1 } } }]);
        assert_eq!(message["tool_calls"], calls);
        assert_eq!((&whole["done"], &whole["done_reason"]), (&json!(true), &json!("stop")));
        let tokens = tokenizer.encode_with_control(THINK_AND_CALL).len();
        assert_eq!((&whole["prompt_eval_count"], &whole["eval_count"]), (&json!(10), &json!(tokens)));

        let streamed = feed(&mut answer(true), &tokenizer, THINK_AND_CALL, Form::Lines);
        let lines: Vec<Value> = streamed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let joined = |lines: &[Value], field: &str| -> String {
            lines.iter().filter_map(|line| line["message"][field].as_str()).collect()
        };
        assert_eq!((joined(&lines, "thinking"), joined(&lines, "content")), ("Ask the tool.".into(), "I look.".into()));
        let with_calls = lines.iter().map(|line| &line["message"]["tool_calls"]).filter(|calls| calls.is_array());
        assert_eq!(with_calls.collect::<Vec<_>>(), [&calls]);
        let done: Vec<bool> = lines.iter().map(|line| line["done"] == true).collect();
        assert_eq!(done.iter().position(|&done| done), Some(lines.len() - 1));

        let hidden = feed(&mut answer(false), &tokenizer, THINK_AND_CALL, Form::Lines);
        let lines: Vec<Value> = hidden.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(joined(&lines, "content"), "I look.");
        assert!(!hidden.contains("thinking"), "{hidden}");
    }

    /// The client gets invalid arguments as the model wrote them.
    #[test]
    fn arguments_that_are_no_json_are_text() {
        let tokenizer = tokenizer();
        let harmony = Harmony::new(&tokenizer).expect("harmony's control tokens");
        let reader = Reader::Turn(Box::new(Turn::new(&harmony, &[function()], &[], &[])));
        let mut answer = OllamaAnswer::new(Layout::Chat, "m".into(), String::new(), true, 10, reader);
        let text = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": <|call|>";
        feed(&mut answer, &tokenizer, text, Form::Silent);
        assert_eq!(answer.whole()["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\": ");
    }
}
