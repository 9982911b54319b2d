//! A Completions answer: streamed in chunks, or as one object.

use phase1_loading::Tokenizer;
use serde_json::{Map, Value, json};

use super::text::{Entry, Shown, Text};
use crate::api::chat::finite;
use crate::api::runs::{Answer, Flow};
use crate::api::stops;
use crate::api::stream::Frames;
use crate::api::usage::Usage;
use crate::request::{Event, Finish};

/// The fields of the answer that are known before the first token, and which optional parts the request wants.
pub struct Head {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub fingerprint: String,
    /// Number of tokens of each prompt.
    pub prompt_tokens: Vec<usize>,
    /// Number of answers per prompt.
    pub per_prompt: usize,
    pub logprobs: bool,
    pub include_usage: bool,
}

pub struct CompletionAnswer<'a> {
    head: Head,
    tokenizer: &'a Tokenizer,
    choices: Vec<Choice<'a>>,
}

/// The prompt that is repeated before the text.
pub enum Echo<'a> {
    Text(String),
    /// The first token of the prompt. A constraint makes the run draw the `left` other tokens of the prompt, with log probabilities, before
    /// the text begins.
    Scored {
        first: u32,
        left: usize,
        read: Text<'a>,
    },
}

struct Choice<'a> {
    read: Text<'a>,
    text: String,
    entries: Vec<Entry>,
    /// Number of characters in earlier chunks.
    offset: usize,
    /// The prompt, until it has been sent.
    echo: Option<Echo<'a>>,
    cached_tokens: usize,
    finish: Option<&'static str>,
    stop_reason: Value,
}

