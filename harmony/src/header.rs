//! The header between `<|start|>` and `<|message|>`: author, recipient, channel and content type of a message.
//!
//! Well-formed headers are `AUTHOR to=RECIPIENT<|channel|>CHANNEL TYPE` and, with the recipient after the channel,
//! `AUTHOR<|channel|>CHANNEL to=RECIPIENT <|constrain|>TYPE`. Models also write mixtures of the two and malformed headers.

use crate::control::Control;
use crate::message::{Message, Role};

/// The header of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub role: Role,
    /// Name of a tool or a person.
    pub name: Option<String>,
    /// The recipient; `None` if there is none, or if the assistant's message is to `user`, `all` or itself.
    pub recipient: Option<String>,
    pub channel: Option<String>,
    /// A leading `<|constrain|>` stands for the control token.
    pub content_type: Option<String>,
}

impl Header {
    /// The header that is assumed for text of the assistant without a header.
    pub(crate) const BARE: Header =
        Header { role: Role::Assistant, name: None, recipient: None, channel: None, content_type: None };

    /// An empty message with this header.
    pub(crate) fn message(&self) -> Message {
        let Header { role, name, recipient, channel, content_type } = self.clone();
        Message { role, name, recipient, channel, content_type, content: String::new() }
    }
}

const CHANNELS: [&str; 3] = ["analysis", "commentary", "final"];
const CONTENT_TYPES: [&str; 2] = ["json", "code"];

/// How a header began.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum HeaderStart {
    /// `<|start|>` and the role precede the first token.
    Given,
    /// With `<|start|>`; the role follows.
    Start,
    /// A message ended and no `<|start|>` followed: the role is missing.
    Missing,
}

/// The text of a header, split at its control tokens, as it arrives.
pub(crate) struct HeaderText {
    start: HeaderStart,
    /// Text before the first `<|channel|>` or `<|constrain|>`.
    author: String,
    /// Text after each `<|channel|>` and `<|constrain|>`.
    parts: Vec<(Control, String)>,
}

/// The most likely meaning of a header.
pub(crate) struct ParsedHeader {
    pub header: Header,
    /// Whether the header was malformed.
    pub odd: bool,
}

impl HeaderText {
    pub fn new(start: HeaderStart) -> HeaderText {
        HeaderText { start, author: String::new(), parts: Vec::new() }
    }

    pub fn push(&mut self, text: &str) {
        match self.parts.last_mut() {
            Some((_, part)) => part.push_str(text),
            None => self.author.push_str(text),
        }
    }

    /// Begins a part after `<|channel|>` or `<|constrain|>`.
    pub fn divide(&mut self, control: Control) {
        self.parts.push((control, String::new()));
    }

    /// Whether the header has no text or parts yet.
    pub fn is_empty(&self) -> bool {
        self.author.is_empty() && self.parts.is_empty()
    }

    /// Whether the header begins with `<|start|>`, in the stream or in the prompt.
    pub fn has_start(&self) -> bool {
        self.start != HeaderStart::Missing
    }

    /// Whether the stream has no `<|start|>` for this header, and only white space so far.
    pub fn is_blank_between_messages(&self) -> bool {
        self.start != HeaderStart::Start && self.parts.is_empty() && self.author.trim().is_empty()
    }

    /// Whether the text is content instead of a header: it has no `<|start|>` in the stream, and has words that occur in no header.
    pub fn is_bare_content(&self) -> bool {
        self.start != HeaderStart::Start && self.parts.is_empty() && !may_begin_header(&self.author)
    }

    /// The header as the model wrote it.
    pub fn raw(&self) -> String {
        let parts = self.parts.iter().map(|(control, text)| format!("{}{text}", control.name()));
        self.author.clone() + &parts.collect::<String>()
    }

