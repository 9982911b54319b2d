//! Turns as models write them: well-formed, unusual and malformed.

mod common;

use common::tokenizer;
use harmony::{Delta, Function, Harmony, Message, Parser, Role};

/// The declared functions.
const DECLARED: [&str; 3] = ["t", "get_json", "web.find"];

fn functions() -> Vec<Function> {
    let function = |name: &&str| Function { name: (*name).into(), description: None, parameters: None };
    DECLARED.iter().map(function).collect()
}

/// Parses a text with control tokens. Returns the deltas and the parser.
fn parse<'a>(harmony: &Harmony<'a>, text: &str) -> (Vec<Delta>, Parser<'a>) {
    let mut parser = harmony.parser().with_functions(&functions());
    let mut deltas = Vec::new();
    for token in harmony.tokenizer().encode_with_control(text) {
        deltas.extend(parser.push(token));
    }
    deltas.extend(parser.finish());
    (deltas, parser)
}

/// Each message on a line: role (empty for the assistant), `:` name, `>` recipient, `#` channel, `=` content type, `|` content; `…`
/// after an incomplete message.
fn lines(harmony: &Harmony<'_>, text: &str) -> Vec<String> {
    let (deltas, parser) = parse(harmony, text);
    let complete = deltas.iter().filter_map(|delta| match delta {
        Delta::End { complete } => Some(*complete),
        _ => None,
    });
    let line = |(message, complete): (&Message, bool)| {
        let Message { role, name, recipient, channel, content_type, content } = message;
        let role = if *role == Role::Assistant { "" } else { role.name() };
        let field =
            |mark: &str, field: &Option<String>| field.as_ref().map_or(String::new(), |text| format!("{mark}{text} "));
        let head =
            [role.to_owned(), field(":", name), field(">", recipient), field("#", channel), field("=", content_type)];
        format!("{}| {content}{}", head.concat(), if complete { "" } else { "…" })
    };
    parser.messages().iter().zip(complete).map(line).collect()
}

#[test]
fn well_formed_turns_parse_without_warnings() {
    let tokenizer = tokenizer();
    let harmony = Harmony::new(&tokenizer).expect("harmony's control tokens");
    for (text, expected) in [
        ("<|channel|>final<|message|>Four.<|return|>", vec!["#final | Four."]),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four.<|return|>",
            vec!["#analysis | Hm.", "#final | Four."],
        ),
        (
            "<|channel|>commentary to=functions.t <|constrain|>json<|message|>{}<|call|>",
            vec![">functions.t #commentary =<|constrain|>json | {}"],
        ),
        (" to=functions.t<|channel|>commentary json<|message|>{}<|call|>", vec![">functions.t #commentary =json | {}"]),
        (" to=functions.t<|channel|>commentary<|message|>{}<|call|>", vec![">functions.t #commentary | {}"]),
        (
            "<|channel|>commentary to=functions.t<|constrain|>json<|message|>{}<|call|>",
            vec![">functions.t #commentary =<|constrain|>json | {}"],
        ),
        // Function names may end in `json`.
        (
            " to=functions.get_json<|channel|>commentary json<|message|>{}<|call|>",
            vec![">functions.get_json #commentary =json | {}"],
        ),
        (
            "<|channel|>commentary to=functions.get_json<|message|>{}<|call|>",
            vec![">functions.get_json #commentary | {}"],
        ),
        (
            "<|channel|>commentary to=functions.parse_json json<|message|>{}<|call|>",
            vec![">functions.parse_json #commentary =json | {}"],
        ),
        // Built-in tools are not functions.
        (" to=python<|channel|>analysis code<|message|>print(1)<|call|>", vec![">python #analysis =code | print(1)"]),
        ("<|channel|>analysis to=browser.search<|message|>{}<|call|>", vec![">browser.search #analysis | {}"]),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", vec!["#final =<|constrain|>json | {}"]),
        // A preamble before a call.
        (
            "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary<|message|>I will look.<|end|>\
             <|start|>assistant to=functions.t<|channel|>commentary json<|message|>{}<|call|>",
            vec!["#analysis | Look.", "#commentary | I will look.", ">functions.t #commentary =json | {}"],
        ),
        (
            "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|><|return|>",
            vec!["#analysis | ", "#final | "],
        ),
    ] {
        assert_eq!(lines(&harmony, text), expected, "{text}");
        let (_, parser) = parse(&harmony, text);
        assert_eq!(parser.warnings(), [] as [String; 0], "{text}");
        assert!(parser.has_ended(), "{text}");
    }
}

