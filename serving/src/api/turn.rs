//! A model's turn as it is generated: reasoning, text and calls, piece by piece.
//!
//! Every chat endpoint reads its tokens through here, streaming or not, so that both show the same.

use harmony::{Delta, Function, Harmony, Header, Parser, Role};
use phase1_loading::{TextStream, Tokenizer};
use phase2_forward::Logprobs;

use super::ledger::Ledger;

/// What a message of the turn is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Reasoning,
    /// Said to the user before a call.
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
            // What others say is made up; the user should not take it for an answer.
            _ => Kind::Reasoning,
        }
    }

    /// Whether its text is for the user.
    fn is_visible(&self) -> bool {
        matches!(self, Kind::Preamble | Kind::Final)
    }
}

/// A step of the turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// A message begins; the text that follows is its.
    Begin(Kind),
    /// More of the message that began last. Only visible text has entries.
    Text { text: String, entries: Vec<Entry> },
    /// The message that began last ends; `complete` if the model ended it.
    End { complete: bool },
}

/// A token of visible text with its log probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub token: u32,
    /// What it adds to the text: fewer bytes than the token has if a stop string cuts it.
    pub bytes: Vec<u8>,
    pub logprob: f32,
    pub top: Vec<(u32, f32)>,
}

/// Reads a turn token by token.
pub struct Turn<'a> {
    tokenizer: &'a Tokenizer,
    parser: Parser<'a>,
    /// Tokens that end generation beside harmony's own; they are never shown.
    stop_tokens: Vec<u32>,
    kind: Option<Kind>,
    /// Tells how much text each token stands for, whatever the parser holds back.
    lengths: TextStream,
    ledger: Ledger<Entry>,
    /// Tokens generated, all of them.
    pub tokens: usize,
    /// Those of reasoning.
    pub reasoning_tokens: usize,
}

impl<'a> Turn<'a> {
    /// `functions` are declared, `stops` end visible text.
    pub fn new(harmony: &Harmony<'a>, functions: &[Function], stops: &[String], stop_tokens: &[u32]) -> Turn<'a> {
        Turn {
            tokenizer: harmony.tokenizer(),
            parser: harmony.parser().with_functions(functions).with_stop_strings(stops.to_vec()),
            stop_tokens: stop_tokens.to_vec(),
            kind: None,
            lengths: TextStream::default(),
            ledger: Ledger::default(),
            tokens: 0,
            reasoning_tokens: 0,
        }
    }

    /// The stop string that ended visible text. Nothing more is read then.
    pub fn stopped_by(&self) -> Option<&str> {
        self.parser.stop_string()
    }

    /// Takes the next token.
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

    /// Remembers a token that may be shown. Those of a header may too: one that never becomes a header is shown as text.
    fn note(&mut self, token: u32, logprobs: Option<Logprobs>) {
        let bytes = self.lengths.push(self.tokenizer, token).len();
        if let Some(logprobs) = logprobs.filter(|_| self.kind.as_ref().is_none_or(Kind::is_visible)) {
            let token_bytes = self.tokenizer.token_bytes(token).unwrap_or_default().to_vec();
            let entry = Entry { token, bytes: token_bytes, logprob: logprobs.token, top: logprobs.top };
            self.ledger.push(entry, bytes);
        }
    }

    /// Ends the turn, in the middle of a message if generation did.
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
                    // What was a header after all is no text.
                    if !(says_text && kind.is_visible()) {
                        self.ledger.clear();
                    }
                    self.kind = Some(kind.clone());
                    pieces.push(Piece::Begin(kind));
                }
                Delta::Text(text) => {
                    let entries = self.ledger.show(text.len());
                    pieces.push(Piece::Text { text, entries });
                }
                Delta::End { complete } => {
                    let entries = match self.stopped_by() {
                        Some(_) => self.ledger.cut().map(cut_short).into_iter().collect(),
                        None => self.ledger.rest(),
                    };
                    if !entries.is_empty() {
                        pieces.push(Piece::Text { text: String::new(), entries });
                    }
                    self.ledger.clear();
                    self.kind = None;
                    pieces.push(Piece::End { complete });
                }
                Delta::Warning(_) => {}
            }
        }
        pieces
    }
}

/// The part of an entry that is shown.
fn cut_short((mut entry, bytes): (Entry, usize)) -> Entry {
    entry.bytes.truncate(bytes);
    entry
}

/// Whether a token stands for a control token and not for text.
pub fn is_control(tokenizer: &Tokenizer, token: u32) -> bool {
    let bytes = tokenizer.token_bytes(token).filter(|bytes| bytes.starts_with(b"<|") && bytes.ends_with(b"|>"));
    let name = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok());
    name.is_some_and(|name| tokenizer.control(name) == Some(token))
}

/// Whether harmony gives a control token a meaning.
fn is_structural(tokenizer: &Tokenizer, token: u32) -> bool {
    const NAMES: [&[u8]; 7] =
        [b"<|start|>", b"<|channel|>", b"<|constrain|>", b"<|message|>", b"<|end|>", b"<|return|>", b"<|call|>"];
    tokenizer.token_bytes(token).is_some_and(|bytes| NAMES.contains(&bytes))
}