impl<'a> CompletionAnswer<'a> {
    /// An answer with one text per choice, and the prompt to repeat before it.
    pub fn new(head: Head, tokenizer: &'a Tokenizer, texts: Vec<(Text<'a>, Option<Echo<'a>>)>) -> CompletionAnswer<'a> {
        let choices = texts.into_iter().map(|(read, echo)| Choice {
            read,
            text: String::new(),
            entries: Vec::new(),
            offset: 0,
            echo,
            cached_tokens: 0,
            finish: None,
            stop_reason: Value::Null,
        });
        CompletionAnswer { head, tokenizer, choices: choices.collect() }
    }

    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    pub fn whole(self) -> Value {
        let choices = self.choices.iter().enumerate().map(|(index, choice)| {
            let logprobs = self.head.logprobs.then(|| arrays(self.tokenizer, &choice.entries, 0));
            json!({
                "index": index,
                "text": choice.text,
                "logprobs": logprobs,
                "finish_reason": choice.finish,
                "stop_reason": choice.stop_reason,
            })
        });
        let choices: Vec<Value> = choices.collect();
        self.object(choices.into(), Some(self.usage().of_chat()))
    }

    fn usage(&self) -> Usage {
        let firsts = self.choices.iter().step_by(self.head.per_prompt.max(1));
        Usage {
            prompt_tokens: self.head.prompt_tokens.iter().sum(),
            cached_tokens: firsts.map(|choice| choice.cached_tokens).sum(),
            tokens: self.choices.iter().map(|choice| choice.read.tokens).sum(),
            reasoning_tokens: 0,
        }
    }

    fn object(&self, choices: Value, usage: Option<Value>) -> Value {
        let Head { id, created, model, fingerprint, .. } = &self.head;
        let mut object = json!({
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": choices,
            "system_fingerprint": fingerprint,
        });
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }

    fn chunk(&self, choice: Value) -> Value {
        self.object(json!([choice]), self.head.include_usage.then_some(Value::Null))
    }

    fn show(&mut self, index: usize, (text, entries): Shown, frames: &mut Frames) {
        if text.is_empty() && entries.is_empty() {
            return;
        }
        let choice = &mut self.choices[index];
        let offset = choice.offset;
        choice.offset += text.chars().count();
        choice.text.push_str(&text);
        choice.entries.extend_from_slice(&entries);
        frames.push(|| {
            let logprobs = self.head.logprobs.then(|| arrays(self.tokenizer, &entries, offset));
            self.chunk(json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": null }))
        });
    }

    /// After the last token of a scored prompt, sends the part of the prompt's text that was held back. The generated text has its own
    /// reader, because stop strings must not match in the prompt.
    fn end_echo(&mut self, index: usize, frames: &mut Frames) {
        if let Some(Echo::Scored { left: 0, read, .. }) = &mut self.choices[index].echo {
            let shown = read.finish();
            self.choices[index].echo = None;
            self.show(index, shown, frames);
        }
    }

    fn close(&mut self, index: usize, finish: &'static str, stop_reason: Value, frames: &mut Frames) {
        let choice = &mut self.choices[index];
        choice.finish = Some(finish);
        choice.stop_reason = stop_reason.clone();
        frames.push(|| {
            self.chunk(json!({
                "index": index,
                "text": "",
                "logprobs": null,
                "finish_reason": finish,
                "stop_reason": stop_reason,
            }))
        });
    }
}

impl Answer for CompletionAnswer<'_> {
    fn begin(&mut self, frames: &mut Frames) {
        for index in 0..self.choices.len() {
            let choice = &mut self.choices[index];
            let shown = match choice.echo.take() {
                None => continue,
                Some(Echo::Text(prompt)) => (prompt, Vec::new()),
                Some(Echo::Scored { first, left, mut read }) => {
                    let shown = read.push_first(first);
                    choice.echo = Some(Echo::Scored { first, left, read });
                    shown
                }
            };
            self.show(index, shown, frames);
            self.end_echo(index, frames);
        }
    }

    fn take(&mut self, run: usize, event: Event, frames: &mut Frames) -> Flow {
        let choice = &mut self.choices[run];
        match event {
            Event::Started { cached_tokens } => choice.cached_tokens = cached_tokens,
            Event::Token { id, logprobs } => {
                if let Some(Echo::Scored { left, read, .. }) = &mut choice.echo {
                    *left -= 1;
                    let shown = read.push(id, logprobs);
                    self.show(run, shown, frames);
                    self.end_echo(run, frames);
                    return Flow::Continue;
                }
                let shown = choice.read.push(id, logprobs);
                let stopped = choice.read.stopped_by().map(Value::from);
                self.show(run, shown, frames);
                if let Some(stop) = stopped {
                    self.close(run, "stop", stop, frames);
                    return Flow::Stop;
                }
            }
            Event::Finished(finish) => {
                let shown = choice.read.finish();
                self.show(run, shown, frames);
                match finish {
                    Finish::Length => self.close(run, "length", Value::Null, frames),
                    Finish::Stop(token) => self.close(run, "stop", stops::reason(self.tokenizer, token), frames),
                    Finish::Deadline | Finish::Failed(_) => {}
                }
            }
        }
        Flow::Continue
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.head.include_usage {
            frames.push(|| self.object(json!([]), Some(self.usage().of_chat())));
        }
        frames.done();
    }
}

/// The four arrays of log probabilities in the format of Completions. The first token begins at character `offset` of the text.
fn arrays(tokenizer: &Tokenizer, entries: &[Entry], mut offset: usize) -> Value {
    let (mut tokens, mut logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for Entry { text, logprob, top } in entries {
        tokens.push(text.as_str());
        logprobs.push(logprob.map(finite));
        tops.push(logprob.map(|logprob| {
            let mut alternatives = Map::new();
            for &(token, logprob) in top {
                let bytes = tokenizer.token_bytes(token).unwrap_or_default();
                alternatives.entry(String::from_utf8_lossy(bytes)).or_insert_with(|| finite(logprob).into());
            }
            // OpenAI lists the drawn token even if it is not among the most likely ones.
            alternatives.entry(text.as_str()).or_insert_with(|| finite(logprob).into());
            alternatives
        }));
        offsets.push(offset);
        offset += text.chars().count();
    }
    json!({ "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets })
}
