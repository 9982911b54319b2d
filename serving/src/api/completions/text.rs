//! Raw text during generation, up to a stop string.

use phase1_loading::{TextStream, Tokenizer};
use phase2_forward::Logprobs;
use phase3_kvcache::{FinishReason, StopCondition};

use crate::api::pending_tokens::PendingTokens;
use crate::api::turn::is_control;

/// A token of the text, with its log probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The text that the token adds. A character whose bytes are in several tokens belongs to the last of them.
    pub text: String,
    /// `None` for the first token of a prompt.
    pub logprob: Option<f32>,
    pub top: Vec<(u32, f32)>,
}

/// The log probabilities of a token and of the most likely ones.
struct Read {
    logprob: Option<f32>,
    top: Vec<(u32, f32)>,
}

/// Converts the tokens of one completion to text.
pub struct Text<'a> {
    tokenizer: &'a Tokenizer,
    stream: TextStream,
    stopping: StopCondition,
    pending: PendingTokens<Entry>,
    stop_tokens: Vec<u32>,
    shows_control: bool,
    stopped_by: Option<String>,
    pub tokens: usize,
}

/// Text that can be shown now, and its tokens.
pub type Shown = (String, Vec<Entry>);

impl<'a> Text<'a> {
    /// A text that ends before any of `stops`. `stop_tokens` are left out, and so are control tokens unless `shows_control` is set.
    pub fn new(tokenizer: &'a Tokenizer, stops: &[String], stop_tokens: &[u32], shows_control: bool) -> Text<'a> {
        Text {
            tokenizer,
            stream: TextStream::default(),
            stopping: StopCondition::new(Vec::new(), stops.to_vec()).expect("stop strings are not empty"),
            pending: PendingTokens::default(),
            stop_tokens: stop_tokens.to_vec(),
            shows_control,
            stopped_by: None,
            tokens: 0,
        }
    }

    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped_by.as_deref()
    }

    pub fn push(&mut self, token: u32, logprobs: Option<Logprobs>) -> Shown {
        self.read(token, logprobs.map(|Logprobs { token, top }| Read { logprob: Some(token), top }))
    }

    /// Adds the first token of a prompt whose tokens have log probabilities.
    pub fn push_first(&mut self, token: u32) -> Shown {
        self.read(token, Some(Read { logprob: None, top: Vec::new() }))
    }

    fn read(&mut self, token: u32, logprobs: Option<Read>) -> Shown {
        self.tokens += 1;
        let hidden = self.stop_tokens.contains(&token) || (!self.shows_control && is_control(self.tokenizer, token));
        if hidden || self.stopped_by.is_some() {
            return Shown::default();
        }
        let text = self.stream.push(self.tokenizer, token);
        if let Some(Read { logprob, top }) = logprobs {
            self.pending.push(Entry { text: text.clone(), logprob, top }, text.len());
        }
        let (shown, finish) = self.stopping.push(token, &text);
        let mut entries = if shown.is_empty() { Vec::new() } else { self.pending.show(shown.len()) };
        if let Some(FinishReason::StopString(stop)) = finish {
            self.stopped_by = Some(stop);
            if let Some((mut entry, bytes)) = self.pending.cut() {
                entry.text.truncate(bytes);
                entries.push(entry);
            }
        }
        (shown, entries)
    }

    /// Ends the text. Returns the part that was held back because a stop string or a character might have continued in the next token.
    pub fn finish(&mut self) -> Shown {
        if self.stopped_by.is_some() {
            return Shown::default();
        }
        let rest = std::mem::take(&mut self.stream).finish();
        let mut entries = Vec::new();
        let held = self.stopping.finish();
        let waiting = self.pending.rest();
        let count = waiting.len();
        for (index, mut entry) in waiting.into_iter().enumerate() {
            // An incomplete character belongs to the last token.
            if index + 1 == count && entry.text.is_empty() {
                entry.text.push_str(&rest);
            }
            entries.push(entry);
        }
        (held + &rest, entries)
    }
}
