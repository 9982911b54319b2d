//! Parses generated tokens to messages, one token at a time.

use std::mem::{replace, take};

use phase1_loading::{StopStrings, TextStream};

use crate::control::{Control, Harmony};
use crate::header::{Header, HeaderStart, HeaderText};
use crate::message::{Message, Role};
use crate::prompt::Function;

/// The effect of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// A message begins.
    Begin(Header),
    /// More content of the message that began last.
    Text(String),
    /// The message ends. It is complete if a stop string or a token that ends messages or turns ended it.
    End { complete: bool },
    /// A deviation from the format. Quotes text that belongs to no message.
    Warning(String),
}

/// Parses a turn of the assistant, beginning after `<|start|>assistant`.
///
/// Parsing never fails. Text is kept in the channel that the model gave it, and an incomplete character is held back until its remaining
/// bytes arrive. If the model gave no channel, the message has none; an unknown channel is kept. Each deviation gives one warning.
pub struct Parser<'a> {
    harmony: Harmony<'a>,
    /// Whether the tokens are one turn of the model. Otherwise they are a conversation, with several authors and turns.
    is_turn: bool,
    /// Names of the declared functions, if known.
    functions: Vec<String>,
    /// Tokens other than harmony's that end the turn.
    ends: Vec<u32>,
    stop: StopStrings,
    stream: TextStream,
    state: State,
    messages: Vec<Message>,
    warnings: Vec<String>,
    stop_string: Option<String>,
    has_ended: bool,
    /// Whether tokens followed the end; they give a single warning.
    goes_on: bool,
    is_finished: bool,
}

enum State {
    /// Between messages, or in a header.
    Header(HeaderText),
    Body(Header),
}

impl<'a> Harmony<'a> {
    /// A parser for what a model generates after [`Harmony::render_prompt`].
    pub fn parser(&self) -> Parser<'a> {
        Parser::new(*self, true, HeaderStart::Given)
    }
}

impl<'a> Parser<'a> {
    /// A parser for a whole conversation, beginning after its first `<|start|>`.
    pub(crate) fn of_conversation(harmony: Harmony<'a>) -> Parser<'a> {
        Self::new(harmony, false, HeaderStart::Start)
    }

    fn new(harmony: Harmony<'a>, is_turn: bool, start: HeaderStart) -> Parser<'a> {
        let tokenizer = harmony.tokenizer();
        let is_control = |token: u32| tokenizer.control(&tokenizer.decode(&[token])) == Some(token);
        // In a conversation, untrusted text may contain any token except control tokens, so only control tokens are treated as ends.
        let ends = tokenizer.stops().iter().copied().filter(|&token| is_turn || is_control(token));
        Parser {
            harmony,
            is_turn,
            functions: Vec::new(),
            ends: ends.filter(|&token| harmony.control.find(token).is_none()).collect(),
            stop: StopStrings::default(),
            stream: TextStream::default(),
            state: State::Header(HeaderText::new(start)),
            messages: Vec::new(),
            warnings: Vec::new(),
            stop_string: None,
            has_ended: false,
            goes_on: false,
            is_finished: false,
        }
    }

    /// Sets the declared functions. If `f` is declared, calls of `fjson` or plain `f` are read as calls of `functions.f`.
    pub fn with_functions(mut self, functions: &[Function]) -> Parser<'a> {
        self.functions = functions.iter().map(|function| function.name.clone()).collect();
        self
    }

    /// Ends the turn before any of `strings` in visible text: final answers and preambles, but not reasoning, calls or headers. Empty
    /// strings are ignored.
    pub fn with_stop_strings(mut self, strings: Vec<String>) -> Parser<'a> {
        self.stop = StopStrings::new(strings);
        self
    }

    /// Parses the next token. Tokens after a stop string are ignored.
    pub fn push(&mut self, token: u32) -> Vec<Delta> {
        let mut out = Vec::new();
        if self.stop_string.is_some() {
            return out;
        }
        let control = self.harmony.control.find(token);
        if control.is_none() && !self.ends.contains(&token) {
            self.check_end(&mut out);
            let tokenizer = self.harmony.tokenizer();
            if tokenizer.token_bytes(token).is_none() {
                self.warn(format!("token {token} is not in the vocabulary"), &mut out);
            }
            let text = self.stream.push(tokenizer, token);
            self.text(text, &mut out);
            return out;
        }
        self.flush(&mut out);
        if self.stop_string.is_none() {
            self.check_end(&mut out);
            match control {
                Some(control) => self.control(control, &mut out),
                None => self.end_of_text(token, &mut out),
            }
        }
        out
    }

