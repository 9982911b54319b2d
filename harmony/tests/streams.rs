//! Random streams of tokens: well-formed streams are parsed back to their messages, and no text of malformed streams is lost.

mod common;

use std::sync::OnceLock;

use common::tokenizer;
use harmony::{Delta, Harmony, Message, Parser, Role};
use phase1_loading::Tokenizer;
use proptest::prelude::*;

fn shared() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(tokenizer)
}

fn harmony() -> Harmony<'static> {
    Harmony::new(shared()).expect("harmony's control tokens")
}

/// Control tokens that structure a conversation.
fn control() -> Vec<u32> {
    let names = ["start", "channel", "constrain", "message", "end", "return", "call", "endoftext"];
    names.iter().map(|name| shared().control(&format!("<|{name}|>")).expect("a control token")).collect()
}

/// The same text in tokens of one byte, so that most non-ASCII characters are split.
fn bytewise(tokens: &[u32]) -> Vec<u32> {
    static BYTES: OnceLock<Vec<u32>> = OnceLock::new();
    let of_byte = BYTES.get_or_init(|| {
        let is_single = |token: u32, byte: u8| shared().token_bytes(token).is_some_and(|bytes| bytes == [byte]);
        let single = |byte: u8| (0..shared().vocab() as u32).find(|&token| is_single(token, byte));
        (0..=255).map(|byte| single(byte).expect("every byte is a token")).collect()
    });
    let control = control();
    let split = |&token: &u32| match control.contains(&token) {
        true => vec![token],
        false => {
            let bytes = shared().token_bytes(token).expect("a token");
            bytes.iter().map(|&byte| of_byte[usize::from(byte)]).collect()
        }
    };
    tokens.iter().flat_map(split).collect()
}

const TEXT: &str = "[ a-zé👋<|>:={}\"\n]{0,12}";

/// A random message of the assistant.
fn assistant_message() -> impl Strategy<Value = Message> {
    let plain = (prop::sample::select(vec!["analysis", "commentary", "final"]), TEXT)
        .prop_map(|(channel, text)| Message::assistant(channel, text));
    let kinds = [None, Some("json"), Some("code"), Some("<|constrain|>json")];
    let call = ("[a-z_]{1,6}(json)?", TEXT, prop::sample::select(kinds.to_vec())).prop_map(|(function, text, kind)| {
        Message { content_type: kind.map(str::to_owned), ..Message::call(&function, text) }
    });
    let tools = vec!["python", "browser.search"];
    let built_in = (prop::sample::select(tools), TEXT).prop_map(|(tool, text)| Message {
        recipient: Some(tool.into()),
        content_type: Some("code".into()),
        ..Message::assistant("analysis", text)
    });
    prop_oneof![3 => plain, 1 => call, 1 => built_in]
}

/// A random message of a conversation.
fn any_message() -> impl Strategy<Value = Message> {
    let roles = vec![Role::System, Role::Developer, Role::User];
    let from_outside = (prop::sample::select(roles), TEXT, prop::option::of("[a-z]{1,5}"))
        .prop_map(|(role, text, name)| Message { name, ..Message::new(role, text) });
    let result = ("[a-z_]{1,6}(json)?", TEXT).prop_map(|(function, text)| Message::tool_result(&function, text));
    prop_oneof![3 => assistant_message(), 2 => from_outside, 1 => result]
}

/// What a model generates after `<|start|>assistant`.
fn turn(messages: &[Message]) -> Vec<u32> {
    let harmony = harmony();
    let mut tokens: Vec<u32> = messages.iter().flat_map(|message| harmony.render(message)).collect();
    if messages.last().is_some_and(|message| !message.is_call()) {
        tokens.pop();
        tokens.extend(shared().control("<|return|>"));
    }
    tokens.split_off(harmony.generation_prompt().len())
}