/// Mistakes that other servers fail on, and the number of warnings for each, usually one.
#[test]
fn slightly_wrong_turns_parse_with_one_warning() {
    let tokenizer = tokenizer();
    let harmony = Harmony::new(&tokenizer).expect("harmony's control tokens");
    for (text, expected, warnings) in [
        // Function names that are joined with the content type, or lack the prefix `functions.`.
        (
            "<|channel|>commentary to=functions.tjson<|message|>{}<|call|>",
            vec![">functions.t #commentary =json | {}"],
            1,
        ),
        (" to=t<|channel|>commentary json<|message|>{}<|call|>", vec![">functions.t #commentary =json | {}"], 1),
        (
            " to=web.find<|channel|>commentary json<|message|>{}<|call|>",
            vec![">functions.web.find #commentary =json | {}"],
            1,
        ),
        (
            "<|channel|>commentary to=functions.get_jsonjson<|message|>{}<|call|>",
            vec![">functions.get_json #commentary =json | {}"],
            1,
        ),
        (
            "<|channel|>commentary to=functions.otherjson<|message|>{}<|call|>",
            vec![">functions.otherjson #commentary | {}"],
            0,
        ),
        // Unusual channels.
        ("<|channel|>analysis to=functions.t code<|message|>x<|call|>", vec![">functions.t #analysis =code | x"], 1),
        ("<|channel|>commentary to=assistant<|channel|>analysis<|message|>hm<|end|>", vec!["#analysis | hm"], 2),
        ("<|channel|>commentary?commentary?<|message|>hm<|return|>", vec!["#commentary | hm"], 1),
        ("<|channel|>––commentary<|message|>hm<|return|>", vec!["#commentary | hm"], 1),
        ("<|channel|>analysis??<|message|>hm<|return|>", vec!["#analysis | hm"], 1),
        ("<|channel|>??<|message|>hm<|return|>", vec!["#?? | hm"], 1),
        ("<|channel|>musing<|message|>hm<|return|>", vec!["#musing | hm"], 1),
        ("<|message|>no channel<|return|>", vec!["| no channel"], 1),
        ("<|channel|><|channel|>final<|message|>hm<|return|>", vec!["#final | hm"], 1),
        ("analysis<|message|>hm<|return|>", vec!["#analysis | hm"], 1),
        (
            "<|channel|>analysis<|message|>one<|channel|>final<|message|>two<|return|>",
            vec!["#analysis | one…", "#final | two"],
            1,
        ),
        ("<|channel|>commentary to=user<|message|>hm<|end|>", vec!["#commentary | hm"], 2),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|> to=functions.t assistant<|channel|>commentary<|message|>{}<|call|>",
            vec!["#analysis | a", ">functions.t #commentary | {}"],
            1,
        ),
        // Headers with too many words.
        (
            "<|channel|>commentary to=functions.t please note<|message|>{}<|call|>",
            vec![">functions.t #commentary =please | {}"],
            1,
        ),
        (
            "<|channel|>commentary to= functions.t json<|message|>{}<|call|>",
            vec![">functions.t #commentary =json | {}"],
            1,
        ),
        (
            " to=functions.t<|channel|>commentary to=functions.t json<|message|>{}<|call|>",
            vec![">functions.t #commentary =json | {}"],
            1,
        ),
        // Text without a header.
        ("plain words, no header<|return|>", vec!["| plain words, no header"], 1),
        ("final<|return|>", vec!["| final"], 1),
        ("<|channel|>final<|message|>a<|end|>and more", vec!["#final | a", "| and more…"], 2),
        (
            "<|channel|>analysis<|message|>a<|end|>\n<|start|>assistant<|channel|>final<|message|>b<|return|>",
            vec!["#analysis | a", "#final | b"],
            1,
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b<|return|>",
            vec!["#analysis | a", "#final | b"],
            1,
        ),
        ("<|channel|>final Hello there<|return|>", vec!["#final |  Hello there"], 1),
        ("<|channel|>analysis I think<|return|>", vec!["#analysis |  I think"], 1),
        (
            "<|channel|>final<|message|>a<|start|>assistant<|channel|>final<|message|>b<|return|>",
            vec!["#final | a…", "#final | b"],
            1,
        ),
        ("<|start|>assistant<|channel|>final<|message|>a<|return|>", vec!["#final | a"], 1),
        // Messages of other roles.
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>user<|message|>hi<|end|>",
            vec!["#analysis | a", "user| hi"],
            2,
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>functions.t to=assistant<|channel|>commentary<|message|>r<|end|>",
            vec!["#analysis | a", "tool:functions.t >assistant #commentary | r"],
            2,
        ),
        ("<|channel|>final<|message|>a<|end|><|start|>user what now<|end|>", vec!["#final | a", "user|  what now"], 2),
        // Incomplete messages, and tokens after the end of the turn.
        ("<|channel|>final<|message|>cut off in the mid", vec!["#final | cut off in the mid…"], 1),
        (
            " to=functions.t<|channel|>commentary json<|message|>{\"a\":",
            vec![">functions.t #commentary =json | {\"a\":…"],
            1,
        ),
        (" to=functions.t<|channel|>comm", vec![], 1),
        (" to=functions.t", vec![], 1),
        ("<|channel|>final", vec![], 1),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assist", vec!["#analysis | a"], 1),
        ("<|channel|>analysis<|message|>a<|end|>", vec!["#analysis | a"], 1),
        (
            " to=functions.t<|channel|>commentary json<|message|>{}<|end|>",
            vec![">functions.t #commentary =json | {}"],
            2,
        ),
        ("<|channel|>final<|message|>a<|call|>", vec!["#final | a"], 1),
        ("<|channel|>final<|message|>8 + 9 = 17.<|endoftext|>", vec!["#final | 8 + 9 = 17."], 1),
        (
            "<|channel|>final<|message|>a<|return|><|start|>assistant<|channel|>final<|message|>b<|return|>",
            vec!["#final | a", "#final | b"],
            1,
        ),
        ("<|channel|>final<|message|>a<|message|>b<|constrain|>c<|return|>", vec!["#final | abc"], 2),
        ("<|end|>", vec![], 2),
        ("", vec![], 1),
    ] {
        assert_eq!(lines(&harmony, text), expected, "{text}");
        let (deltas, parser) = parse(&harmony, text);
        assert_eq!(parser.warnings().len(), warnings, "{text}: {:?}", parser.warnings());
        let count = deltas.iter().filter(|delta| matches!(delta, Delta::Warning(_))).count();
        assert_eq!(count, warnings, "{text}");
    }
}

