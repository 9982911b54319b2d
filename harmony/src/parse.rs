//! Generated tokens to reasoning, content and tool calls.

use phase1_loading::{TextStream, Tokenizer};

use crate::message::Message;

/// A piece of what the model says, as it streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Thought, not addressed to the user.
    Reasoning(String),
    /// The answer.
    Content(String),
    /// Arguments of the function call under way.
    Arguments(String),
}

/// A function call that the model made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Without the `functions.` in front.
    pub name: String,
    /// JSON, if the model kept to it.
    pub arguments: String,
}

impl ToolCall {
    /// The arguments as a JSON object; `None` if they are none.
    pub fn parsed(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
        serde_json::from_str(&self.arguments).ok()
    }
}

/// All that the model said in one turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    pub reasoning: String,
    pub content: String,
    pub calls: Vec<ToolCall>,
    /// What was not as the format demands, in order. Empty for a well-formed turn.
    pub irregularities: Vec<String>,
}

impl Turn {
    /// The turn as messages to render in later prompts.
    pub fn messages(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        if !self.reasoning.is_empty() {
            messages.push(Message::assistant("analysis", &self.reasoning));
        }
        messages.extend(self.calls.iter().map(|call| Message::call(&call.name, &call.arguments)));
        if !self.content.is_empty() {
            messages.push(Message::assistant("final", &self.content));
        }
        messages
    }
}

/// Reads a turn token by token, from behind `<|start|>assistant` on.
pub struct Parser<'a> {
    tokenizer: &'a Tokenizer,
    stream: TextStream,
    state: State,
    turn: Turn,
    ended: bool,
}

enum State {
    /// Between `<|start|>` and `<|message|>`: the role is behind us, the text so far and where it came from.
    Header { text: String, channel_seen: bool },
    /// Inside a message.
    Body(Kind),
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Reasoning,
    Content,
    /// The last call of the turn.
    Call,
}

impl<'a> Parser<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Parser<'a> {
        Parser {
            tokenizer,
            stream: TextStream::default(),
            state: State::Header { text: String::new(), channel_seen: false },
            turn: Turn::default(),
            ended: false,
        }
    }

    /// Takes the next token; returns what it adds.
    pub fn push(&mut self, token: u32) -> Option<Piece> {
        let name = |name| self.tokenizer.control(name) == Some(token);
        let structural =
            ["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"];
        let Some(control) = structural.into_iter().find(|control| name(control)) else {
            let text = self.stream.push(self.tokenizer, token);
            return self.text(text);
        };
        let broken = std::mem::take(&mut self.stream).finish();
        let rest = self.text(broken);
        self.control(control).or(rest)
    }

    /// Ends the turn: whatever was under way is kept.
    pub fn finish(mut self) -> Turn {
        let broken = std::mem::take(&mut self.stream).finish();
        self.text(broken);
        if !self.ended {
            self.irregular("the turn ends inside a message");
        }
        self.abandon_header();
        self.turn
    }

    fn irregular(&mut self, what: impl Into<String>) {
        self.turn.irregularities.push(what.into());
    }

    fn text(&mut self, text: String) -> Option<Piece> {
        if text.is_empty() {
            return None;
        }
        match &mut self.state {
            State::Header { text: header, .. } => {
                header.push_str(&text);
                None
            }
            State::Body(kind) => Some(self.turn.add(*kind, text)),
        }
    }

    fn control(&mut self, control: &str) -> Option<Piece> {
        if self.ended {
            self.irregular(format!("{control} after the turn's end"));
        }
        match (control, &mut self.state) {
            ("<|channel|>", State::Header { text, channel_seen }) if !*channel_seen => {
                *channel_seen = true;
                let role = std::mem::take(text);
                // Generation begins behind the first role; later messages repeat it.
                if !matches!(role.trim(), "" | "assistant") {
                    self.irregular(format!("`{role}` as the role"));
                    return Some(self.turn.add(Kind::Content, role));
                }
                None
            }
            // Marks the content type, which the recipient implies.
            ("<|constrain|>", State::Header { text, .. }) => {
                text.push(' ');
                None
            }
            ("<|message|>", State::Header { .. }) => self.begin_body(),
            ("<|end|>" | "<|return|>" | "<|call|>", _) => {
                let piece = self.abandon_header();
                self.ended = control != "<|end|>";
                self.state = State::Header { text: String::new(), channel_seen: false };
                piece
            }
            ("<|start|>", State::Header { text, channel_seen: false }) if text.is_empty() => None,
            ("<|start|>" | "<|channel|>", _) => {
                self.irregular(format!("{control} inside a message"));
                let piece = self.abandon_header();
                self.state = State::Header { text: String::new(), channel_seen: control == "<|channel|>" };
                piece
            }
            (_, _) => {
                self.irregular(format!("{control} out of place"));
                None
            }
        }
    }

    /// Reads the header: `CHANNEL`, `CHANNEL to=functions.NAME json`, and the ways models get it wrong.
    fn begin_body(&mut self) -> Option<Piece> {
        let State::Header { text, channel_seen } = std::mem::replace(&mut self.state, State::Body(Kind::Content))
        else {
            unreachable!("only called in a header");
        };
        let (before, recipient) = match text.split_once("to=") {
            Some((before, rest)) => (before.trim(), rest.split_whitespace().next()),
            None => (text.trim(), None),
        };
        if let Some(recipient) = recipient {
            let name = recipient.strip_prefix("functions.").unwrap_or(recipient);
            // Without the control token between them, the content type sticks to the name.
            let name = name.strip_suffix("json").filter(|name| !name.is_empty()).unwrap_or(name);
            if before != "commentary" || !recipient.starts_with("functions.") || recipient.len() != name.len() + 10 {
                self.irregular(format!("`{text}` as a call's header"));
            }
            self.turn.calls.push(ToolCall { name: name.into(), arguments: String::new() });
            self.state = State::Body(Kind::Call);
            return None;
        }
        let kind = match before {
            "final" | "commentary" => Kind::Content,
            "analysis" => Kind::Reasoning,
            _ => {
                self.irregular(format!("`{text}` as a channel"));
                Kind::Content
            }
        };
        if !channel_seen {
            self.irregular("a message without a channel");
        }
        self.state = State::Body(kind);
        None
    }

    /// A header that never reached its message was something the model wanted to say.
    fn abandon_header(&mut self) -> Option<Piece> {
        let State::Header { text, .. } = &mut self.state else { return None };
        if text.is_empty() {
            return None;
        }
        let text = std::mem::take(text);
        self.irregular(format!("`{text}` as a message without a body"));
        Some(self.turn.add(Kind::Content, text))
    }
}

impl Turn {
    fn add(&mut self, kind: Kind, text: String) -> Piece {
        match (kind, self.calls.last_mut()) {
            (Kind::Reasoning, _) => {
                self.reasoning.push_str(&text);
                Piece::Reasoning(text)
            }
            (Kind::Call, Some(call)) => {
                call.arguments.push_str(&text);
                Piece::Arguments(text)
            }
            (Kind::Content | Kind::Call, _) => {
                self.content.push_str(&text);
                Piece::Content(text)
            }
        }
    }
}