/// Joins deltas to messages, and asserts that each message begins and ends.
fn collect_messages(deltas: &[Delta]) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    let mut is_open = false;
    for delta in deltas {
        match delta {
            Delta::Begin(header) => {
                assert!(!std::mem::replace(&mut is_open, true), "a message begins inside another");
                let harmony::Header { role, name, recipient, channel, content_type } = header.clone();
                messages.push(Message { role, name, recipient, channel, content_type, content: String::new() });
            }
            Delta::Text(text) => {
                assert!(is_open && !text.is_empty(), "text outside of a message");
                messages.last_mut().expect("a message has begun").content += text;
            }
            Delta::End { .. } => assert!(std::mem::replace(&mut is_open, false), "a message ends that has not begun"),
            Delta::Warning(_) => {}
        }
    }
    assert!(!is_open, "the last message does not end");
    messages
}

fn count(text: &str) -> usize {
    text.matches('q').count()
}

/// The number of `q` in the last message.
fn count_in_last(parser: &Parser<'_>) -> usize {
    parser.messages().last().map_or(0, |message| count(&message.content))
}

/// Pushes all tokens. Asserts that each `q` in the body of a message is in that message immediately.
fn push_all(parser: &mut Parser<'_>, tokens: &[u32]) -> Vec<Delta> {
    let control = control();
    let mut deltas = Vec::new();
    for &token in tokens {
        let (open, before) = (parser.open_header().cloned(), count_in_last(parser));
        deltas.extend(parser.push(token));
        if open.is_some() && !control.contains(&token) {
            assert_eq!(parser.open_header(), open.as_ref());
            assert_eq!(count_in_last(parser), before + count(&shared().decode(&[token])));
        }
    }
    deltas.extend(parser.finish());
    deltas
}