    /// Interprets the header. `declared` are names of functions, used to add a missing `functions.` to a recipient, and to separate a name
    /// from a `json` that was joined to it.
    pub fn read(&self, declared: &[String]) -> ParsedHeader {
        let mut reader = Reader { odd: self.start == HeaderStart::Missing, ..Reader::default() };
        reader.author(&self.author, self.start);
        for (control, text) in &self.parts {
            match control {
                Control::Channel => reader.channel(text),
                _ => reader.constrained(text),
            }
        }
        reader.finish(declared)
    }

    /// The content in a header that has no `<|message|>`, and the header to assume for it. `has_ended` tells whether a token that ends a
    /// message or turn followed; otherwise the last word may be incomplete.
    pub fn content(&self, has_ended: bool) -> Option<(Header, String)> {
        let (channel, text) = match self.parts.last() {
            None => (None, self.after_role()),
            Some((Control::Channel, text)) => match split_word(text) {
                (word, rest) if CHANNELS.contains(&word) => (Some(word.to_owned()), rest),
                (_, rest) if rest.trim().is_empty() => return None,
                _ => (None, text.as_str()),
            },
            Some(_) => return None,
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let is_header = match words[..] {
            [] => true,
            [word] if !self.parts.is_empty() => CONTENT_TYPES.contains(&word),
            [_] => !has_ended,
            _ => !has_ended && self.parts.is_empty() && may_begin_header(text),
        };
        if is_header || words.iter().any(|word| word.starts_with("to=")) {
            return None;
        }
        let role = self.role().unwrap_or(Role::Assistant);
        Some((Header { role, channel, ..Header::BARE }, text.to_owned()))
    }

    /// The role, if the model wrote one. Here, an unknown word is not read as the name of a tool.
    fn role(&self) -> Option<Role> {
        let is_written = self.start == HeaderStart::Start;
        let role = is_written.then(|| author(split_word(&self.author).0).0);
        role.filter(|&role| role != Role::Tool)
    }

    /// The text after the role, or the whole text.
    fn after_role(&self) -> &str {
        match self.role() {
            Some(_) => split_word(&self.author).1,
            None => &self.author,
        }
    }
}

/// Whether words after `<|start|>assistant` can still become a header.
fn may_begin_header(text: &str) -> bool {
    let is_whole = text.ends_with(char::is_whitespace);
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let mut known = CHANNELS.iter().chain(&CONTENT_TYPES).chain(&["assistant", "to="]);
        let fits = match is_whole || words.peek().is_some() {
            true => known.any(|&known| known == word),
            false => known.any(|known| known.starts_with(word)),
        };
        if !fits && !word.starts_with("to=") {
            return false;
        }
    }
    true
}

/// The first word of a text, and the rest.
fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()))
}

/// Reads a role, with the name of a person after `:`; any other word is the name of a tool.
fn author(word: &str) -> (Role, Option<String>) {
    let (name, person) = match word.split_once(':') {
        Some((role, person)) => (role, Some(person.to_owned())),
        None => (word, None),
    };
    match Role::ALL.into_iter().find(|role| role.name() == name) {
        Some(role) => (role, person),
        None => (Role::Tool, Some(word.to_owned())),
    }
}

/// The fields of a header while it is interpreted.
#[derive(Default)]
struct Reader {
    author: Option<(Role, Option<String>)>,
    recipient: Option<String>,
    channel: Option<String>,
    channel_is_known: bool,
    content_type: Option<String>,
    odd: bool,
}

