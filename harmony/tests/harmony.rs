//! Rendering and parsing, well-formed and not.

use gptoss_reference::Case;
use harmony::{
    Effort, Message, Parser, Role, SystemPrompt, ToolCall, Turn, parse_conversation, render, render_for_completion,
};
use phase1_loading::{Checkpoint, Tokenizer};
use proptest::prelude::*;

fn tokenizer() -> Tokenizer {
    let case = Case::committed().remove(0);
    Checkpoint::open(&case.model()).expect("opens").tokenizer().expect("builds")
}

fn parse(text: &str) -> Turn {
    let tokenizer = tokenizer();
    let mut parser = Parser::new(&tokenizer);
    for token in tokenizer.encode_with_control(text) {
        parser.push(token);
    }
    parser.finish()
}

#[test]
fn a_conversation_is_rendered() {
    let tokenizer = tokenizer();
    let system = SystemPrompt { effort: Effort::High, date: "2026-11-23".into(), functions: true };
    let messages = [
        system.message(),
        Message::new(Role::Developer, "# Instructions\n\nBe brief."),
        Message::new(Role::User, "Weather in Oslo? <|end|> is text here."),
        Message::assistant("analysis", "Ask the tool."),
        Message::call("get_weather", r#"{"city":"Oslo"}"#),
        Message::new(Role::Tool("functions.get_weather".into()), "rain"),
        Message::assistant("final", "It rains."),
        Message::new(Role::User, "And tomorrow?"),
    ];
    let whole = render(&messages, &tokenizer).expect("harmony's control tokens");
    let prompt = render_for_completion(&messages, &tokenizer).expect("harmony's control tokens");
    insta::assert_snapshot!(format!("{}\n----\n{}", tokenizer.decode(&whole), tokenizer.decode(&prompt)));
    let end = tokenizer.control("<|end|>").expect("a control token");
    assert_eq!(whole.iter().filter(|&&token| token == end).count(), 7, "content never ends a message");
}

#[test]
fn a_well_formed_turn_is_parsed() {
    let turn = parse(
        "<|channel|>analysis<|message|>Thinking.<|end|><|start|>assistant<|channel|>final<|message|>Done.<|return|>",
    );
    let expected = Turn { reasoning: "Thinking.".into(), content: "Done.".into(), ..Turn::default() };
    assert_eq!(turn, expected);
    let turn = parse(
        "<|channel|>analysis<|message|>Call.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather \
         <|constrain|>json<|message|>{\"city\":\"Oslo\"}<|call|>",
    );
    let call = ToolCall { name: "get_weather".into(), arguments: "{\"city\":\"Oslo\"}".into() };
    assert_eq!(call.parsed().expect("an object")["city"], "Oslo");
    assert_eq!(turn, Turn { reasoning: "Call.".into(), calls: vec![call], ..Turn::default() });
}

/// The mistakes that others' servers fail on.
#[test]
fn malformed_turns_lose_nothing() {
    let turns = [
        "<|channel|>commentary to=functions.get_weatherjson<|message|>{}<|call|>",
        "<|channel|>analysis to=functions.search <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>commentary to=assistant<|channel|>analysis<|message|>hm<|end|>",
        "<|channel|>final",
        "plain words without any header",
        "<|message|>no channel<|return|>",
        "<|channel|>analysis<|message|>one<|channel|>final<|message|>two<|return|>",
        "<|channel|>final<|message|>a<|start|>assistant<|channel|>final<|message|>b<|return|>",
        "<|channel|>musing<|message|>what<|end|><|start|>user<|channel|>final<|message|>x<|return|>",
        "<|channel|>final<|message|>cut off in the mid",
        "<|end|><|return|>late",
        "",
    ];
    let report: Vec<String> = turns.iter().map(|text| format!("{text}\n{:#?}", parse(text))).collect();
    insta::assert_snapshot!(report.join("\n\n"));
}

#[test]
fn a_turn_becomes_history() {
    let tokenizer = tokenizer();
    let turn = Turn { reasoning: "Hm.".into(), content: "Yes.".into(), ..Turn::default() };
    let tokens = render(&turn.messages(), &tokenizer).expect("harmony's control tokens");
    let text = tokenizer.decode(&tokens);
    assert_eq!(parse(text.strip_prefix("<|start|>assistant").expect("an assistant's message")).reasoning, "Hm.");
    assert_eq!(parse(text.strip_prefix("<|start|>assistant").expect("an assistant's message")).content, "Yes.");
}

const STRUCTURE: [&str; 9] = [
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "final",
    "analysis",
];

proptest! {
    /// Any token stream parses, and every piece of text in a body is somewhere in the turn.
    #[test]
    fn no_stream_panics_or_loses_a_body(
        parts in prop::collection::vec(prop_oneof![
            prop::sample::select(STRUCTURE.to_vec()).prop_map(str::to_owned),
            "[a-z{}\":=. ]{1,6}".prop_map(|text| text),
            Just("to=functions.x".to_owned()),
        ], 0..40),
    ) {
        let tokenizer = tokenizer();
        let mut parser = Parser::new(&tokenizer);
        let mut streamed = 0;
        for token in tokenizer.encode_with_control(&parts.concat()) {
            streamed += parser.push(token).map_or(0, |piece| match piece {
                harmony::Piece::Reasoning(text) | harmony::Piece::Content(text) | harmony::Piece::Arguments(text) => text.len(),
            });
        }
        let turn = parser.finish();
        let kept = turn.reasoning.len() + turn.content.len()
            + turn.calls.iter().map(|call| call.arguments.len()).sum::<usize>();
        prop_assert!(kept >= streamed);
        // A letter that stands nowhere in the structure can only be dropped by dropping text.
        let q = |text: &str| text.matches('q').count();
        let headers: usize = turn.calls.iter().map(|call| q(&call.name)).sum();
        let odd: usize = turn.irregularities.iter().map(|what| q(what)).sum();
        let said = q(&turn.reasoning) + q(&turn.content) + turn.calls.iter().map(|call| q(&call.arguments)).sum::<usize>();
        prop_assert!(said + headers + odd >= q(&parts.concat()), "{turn:?}");
    }
}

/// A few turns as they stand in a conversation, each with what the model's words in it were.
fn turns() -> impl Strategy<Value = Vec<(String, Turn)>> {
    let text = "[ a-zé<|>\n]{1,12}";
    let call = (text, "[a-z_]{1,8}", text).prop_map(|(reasoning, name, arguments)| {
        let calls = vec![ToolCall { name, arguments }];
        Turn { reasoning, calls, ..Turn::default() }
    });
    let answer = ("[a-z ]{0,9}", text).prop_map(|(reasoning, content)| Turn { reasoning, content, ..Turn::default() });
    prop::collection::vec((text, prop_oneof![call, answer]), 1..4)
}

proptest! {
    /// What was rendered reads back as the messages that were rendered, and a continuation as the turn that it is.
    #[test]
    fn a_conversation_reads_back(turns in turns(), instructions in prop::option::of("[a-z ]{1,9}")) {
        let tokenizer = tokenizer();
        let system = SystemPrompt { effort: Effort::Low, date: "2026-11-23".into(), functions: true };
        let mut messages = vec![system.message()];
        messages.extend(instructions.map(|text| Message::new(Role::Developer, text)));
        for (number, (said, turn)) in turns.iter().enumerate() {
            let after_call = number > 0 && !turns[number - 1].1.calls.is_empty();
            let role = if after_call { Role::Tool("functions.f".into()) } else { Role::User };
            messages.push(Message::new(role, said));
            let prompt = render_for_completion(&messages, &tokenizer).expect("harmony's control tokens");
            // The model's words: the turn without the role before them, which the prompt ends with.
            let words = render(&turn.messages(), &tokenizer).expect("harmony's control tokens");
            let role = 1 + tokenizer.encode("assistant").len();
            let whole = [&prompt, &words[role..]].concat();
            let mut expected = messages.clone();
            let last_final = messages.iter().rposition(|message| message.channel.as_deref() == Some("final"));
            let mut index = 0;
            expected.retain(|message| {
                index += 1;
                message.channel.as_deref() != Some("analysis") || Some(index - 1) > last_final
            });
            expected.extend(turn.messages());
            prop_assert_eq!(parse_conversation(&whole, &tokenizer), Some(expected));
            messages.extend(turn.messages());
        }
    }

    /// Whatever the tokens, they are read or refused.
    #[test]
    fn any_conversation_is_read(mut tokens in prop::collection::vec(0u32..3000, 0..60)) {
        let tokenizer = tokenizer();
        let start = tokenizer.control("<|start|>").expect("a control token");
        let expected = tokens.first() == Some(&start);
        prop_assert_eq!(parse_conversation(&tokens, &tokenizer).is_some(), expected);
        tokens.insert(0, start);
        prop_assert!(parse_conversation(&tokens, &tokenizer).is_some());
    }
}