/// A change of a stream. Positions are taken modulo the length of the stream.
#[derive(Clone, Debug)]
enum Mutation {
    Remove(usize),
    Repeat(usize),
    Swap(usize),
    Insert(usize, Vec<u32>),
    Cut(usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let words = vec![
        "q",
        " qq q",
        "assistant",
        "analysis",
        "final",
        "commentary",
        " to=functions.q",
        "to=",
        " json",
        "json",
        "user",
        "functions.q to=assistant",
        "é",
        "\n",
        "?",
    ];
    let word = prop::sample::select(words).prop_map(|word| shared().encode(word));
    let structure = prop::sample::select(control()).prop_map(|token| vec![token]);
    let half = Just(vec![bytewise(&shared().encode("é"))[0]]);
    let any = any::<usize>;
    prop_oneof![
        any().prop_map(Mutation::Remove),
        any().prop_map(Mutation::Repeat),
        any().prop_map(Mutation::Swap),
        (any(), prop_oneof![2 => word, 2 => structure, 1 => half])
            .prop_map(|(at, tokens)| Mutation::Insert(at, tokens)),
        any().prop_map(Mutation::Cut),
    ]
}

impl Mutation {
    fn apply(self, tokens: &mut Vec<u32>) {
        let length = tokens.len();
        match self {
            Mutation::Insert(at, new) => _ = tokens.splice(at % (length + 1)..at % (length + 1), new),
            _ if length < 2 => {}
            Mutation::Remove(at) => _ = tokens.remove(at % length),
            Mutation::Repeat(at) => tokens.insert(at % length, tokens[at % length]),
            Mutation::Swap(at) => tokens.swap(at % (length - 1), at % (length - 1) + 1),
            // Removes at most an eighth of the tokens.
            Mutation::Cut(at) => tokens.truncate(length - (at % length) / 8),
        }
    }
}

proptest! {
    /// A rendered turn is parsed back to its messages, also if characters are split between tokens.
    #[test]
    fn rendered_turns_parse_to_their_messages(messages in prop::collection::vec(assistant_message(), 1..5)) {
        for tokens in [turn(&messages), bytewise(&turn(&messages))] {
            let mut parser = harmony().parser();
            let deltas = push_all(&mut parser, &tokens);
            // A turn ends with its first call, so messages after a call give a warning.
            let calls = messages[..messages.len() - 1].iter().filter(|message| message.is_call()).count();
            prop_assert_eq!(parser.warnings().len(), calls.min(1), "{:?}", parser.warnings());
            prop_assert_eq!(parser.messages(), &messages);
            prop_assert_eq!(&collect_messages(&deltas), &messages);
            prop_assert!(parser.has_ended());
        }
    }

    #[test]
    fn rendered_conversations_parse_to_their_messages(messages in prop::collection::vec(any_message(), 1..8)) {
        let harmony = harmony();
        let tokens: Vec<u32> = messages.iter().flat_map(|message| harmony.render(message)).collect();
        prop_assert_eq!(harmony.parse_conversation(&tokens), Ok(messages.clone()));
        prop_assert_eq!(harmony.parse_conversation(&bytewise(&tokens)), Ok(messages.clone()));
        // The prompt leaves out the analysis messages before the last final answer, and nothing else.
        let is_final = |message: &Message| message.role == Role::Assistant && message.channel.as_deref() == Some("final");
        let last = messages.iter().rposition(is_final);
        let mut kept = messages.clone();
        let mut index = 0;
        kept.retain(|message| {
            index += 1;
            message.channel.as_deref() != Some("analysis") || Some(index - 1) > last
        });
        prop_assert_eq!(harmony.parse_conversation(&harmony.render_prompt(&messages)), Ok(kept));
    }

    /// Every `q` of a malformed turn is in a message, in its header or in a warning; a `q` in a body stays in that body.
    #[test]
    fn malformed_turns_keep_all_text(
        messages in prop::collection::vec(assistant_message(), 0..4),
        mutations in prop::collection::vec(mutation(), 0..8),
        halves in any::<bool>(),
    ) {
        let mut tokens = if messages.is_empty() { Vec::new() } else { turn(&messages) };
        if halves {
            tokens = bytewise(&tokens);
        }
        for mutation in mutations {
            mutation.apply(&mut tokens);
        }
        let mut parser = harmony().parser();
        let deltas = push_all(&mut parser, &tokens);
        prop_assert_eq!(collect_messages(&deltas), parser.messages());
        let kept = parser.messages().iter().map(|message| {
            let fields = [&message.name, &message.recipient, &message.channel, &message.content_type];
            count(&message.content) + fields.into_iter().flatten().map(|field| count(field)).sum::<usize>()
        });
        let kept = kept.sum::<usize>() + parser.warnings().iter().map(|warning| count(warning)).sum::<usize>();
        prop_assert!(kept >= count(&shared().decode(&tokens)), "{:?} {:?}", parser.messages(), parser.warnings());
        prop_assert!(parser.finish().is_empty());
    }

    /// A stop string ends a turn at the same place however its text is cut into tokens.
    #[test]
    fn stop_position_does_not_depend_on_tokenization(
        messages in prop::collection::vec(assistant_message(), 1..4),
        stop in prop::collection::vec("[a-z ]{1,2}", 1..3),
    ) {
        let outcome = |tokens: &[u32]| {
            let mut parser = harmony().parser().with_stop_strings(stop.clone());
            for &token in tokens {
                parser.push(token);
            }
            parser.finish();
            (parser.messages().to_vec(), parser.stop_string().map(str::to_owned))
        };
        let tokens = turn(&messages);
        let (parsed, found) = outcome(&tokens);
        prop_assert_eq!(&outcome(&bytewise(&tokens)), &(parsed.clone(), found.clone()));
        for message in parsed.iter().filter(|message| message.is_visible()) {
            prop_assert!(!stop.iter().any(|stop| message.content.contains(stop)), "{:?}", message);
        }
        prop_assert_eq!(found.is_none(), parsed == messages);
    }

    /// Any tokens can be parsed as a turn. As a conversation they are parsed if they begin with `<|start|>`, otherwise refused.
    #[test]
    fn any_tokens_parse_or_are_refused(mut tokens in prop::collection::vec(0u32..3000, 0..60)) {
        let mut parser = harmony().parser();
        for &token in &tokens {
            parser.push(token);
        }
        parser.finish();
        let start = control()[0];
        prop_assert_eq!(harmony().parse_conversation(&tokens).is_ok(), tokens.first() == Some(&start));
        tokens.insert(0, start);
        prop_assert!(harmony().parse_conversation(&tokens).is_ok());
    }
}
