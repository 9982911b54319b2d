//! Random turns of the assistant, in the forms that models write: compares what the crates `harmony` and `openai-harmony` parse.

use std::collections::BTreeSet;

use harmony::{Function, Message, Role};
use openai_harmony::chat::{self, Author, Content};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::Pair;
use crate::text::{maybe, name, one_of, text};

/// A random message of the assistant.
pub fn assistant_message(rng: &mut ChaCha8Rng) -> Message {
    if rng.random_bool(0.35) {
        return call(rng);
    }
    let channel = one_of(rng, &["analysis", "commentary", "final"]);
    let content_type = maybe(rng, 0.1, |rng| one_of(rng, &["json", "code", "<|constrain|>json"]).to_owned());
    Message { content_type, ..Message::assistant(channel, text(rng)) }
}

/// A call of a function or of a built-in tool.
pub fn call(rng: &mut ChaCha8Rng) -> Message {
    let content_type = maybe(rng, 0.8, |rng| one_of(rng, &["json", "code", "<|constrain|>json"]).to_owned());
    let recipient = match rng.random_range(0..10) {
        0 => "python".into(),
        1 => "browser.search".into(),
        2 => name(rng),
        _ => format!("functions.{}", name(rng)),
    };
    let channel = one_of(rng, &["commentary", "commentary", "commentary", "analysis"]);
    Message { recipient: Some(recipient), content_type, ..Message::assistant(channel, text(rng)) }
}

/// Returns the number of tokens that both parsed.
pub fn check(pair: &Pair<'_>, rng: &mut ChaCha8Rng) -> Result<usize, String> {
    let turn = turn(pair, rng);
    let mut parser = pair.ours.parser().with_functions(&turn.functions);
    for &token in &turn.tokens {
        parser.push(token);
    }
    parser.finish();
    let shown = pair.ours.tokenizer().decode(&turn.tokens);
    same_messages("our reading", parser.messages(), &turn.meant).map_err(|error| format!("{shown:?}: {error}"))?;

    let role = Some(chat::Role::Assistant);
    let theirs = pair.theirs.parse_messages_from_completion_tokens(turn.tokens.iter().copied(), role);
    let theirs: Vec<Message> = match theirs {
        Ok(messages) => messages.iter().map(from_openai).collect(),
        Err(error) => return Err(format!("{shown:?}: openai-harmony refuses it: {error:#}")),
    };
    same_messages("openai-harmony's parse", &theirs, &turn.read_by_openai)
        .map_err(|error| format!("{shown:?}: {error}"))?;
    Ok(turn.tokens.len())
}

/// Returns an error that shows the first message in which two lists differ.
pub fn same_messages(what: &str, read: &[Message], expected: &[Message]) -> Result<(), String> {
    if read == expected {
        return Ok(());
    }
    let same = read.iter().zip(expected).take_while(|(read, expected)| read == expected).count();
    Err(format!("{what} differs in message {same}\nread:     {:?}\nexpected: {:?}", read.get(same), expected.get(same)))
}

struct Turn {
    tokens: Vec<u32>,
    /// Declared functions.
    functions: Vec<Function>,
    meant: Vec<Message>,
    /// The messages that OpenAI's crate is expected to parse: where it is known to be wrong its result, otherwise the intended messages.
    read_by_openai: Vec<Message>,
}

fn turn(pair: &Pair<'_>, rng: &mut ChaCha8Rng) -> Turn {
    let count = rng.random_range(1..5);
    let mut turn = Turn { tokens: Vec::new(), functions: Vec::new(), meant: Vec::new(), read_by_openai: Vec::new() };
    let mut declared = BTreeSet::new();
    for index in 0..count {
        // A turn begins after `<|start|>assistant`. Results of its calls may be part of it.
        let message = match index > 0 && rng.random_bool(0.1) {
            true => Message::result_of(&call(rng), text(rng)),
            false => assistant_message(rng),
        };
        let form = form(&message, rng);
        if let Some(function) = message.function().filter(|_| form != Form::Usual || rng.random()) {
            declared.insert(function.to_owned());
        }
        if index > 0 {
            control(pair, "<|start|>", &mut turn.tokens);
            let author = message.name.as_deref().unwrap_or(message.role.name());
            turn.tokens.extend(pair.ours.tokenizer().encode(author));
        }
        header(pair, &message, form, rng, &mut turn.tokens);
        content(pair, &message.content, rng, &mut turn.tokens);
        let is_last = index + 1 == count;
        match message.is_call() {
            // The turn may be truncated.
            _ if is_last && rng.random_bool(0.1) => {}
            true => control(pair, "<|call|>", &mut turn.tokens),
            false => control(pair, if is_last { "<|return|>" } else { "<|end|>" }, &mut turn.tokens),
        }
        turn.read_by_openai.push(form.read_by_openai(&message));
        turn.meant.push(message);
    }
    let function = |name: String| Function { name, description: None, parameters: None };
    turn.functions = declared.into_iter().map(function).collect();
    turn
}