/// Words that cannot be part of a header are returned as text immediately, and a call's header before its arguments.
#[test]
fn text_deltas_are_not_delayed() {
    let tokenizer = tokenizer();
    let harmony = Harmony::new(&tokenizer).expect("harmony's control tokens");
    let mut parser = harmony.parser();
    let mut push = |text: &str| {
        let tokens = tokenizer.encode_with_control(text);
        tokens.into_iter().flat_map(|token| parser.push(token)).collect::<Vec<_>>()
    };
    assert!(push("<|channel|>commentary to=functions.t json").is_empty());
    let begun = push("<|message|>");
    assert!(matches!(&begun[..], [Delta::Begin(header)] if header.recipient.as_deref() == Some("functions.t")));
    assert!(matches!(&push("{")[..], [Delta::Text(text)] if text == "{"));
    assert_eq!(push("<|call|>"), [Delta::End { complete: true }]);
    assert!(parser.open_header().is_none() && parser.has_ended());

    let mut parser = harmony.parser();
    let words = tokenizer.encode("Hello");
    let deltas: Vec<Delta> = words.into_iter().flat_map(|token| parser.push(token)).collect();
    assert!(matches!(&deltas[..2], [Delta::Warning(_), Delta::Begin(_)]), "{deltas:?}");
    assert_eq!(parser.messages()[0].content, "Hello");
    assert!(parser.open_header().is_some_and(harmony::Header::is_visible));
}

