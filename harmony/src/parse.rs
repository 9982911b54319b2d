//! Generated tokens to messages, one token at a time.

use std::mem::{replace, take};

use phase1_loading::{StopStrings, TextStream};

use crate::control::{Control, Harmony};
use crate::header::{Header, HeaderText, Opening};
use crate::message::{Message, Role};
use crate::prompt::Function;

/// What a token adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// A message begins.
    Begin(Header),
    /// More of the message that was begun.
    Text(String),
    /// The message ends; if not complete, without the control token that ends one.
    End { complete: bool },
    /// Something was not as the format demands. Text that belongs in no message is quoted here.
    Warning(String),
}

/// Reads a turn of the assistant, from behind `<|start|>assistant` on.
///
/// It never fails. Text stays in the channel that it was written to, and half a character is held back until the rest of it comes.
/// A message has no channel if the model gave it none; an unknown channel is kept as it is. Each oddity is one warning.
pub struct Parser<'a> {
    harmony: Harmony<'a>,
    /// Whether a model wrote all of it. Otherwise anybody may speak, and turn follows turn.
    is_turn: bool,
    /// Names of functions that may be called, if they are known.
    functions: Vec<String>,
    /// Tokens other than harmony's after which a model says nothing more.
    ends: Vec<u32>,
    stop: StopStrings,
    stream: TextStream,
    state: State,
    messages: Vec<Message>,
    warnings: Vec<String>,
    stop_string: Option<String>,
    has_ended: bool,
    /// Whether more came after the end, which is worth one warning.
    goes_on: bool,
    is_finished: bool,
}

enum State {
    /// Between messages, or in a header.
    Header(HeaderText),
    Body(Header),
}

impl<'a> Harmony<'a> {
    /// Reads what a model generates after [`Harmony::render_prompt`].
    pub fn parser(&self) -> Parser<'a> {
        Parser::new(*self, true, Opening::Given)
    }
}

impl<'a> Parser<'a> {
    /// For a whole conversation, from behind its first `<|start|>` on.
    pub(crate) fn of_conversation(harmony: Harmony<'a>) -> Parser<'a> {
        Self::new(harmony, false, Opening::Start)
    }

    fn new(harmony: Harmony<'a>, is_turn: bool, opening: Opening) -> Parser<'a> {
        let tokenizer = harmony.tokenizer();
        let is_control = |token: u32| tokenizer.control(&tokenizer.decode(&[token])) == Some(token);
        // Text from outside may hold any token that is not a control token.
        let ends = tokenizer.stops().iter().copied().filter(|&token| is_turn || is_control(token));
        Parser {
            harmony,
            is_turn,
            functions: Vec::new(),
            ends: ends.filter(|&token| harmony.control.find(token).is_none()).collect(),
            stop: StopStrings::default(),
            stream: TextStream::default(),
            state: State::Header(HeaderText::new(opening)),
            messages: Vec::new(),
            warnings: Vec::new(),
            stop_string: None,
            has_ended: false,
            goes_on: false,
            is_finished: false,
        }
    }

    /// Names the functions that were declared. A call of `fjson` or of bare `f` is then a call of `functions.f`, if there is such
    /// a function.
    pub fn with_functions(mut self, functions: &[Function]) -> Parser<'a> {
        self.functions = functions.iter().map(|function| function.name.clone()).collect();
        self
    }

    /// Ends the turn before any of `strings` in text that the user reads: final answers and preambles, but not reasoning, calls or
    /// headers. Empty strings are ignored.
    pub fn with_stop_strings(mut self, strings: Vec<String>) -> Parser<'a> {
        self.stop = StopStrings::new(strings);
        self
    }

    /// Takes the next token. Nothing is taken any more after a stop string.
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

    /// Ends the turn: whatever was under way is kept.
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

    /// All messages so far, that under way among them.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The header of the message under way.
    pub fn open_header(&self) -> Option<&Header> {
        match &self.state {
            State::Body(header) => Some(header),
            State::Header(_) => None,
        }
    }

    /// Whether the model, or a stop string, has ended the turn.
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
            self.warn("the turn goes on after its end".into(), out);
        }
    }

    /// Text that waits for the rest of a character will not get it.
    fn flush(&mut self, out: &mut Vec<Delta>) {
        let rest = take(&mut self.stream).finish();
        self.text(rest, out);
    }

    fn text(&mut self, text: String, out: &mut Vec<Delta>) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Body(_) => self.say(text, out),
            State::Header(header) => {
                header.push(&text);
                if header.is_speech() {
                    let text = header.raw();
                    self.warn("a message without a header".into(), out);
                    self.begin(Header::BARE, out);
                    self.say(text, out);
                }
            }
        }
    }

    fn control(&mut self, control: Control, out: &mut Vec<Delta>) {
        match control {
            Control::Start => self.start(out),
            Control::Message => match &self.state {
                State::Header(header) => {
                    let (reading, raw) = (header.read(&self.functions), header.raw());
                    if reading.odd || self.is_turn && reading.header.role != Role::Assistant {
                        self.warn(format!("`{raw}` as a header"), out);
                    }
                    self.begin(reading.header, out);
                }
                State::Body(_) => self.warn("<|message|> inside a message".into(), out),
            },
            Control::Channel | Control::Constrain => match &mut self.state {
                State::Header(header) => header.divide(control),
                State::Body(_) => {
                    self.warn(format!("{} inside a message", control.name()), out);
                    if control == Control::Channel {
                        self.close(false, out);
                        let mut header = HeaderText::new(Opening::Given);
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
        self.state = State::Header(HeaderText::new(Opening::Start));
    }

    fn end(&mut self, control: Control, out: &mut Vec<Delta>) {
        match &self.state {
            State::Body(header) => {
                let is_call = header.role == Role::Assistant && header.recipient.is_some();
                if is_call != (control == Control::Call) {
                    let what = if is_call { "a call" } else { "a message that is no call" };
                    self.warn(format!("{} behind {what}", control.name()), out);
                }
                self.close(true, out);
            }
            State::Header(header) if header.is_empty() => {
                self.warn(format!("{} without a message", control.name()), out);
                self.state = State::Header(HeaderText::new(Opening::Missing));
            }
            State::Header(_) => self.abandon(true, out),
        }
        self.has_ended |= control != Control::End;
    }

    /// A token that ends all text, where harmony has its own.
    fn end_of_text(&mut self, token: u32, out: &mut Vec<Delta>) {
        let name = self.harmony.tokenizer().decode(&[token]);
        self.warn(format!("{name} as the end"), out);
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

    /// Adds text to the message under way.
    fn say(&mut self, text: String, out: &mut Vec<Delta>) {
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

    /// Ends the message under way.
    fn close(&mut self, complete: bool, out: &mut Vec<Delta>) {
        let held = self.stop.finish();
        self.add(held, out);
        out.push(Delta::End { complete });
        self.state = State::Header(HeaderText::new(Opening::Missing));
    }

    /// Leaves a header that never came to its `<|message|>`. What it says beyond a header becomes a message.
    fn abandon(&mut self, complete: bool, out: &mut Vec<Delta>) {
        let State::Header(header) = &mut self.state else { return };
        let header = replace(header, HeaderText::new(Opening::Missing));
        self.warn(format!("`{}` as a header without a message", header.raw()), out);
        if let Some((header, text)) = header.speech(complete) {
            self.begin(header, out);
            self.say(text, out);
            // A stop string has closed it already.
            if self.open_header().is_some() {
                self.close(complete, out);
            }
        }
    }
}
