//! Conversations in a terminal or through a pipe.

use crate::program::{chat, chat_bytes, refusal};

/// The model answers from a fact of an earlier turn; `/reset` starts a new conversation.
#[test]
fn chat_remembers_until_it_is_reset() {
    let said = "I have a cat named Hana. My locker code is 3650.\nWhat is my pet called?\n/reset\n/unknown\nWhat is 1 + 1?\n/quit\n";
    insta::assert_snapshot!("chat", chat(said, &["--reasoning", "low"]));
}

/// The model calls a declared function, and answers with the result that is typed.
#[test]
fn chat_prompts_for_tool_results() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let tools = path("tools.json");
    let parameters = r#"{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}"#;
    let function = format!(
        r#"{{"name": "get_weather", "description": "Get the weather in a city.", "parameters": {parameters}}}"#
    );
    let expected = "get_weather({\"city\": \"Oslo\"})\n\nIt is 7 degrees and rainy in Oslo.\n\n";
    let (question, result) = ("What is the weather in Oslo?\n", "{\"temperature\": 7, \"sky\": \"rainy\"}\n");
    for (file, declared) in
        [("bare", format!("[{function}]")), ("openai", format!(r#"[{{"type": "function", "function": {function}}}]"#))]
    {
        std::fs::write(&tools, declared).expect("written");
        let said = format!("{question}{result}");
        let file = path(file);
        let arguments = ["--tools", &tools, "--session", &file];
        assert_eq!(chat(&said, &[&arguments[..], &["--reasoning", "low"]].concat()), expected);
        let with_reasoning = chat(&said, &["--tools", &tools]);
        assert!(with_reasoning.starts_with("I need to call get_weather.\nget_weather({"), "{with_reasoning}");
        assert!(with_reasoning.ends_with("It is 7 degrees and rainy in Oslo.\n\n"), "{with_reasoning}");
    }
    // Without a result the call stays unanswered.
    assert_eq!(chat(question, &["--tools", &tools, "--reasoning", "low"]), "get_weather({\"city\": \"Oslo\"})\n\n");
    // A session keeps its functions: an empty list does not change them, and another list is refused.
    std::fs::write(&tools, "[]").expect("written");
    chat("", &["--tools", &tools, "--session", &path("bare")]);
    std::fs::write(&tools, r#"[{"name": "other"}]"#).expect("written");
    assert_eq!(
        refusal(&["chat", "--device", "cpu", "--tools", &tools, "--session", &path("bare")])
            .replace(&path("bare"), "FILE"),
        "2: gptoss: FILE already has instructions; they cannot be changed with --system or --tools"
    );
}

/// A line that is not UTF-8 is ignored, and the conversation continues.
#[test]
fn invalid_utf8_does_not_end_the_chat() {
    let answer = chat("What is 1 + 1?\n", &["--reasoning", "low"]);
    assert!(answer.contains("1 + 1 = 2"), "{answer}");
    assert_eq!(chat_bytes(b"Gr\xfc\xdfe\nWhat is 1 + 1?\n", &["--reasoning", "low"]), answer);
}