#[test]
fn stop_strings_apply_to_visible_text() {
    let tokenizer = tokenizer();
    let harmony = Harmony::new(&tokenizer).expect("harmony's control tokens");
    let parse = |text: &str, stop: &[&str]| {
        let stop = stop.iter().map(|&string| string.to_owned()).collect();
        let mut parser = harmony.parser().with_stop_strings(stop);
        let mut shown = String::new();
        for token in tokenizer.encode_with_control(text) {
            for delta in parser.push(token) {
                if let Delta::Text(text) = delta {
                    shown += &text;
                }
            }
        }
        let rest = parser.finish();
        assert!(parser.stop_string().is_none() || rest.is_empty(), "{rest:?}");
        let contents: Vec<String> = parser.messages().iter().map(|message| message.content.clone()).collect();
        assert!(parser.stop_string().is_none() || shown == contents.concat(), "{shown}");
        (contents.join("|"), parser.stop_string().map(str::to_owned), parser.has_ended())
    };
    let turn = "<|channel|>analysis<|message|>stop a<|end|><|start|>assistant<|channel|>commentary<|message|>let me<|end|>\
                <|start|>assistant to=functions.t<|channel|>commentary json<|message|>stop b<|call|>";
    let outcome =
        |contents: &str, stop: Option<&str>, ended: bool| (contents.to_owned(), stop.map(str::to_owned), ended);
    for unseen in ["stop", "<|", "message", "commentary", "me|", "mest", "assistant"] {
        assert_eq!(parse(turn, &[unseen]), outcome("stop a|let me|stop b", None, true), "{unseen}");
    }
    assert_eq!(parse(turn, &["t m", " me"]), outcome("stop a|le", Some("t m"), true));
    let answer = "<|channel|>final<|message|>one, two, three<|return|>";
    assert_eq!(parse(answer, &[", three", ", t"]), outcome("one", Some(", t"), true));
    // Text that was held back because it might begin a stop string is returned at the end.
    assert_eq!(parse(answer, &["three!"]), outcome("one, two, three", None, true));
    let cut = "<|channel|>final<|message|>one, two, thr";
    assert_eq!(parse(cut, &["three"]), outcome("one, two, thr", None, false));
    assert_eq!(parse("no header, but words", &[", but"]), outcome("no header", Some(", but"), true));
}

#[test]
fn parsed_conversation_equals_its_messages() {
    let tokenizer = tokenizer();
    let harmony = Harmony::new(&tokenizer).expect("harmony's control tokens");
    let messages = [
        Message::new(Role::System, "s"),
        Message::user("Weather? <|end|> is text here."),
        Message::assistant("analysis", "Ask."),
        Message::assistant("commentary", "I ask."),
        Message::call("get_weather", "{}"),
        Message::tool_result("get_weather", "rain"),
        Message::assistant("final", "It rains."),
        Message::user("And now?"),
        Message::assistant("analysis", "Again."),
        Message::call("get_weather", "{}"),
    ];
    let whole: Vec<u32> = messages.iter().flat_map(|message| harmony.render(message)).collect();
    assert_eq!(harmony.parse_conversation(&whole), Ok(messages.to_vec()));
    let prompt = harmony.render_prompt(&messages);
    let kept = [&messages[..2], &messages[3..]].concat();
    assert_eq!(harmony.parse_conversation(&prompt), Ok(kept), "only reasoning before an answer is left out");
    assert!(harmony.parse_conversation(&whole[1..]).is_err() && harmony.parse_conversation(&[]).is_err());

    let result = Message::result_of(&messages[4], "rain");
    assert_eq!(result, messages[5]);
    let python = Message { recipient: Some("python".into()), ..Message::assistant("analysis", "1") };
    let result = Message::result_of(&python, "1");
    assert_eq!((result.name.as_deref(), result.channel.as_deref()), (Some("python"), Some("analysis")));
    // `<|endoftext|>` ends a message and does not become content.
    let text = "<|start|>user<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|endoftext|><|start|>user<|message|>c<|end|>";
    let messages = harmony.parse_conversation(&tokenizer.encode_with_control(text)).expect("a conversation");
    assert_eq!(messages, [Message::user("a"), Message::assistant("final", "b"), Message::user("c")]);
}

/// Checks only the text of the error.
#[test]
fn vocabulary_without_harmony_tokens_is_refused() {
    let missing = harmony::MissingControlToken { name: "<|call|>" };
    assert_eq!(missing.to_string(), "the vocabulary lacks the control token <|call|> of harmony");
}