/// How a header is written.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Usual,
    /// A content type without a recipient, which OpenAI's crate takes for a recipient.
    KindAlone,
    /// `functions.fjson`: the content type is joined to the name.
    RunIn,
    /// `f`: without the prefix `functions.`.
    Bare,
}

fn form(message: &Message, rng: &mut ChaCha8Rng) -> Form {
    if message.recipient.is_none() && message.content_type.is_some() {
        return Form::KindAlone;
    }
    match message.function() {
        Some(_) if message.content_type.as_deref() == Some("json") && rng.random_bool(0.1) => Form::RunIn,
        Some(_) if rng.random_bool(0.1) => Form::Bare,
        _ => Form::Usual,
    }
}

impl Form {
    fn recipient(self, message: &Message) -> Option<String> {
        match (self, message.function(), &message.recipient) {
            (Form::RunIn, _, Some(recipient)) => Some(format!("{recipient}json")),
            (Form::Bare, Some(function), _) => Some(function.to_owned()),
            (_, _, recipient) => recipient.clone(),
        }
    }

    fn kind(self, message: &Message) -> Option<String> {
        message.content_type.clone().filter(|_| self != Form::RunIn)
    }

    fn read_by_openai(self, message: &Message) -> Message {
        let (recipient, content_type) = match self {
            Form::KindAlone => (message.content_type.clone(), None),
            _ => (self.recipient(message), self.kind(message)),
        };
        Message { recipient, content_type, ..message.clone() }
    }
}

/// The header from after the author to `<|message|>`, with the recipient before or after the channel.
fn header(pair: &Pair<'_>, message: &Message, form: Form, rng: &mut ChaCha8Rng, tokens: &mut Vec<u32>) {
    let encode = |text: &str| pair.ours.tokenizer().encode(text);
    let recipient = form.recipient(message).map(|recipient| format!(" to={recipient}"));
    let is_in_front = message.role == Role::Tool || rng.random();
    if let Some(recipient) = recipient.as_deref().filter(|_| is_in_front) {
        tokens.extend(encode(recipient));
    }
    if let Some(channel) = &message.channel {
        control(pair, "<|channel|>", tokens);
        tokens.extend(encode(channel));
    }
    if let Some(recipient) = recipient.as_deref().filter(|_| !is_in_front) {
        tokens.extend(encode(recipient));
    }
    if let Some(kind) = form.kind(message) {
        match kind.strip_prefix("<|constrain|>") {
            Some(constrained) => {
                // Models sometimes omit the space.
                tokens.extend(encode(if rng.random() { " " } else { "" }));
                control(pair, "<|constrain|>", tokens);
                tokens.extend(encode(constrained));
            }
            None => tokens.extend(encode(&format!(" {kind}"))),
        }
    }
    control(pair, "<|message|>", tokens);
}

/// The tokens of a text: the tokenizer's, or split at random places, even inside characters.
fn content(pair: &Pair<'_>, text: &str, rng: &mut ChaCha8Rng, tokens: &mut Vec<u32>) {
    let tokenizer = pair.ours.tokenizer();
    let usual = tokenizer.encode(text);
    if rng.random() {
        tokens.extend(usual);
        return;
    }
    for token in usual {
        match rng.random_bool(0.3) {
            true => tokens.extend(tokenizer.token_bytes(token).expect("a token").iter().map(|&byte| pair.byte(byte))),
            false => tokens.push(token),
        }
    }
}

fn control(pair: &Pair<'_>, name: &str, tokens: &mut Vec<u32>) {
    tokens.push(pair.ours.tokenizer().control(name).expect("a control token"));
}

pub fn to_openai(message: &Message) -> chat::Message {
    let role = match message.role {
        Role::System => chat::Role::System,
        Role::Developer => chat::Role::Developer,
        Role::User => chat::Role::User,
        Role::Assistant => chat::Role::Assistant,
        Role::Tool => chat::Role::Tool,
    };
    chat::Message {
        recipient: message.recipient.clone(),
        channel: message.channel.clone(),
        content_type: message.content_type.clone(),
        ..chat::Message::from_author_and_content(Author { role, name: message.name.clone() }, message.content.as_str())
    }
}

pub fn from_openai(message: &chat::Message) -> Message {
    let role = match message.author.role {
        chat::Role::System => Role::System,
        chat::Role::Developer => Role::Developer,
        chat::Role::User => Role::User,
        chat::Role::Assistant => Role::Assistant,
        chat::Role::Tool => Role::Tool,
    };
    let text = |content: &Content| match content {
        Content::Text(text) => text.text.clone(),
        other => format!("{other:?}"),
    };
    Message {
        role,
        name: message.author.name.clone(),
        recipient: message.recipient.clone(),
        channel: message.channel.clone(),
        content_type: message.content_type.clone(),
        content: message.content.iter().map(text).collect(),
    }
}
