//! Reads a model's turn as it is generated: reasoning, text and calls.
//!
//! All chat endpoints use this module for streamed and for whole answers, so that both have the same content.

use harmony::{Delta, Function, Harmony, Header, Parser, Role};
use phase1_loading::{TextStream, Tokenizer};
use phase2_forward::Logprobs;

use super::pending_tokens::PendingTokens;

/// The purpose of a message of the turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Reasoning,
    /// Text to the user before a call.
    Preamble,
    Final,
    Call {
        name: String,
    },
}

impl Kind {
    fn of(header: &Header) -> Kind {
        match (header.role, &header.recipient, header.channel.as_deref()) {
            (Role::Assistant, Some(recipient), _) => {
                Kind::Call { name: recipient.strip_prefix("functions.").unwrap_or(recipient).into() }
            }
            (Role::Assistant, None, Some("commentary")) => Kind::Preamble,
            (Role::Assistant, None, channel) if channel != Some("analysis") => Kind::Final,
            // A message of another author is invented by the model, and must not be shown as the answer.
            _ => Kind::Reasoning,
        }
    }

    /// Whether the text of such a message is visible to the user.
    fn is_visible(&self) -> bool {
        matches!(self, Kind::Preamble | Kind::Final)
    }
}

/// A change of the turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// A message begins; the text that follows belongs to it.
    Begin(Kind),
    /// More text of the current message. Only visible text has entries.
    Text { text: String, entries: Vec<Entry> },
    /// The current message ends; `complete` if the model ended it.
    End { complete: bool },
}

/// A token of visible text with its log probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub token: u32,
    /// The bytes that the token adds to the text: fewer than the token's if a stop string cuts it.
    pub bytes: Vec<u8>,
    pub logprob: f32,
    pub top: Vec<(u32, f32)>,
}

/// Reads a turn token by token.
pub struct Turn<'a> {
    tokenizer: &'a Tokenizer,
    parser: Parser<'a>,
    /// Tokens other than harmony's that end generation; they are never shown.
    stop_tokens: Vec<u32>,
    kind: Option<Kind>,
    /// Gives the length of each token's text, including text that the parser still holds back.
    lengths: TextStream,
    pending: PendingTokens<Entry>,
    /// Number of generated tokens.
    pub tokens: usize,
    /// Number of reasoning tokens.
    pub reasoning_tokens: usize,
}

impl<'a> Turn<'a> {
    /// `functions` are the declared functions; `stops` end visible text.
    pub fn new(harmony: &Harmony<'a>, functions: &[Function], stops: &[String], stop_tokens: &[u32]) -> Turn<'a> {
        Turn {
            tokenizer: harmony.tokenizer(),
            parser: harmony.parser().with_functions(functions).with_stop_strings(stops.to_vec()),
            stop_tokens: stop_tokens.to_vec(),
            kind: None,
            lengths: TextStream::default(),
            pending: PendingTokens::default(),
            tokens: 0,
            reasoning_tokens: 0,
        }
    }

    /// The stop string that ended visible text. Later tokens are ignored.
    pub fn stopped_by(&self) -> Option<&str> {
        self.parser.stop_string()
    }

    /// Processes the next token.
    pub fn push(&mut self, token: u32, logprobs: Option<Logprobs>) -> Vec<Piece> {
        self.tokens += 1;
        if self.kind == Some(Kind::Reasoning) {
            self.reasoning_tokens += 1;
        }
        let control = is_control(self.tokenizer, token);
        let hidden = (control && !is_structural(self.tokenizer, token)) || self.stop_tokens.contains(&token);
        if hidden || self.stopped_by().is_some() {
            return Vec::new();
        }
        if control {
            self.lengths = TextStream::default();
        } else {
            self.note(token, logprobs);
        }
        let deltas = self.parser.push(token);
        self.read(deltas)
    }

    /// Stores a token that may be shown. This includes tokens of a header, because an invalid header is shown as text.
    fn note(&mut self, token: u32, logprobs: Option<Logprobs>) {
        let bytes = self.lengths.push(self.tokenizer, token).len();
        if let Some(logprobs) = logprobs.filter(|_| self.kind.as_ref().is_none_or(Kind::is_visible)) {
            let token_bytes = self.tokenizer.token_bytes(token).unwrap_or_default().to_vec();
            let entry = Entry { token, bytes: token_bytes, logprob: logprobs.token, top: logprobs.top };
            self.pending.push(entry, bytes);
        }
    }

    /// Ends the turn, possibly inside a message.
    pub fn finish(&mut self) -> Vec<Piece> {
        let deltas = self.parser.finish();
        self.read(deltas)
    }

    fn read(&mut self, deltas: Vec<Delta>) -> Vec<Piece> {
        let says_text = deltas.iter().any(|delta| matches!(delta, Delta::Text(_)));
        let mut pieces = Vec::new();
        for delta in deltas {
            match delta {
                Delta::Begin(header) => {
                    let kind = Kind::of(&header);
                    // Tokens that turned out to be a header are not text.
                    if !(says_text && kind.is_visible()) {
                        self.pending.clear();
                    }
                    self.kind = Some(kind.clone());
                    pieces.push(Piece::Begin(kind));
                }
                Delta::Text(text) => {
                    let entries = self.pending.show(text.len());
                    pieces.push(Piece::Text { text, entries });
                }
                Delta::End { complete } => {
                    let entries = match self.stopped_by() {
                        Some(_) => self.pending.cut().map(cut_short).into_iter().collect(),
                        None => self.pending.rest(),
                    };
                    if !entries.is_empty() {
                        pieces.push(Piece::Text { text: String::new(), entries });
                    }
                    self.pending.clear();
                    self.kind = None;
                    pieces.push(Piece::End { complete });
                }
                Delta::Warning(_) => {}
            }
        }
        pieces
    }
}

/// The shown part of an entry.
fn cut_short((mut entry, bytes): (Entry, usize)) -> Entry {
    entry.bytes.truncate(bytes);
    entry
}

/// Whether a token is a control token.
pub fn is_control(tokenizer: &Tokenizer, token: u32) -> bool {
    let bytes = tokenizer.token_bytes(token).filter(|bytes| bytes.starts_with(b"<|") && bytes.ends_with(b"|>"));
    let name = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok());
    name.is_some_and(|name| tokenizer.control(name) == Some(token))
}

/// Whether a token is one of the control tokens that structure harmony's messages.
fn is_structural(tokenizer: &Tokenizer, token: u32) -> bool {
    const NAMES: [&[u8]; 7] =
        [b"<|start|>", b"<|channel|>", b"<|constrain|>", b"<|message|>", b"<|end|>", b"<|return|>", b"<|call|>"];
    tokenizer.token_bytes(token).is_some_and(|bytes| NAMES.contains(&bytes))
}