impl Reader {
    /// Extracts recipients from a part and returns the other words.
    fn words<'t>(&mut self, text: &'t str) -> Vec<&'t str> {
        let mut others = Vec::new();
        let mut words = text.split_whitespace();
        while let Some(word) = words.next() {
            match word.strip_prefix("to=") {
                Some("") => {
                    self.odd = true;
                    if let Some(name) = words.next() {
                        self.recipient(name);
                    }
                }
                Some(name) => self.recipient(name),
                None => others.push(word),
            }
        }
        others
    }

    fn recipient(&mut self, name: &str) {
        self.odd |= self.recipient.is_some();
        self.recipient = Some(name.to_owned());
    }

    fn author(&mut self, text: &str, start: HeaderStart) {
        let words = self.words(text);
        let mut words = words.into_iter().peekable();
        if start == HeaderStart::Start {
            let role = words.next();
            self.odd |= role != Some(split_word(text).0);
            self.author = role.map(author);
        } else if words.next_if_eq(&"assistant").is_some() {
            self.odd = true;
        }
        for word in words {
            match CHANNELS.contains(&word) {
                true => {
                    self.odd = true;
                    self.set_channel(word, true);
                }
                false => self.plain_kind(word),
            }
        }
    }

    /// `CHANNEL TYPE`. If no word is a known channel, the first one is: the channel whose name it contains, or else an unknown channel.
    fn channel(&mut self, text: &str) {
        let words = self.words(text);
        self.odd |= self.channel.is_some();
        let known = words.iter().position(|word| CHANNELS.contains(word));
        let Some(&first) = words.first() else {
            self.odd = true;
            return;
        };
        let at = known.unwrap_or(0);
        let contained = CHANNELS.into_iter().filter_map(|channel| Some((first.to_lowercase().find(channel)?, channel)));
        match (known, contained.min()) {
            (Some(at), _) => self.set_channel(words[at], true),
            (None, Some((_, channel))) => self.set_channel(channel, true),
            (None, None) => self.set_channel(first, false),
        }
        self.odd |= known != Some(0);
        for (_, word) in words.iter().enumerate().filter(|(index, _)| *index != at) {
            self.plain_kind(word);
        }
    }

    /// If there are several channels, the last known one wins.
    fn set_channel(&mut self, channel: &str, is_known: bool) {
        if is_known || !self.channel_is_known {
            self.channel = Some(channel.to_owned());
            self.channel_is_known = is_known;
        }
    }

    /// The content type after `<|constrain|>`.
    fn constrained(&mut self, text: &str) {
        let words = self.words(text);
        self.odd |= words.is_empty();
        for (index, word) in words.into_iter().enumerate() {
            match index {
                0 => self.kind(format!("{}{word}", Control::Constrain.name())),
                _ => self.odd = true,
            }
        }
    }

    /// A content type without `<|constrain|>`. Unusual words are accepted, but make the header odd.
    fn plain_kind(&mut self, word: &str) {
        self.odd |= !CONTENT_TYPES.contains(&word);
        self.kind(word.to_owned());
    }

    fn kind(&mut self, kind: String) {
        match self.content_type {
            Some(_) => self.odd = true,
            None => self.content_type = Some(kind),
        }
    }

    fn finish(mut self, declared: &[String]) -> ParsedHeader {
        let (role, name) = self.author.take().unwrap_or((Role::Assistant, None));
        if role == Role::Assistant {
            self.odd |= self.channel.is_none();
            self.repair_recipient(declared);
        }
        let Reader { recipient, channel, content_type, odd, .. } = self;
        ParsedHeader { header: Header { role, name, recipient, channel, content_type }, odd }
    }

    fn repair_recipient(&mut self, declared: &[String]) {
        let Some(recipient) = &self.recipient else { return };
        let is_declared = |name: &str| declared.iter().any(|declared| declared == name);
        let prefixed = |name: &str| format!("functions.{name}");
        // The assistant's messages to itself, to the user or to all are not calls.
        if matches!(recipient.as_str(), "assistant" | "user" | "all") {
            self.odd |= recipient != "all";
            self.recipient = None;
            return;
        }
        let name = recipient.strip_prefix("functions.").unwrap_or(recipient);
        // Separates a content type that was joined to the name.
        if self.content_type.is_none() && !is_declared(name) {
            let cut = name.strip_suffix("json").filter(|cut| is_declared(cut));
            if let Some(cut) = cut {
                self.recipient = Some(prefixed(cut));
                self.content_type = Some("json".into());
                self.odd = true;
                return;
            }
        }
        if name == recipient && is_declared(name) {
            self.recipient = Some(prefixed(name));
            self.odd = true;
            return;
        }
        self.odd |= name != recipient && self.channel.as_deref() != Some("commentary");
    }
}