    /// Ends the turn. An incomplete message is kept.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut out = Vec::new();
        if replace(&mut self.is_finished, true) || self.stop_string.is_some() {
            return out;
        }
        self.flush(&mut out);
        match &self.state {
            State::Body(_) => {
                self.warn("the turn ends inside a message".into(), &mut out);
                self.close(false, &mut out);
            }
            State::Header(header) if !header.is_blank_between_messages() => self.abandon(false, &mut out),
            State::Header(_) if !self.has_ended => self.warn("the turn has no end".into(), &mut out),
            State::Header(_) => {}
        }
        out
    }

    /// All messages so far, including an incomplete one.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The header of the open message.
    pub fn open_header(&self) -> Option<&Header> {
        match &self.state {
            State::Body(header) => Some(header),
            State::Header(_) => None,
        }
    }

    /// Whether the model or a stop string has ended the turn.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The stop string that ended the turn.
    pub fn stop_string(&self) -> Option<&str> {
        self.stop_string.as_deref()
    }

    fn warn(&mut self, what: String, out: &mut Vec<Delta>) {
        out.push(Delta::Warning(what.clone()));
        self.warnings.push(what);
    }

    fn check_end(&mut self, out: &mut Vec<Delta>) {
        if self.is_turn && self.has_ended && !replace(&mut self.goes_on, true) {
            self.warn("tokens after the end of the turn".into(), out);
        }
    }

    /// Releases held-back bytes of a character that will not be completed.
    fn flush(&mut self, out: &mut Vec<Delta>) {
        let rest = take(&mut self.stream).finish();
        self.text(rest, out);
    }

    fn text(&mut self, text: String, out: &mut Vec<Delta>) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Body(_) => self.add_text(text, out),
            State::Header(header) => {
                header.push(&text);
                if header.is_bare_content() {
                    let text = header.raw();
                    self.warn("a message without a header".into(), out);
                    self.begin(Header::BARE, out);
                    self.add_text(text, out);
                }
            }
        }
    }

    fn control(&mut self, control: Control, out: &mut Vec<Delta>) {
        match control {
            Control::Start => self.start(out),
            Control::Message => match &self.state {
                State::Header(header) => {
                    let (parsed, raw) = (header.read(&self.functions), header.raw());
                    if parsed.odd || self.is_turn && parsed.header.role != Role::Assistant {
                        self.warn(format!("malformed header `{raw}`"), out);
                    }
                    self.begin(parsed.header, out);
                }
                State::Body(_) => self.warn("<|message|> inside a message".into(), out),
            },
            Control::Channel | Control::Constrain => match &mut self.state {
                State::Header(header) => header.divide(control),
                State::Body(_) => {
                    self.warn(format!("{} inside a message", control.name()), out);
                    if control == Control::Channel {
                        self.close(false, out);
                        let mut header = HeaderText::new(HeaderStart::Given);
                        header.divide(control);
                        self.state = State::Header(header);
                    }
                }
            },
            Control::End | Control::Return | Control::Call => self.end(control, out),
        }
    }

    fn start(&mut self, out: &mut Vec<Delta>) {
        match &self.state {
            State::Body(_) => {
                self.warn("<|start|> inside a message".into(), out);
                self.close(false, out);
            }
            State::Header(header) if !header.is_empty() => self.abandon(false, out),
            State::Header(header) if header.has_start() => self.warn("<|start|> twice".into(), out),
            State::Header(_) => {}
        }
        self.state = State::Header(HeaderText::new(HeaderStart::Start));
    }

    fn end(&mut self, control: Control, out: &mut Vec<Delta>) {
        match &self.state {
            State::Body(header) => {
                let is_call = header.role == Role::Assistant && header.recipient.is_some();
                if is_call != (control == Control::Call) {
                    let what = if is_call { "a call" } else { "a message that is not a call" };
                    self.warn(format!("{} at the end of {what}", control.name()), out);
                }
                self.close(true, out);
            }
            State::Header(header) if header.is_empty() => {
                self.warn(format!("{} without a message", control.name()), out);
                self.state = State::Header(HeaderText::new(HeaderStart::Missing));
            }
            State::Header(_) => self.abandon(true, out),
        }
        self.has_ended |= control != Control::End;
    }

    /// A token that ends generation, but is not one of harmony's.
    fn end_of_text(&mut self, token: u32, out: &mut Vec<Delta>) {
        let name = self.harmony.tokenizer().decode(&[token]);
        self.warn(format!("the turn ends with {name}"), out);
        match &self.state {
            State::Body(_) => self.close(true, out),
            State::Header(header) if header.is_blank_between_messages() => {}
            State::Header(_) => self.abandon(true, out),
        }
        self.has_ended = true;
    }

    fn begin(&mut self, header: Header, out: &mut Vec<Delta>) {
        self.messages.push(header.message());
        out.push(Delta::Begin(header.clone()));
        self.state = State::Body(header);
    }

    /// Adds text to the open message.
    fn add_text(&mut self, text: String, out: &mut Vec<Delta>) {
        let is_visible = self.open_header().is_some_and(Header::is_visible);
        let (text, stop) = if is_visible { self.stop.push(&text) } else { (text, None) };
        self.add(text, out);
        if stop.is_some() {
            self.stop_string = stop;
            self.close(true, out);
            self.has_ended = true;
        }
    }

    fn add(&mut self, text: String, out: &mut Vec<Delta>) {
        if let Some(message) = self.messages.last_mut().filter(|_| !text.is_empty()) {
            message.content.push_str(&text);
            out.push(Delta::Text(text));
        }
    }

    /// Ends the open message.
    fn close(&mut self, complete: bool, out: &mut Vec<Delta>) {
        let held = self.stop.finish();
        self.add(held, out);
        out.push(Delta::End { complete });
        self.state = State::Header(HeaderText::new(HeaderStart::Missing));
    }

    /// Drops a header that did not reach its `<|message|>`. Content in it becomes a message.
    fn abandon(&mut self, complete: bool, out: &mut Vec<Delta>) {
        let State::Header(header) = &mut self.state else { return };
        let header = replace(header, HeaderText::new(HeaderStart::Missing));
        self.warn(format!("header `{}` without a message", header.raw()), out);
        if let Some((header, text)) = header.content(complete) {
            self.begin(header, out);
            self.add_text(text, out);
            // A stop string may have closed the message already.
            if self.open_header().is_some() {
                self.close(complete, out);
            }
        }
    }
}
