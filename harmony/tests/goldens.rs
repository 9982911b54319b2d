//! Compares rendering and parsing with OpenAI's package, token for token: `reference/scripts/harmony_oracle.py` recorded its output.

use std::path::Path;

use harmony::{DeveloperPrompt, Function, Harmony, Message, ReasoningEffort, Role, SystemPrompt};
use phase1_loading::{Checkpoint, Tokenizer};
use serde_json::Value;
use synthetic::SyntheticModel;

/// The whole o200k_harmony vocabulary, read back from a synthetic model.
fn o200k() -> Tokenizer {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("o200k.gguf");
    let tiny = SyntheticModel::preset("tiny").expect("a preset");
    let model = SyntheticModel { layers: 1, hidden: 32, ..tiny };
    model.write(&path, 0, &mut |_, _| ()).expect("written");
    Checkpoint::open(&path).expect("opened").tokenizer().expect("built")
}

/// The lines of a golden file.
fn lines(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reference/goldens/harmony").join(file);
    let text = std::fs::read_to_string(path).expect("goldens are committed");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn text(object: &Value, key: &str) -> Option<String> {
    object.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn tokens(value: &Value) -> Vec<u32> {
    let tokens = value.as_array().expect("an array of tokens").iter();
    tokens.map(|token| token.as_u64().expect("a token") as u32).collect()
}

fn message(object: &Value) -> Message {
    let role = text(object, "role").expect("a role");
    Message {
        role: Role::ALL.into_iter().find(|known| known.name() == role).expect("a known role"),
        name: text(object, "name"),
        recipient: text(object, "recipient"),
        channel: text(object, "channel"),
        content_type: text(object, "content_type"),
        content: text(object, "content").expect("content"),
    }
}

fn function(object: &Value) -> Function {
    Function {
        name: text(object, "name").expect("a name"),
        description: text(object, "description"),
        parameters: object.get("parameters").cloned(),
    }
}

/// The messages of a golden conversation, beginning with its system and developer messages.
fn messages(conversation: &Value) -> Vec<Message> {
    let mut messages = Vec::new();
    let developer = conversation.get("developer").map(|developer| DeveloperPrompt {
        instructions: text(developer, "instructions"),
        functions: developer.get("functions").and_then(Value::as_array).into_iter().flatten().map(function).collect(),
        response_formats: Vec::new(),
    });
    if let Some(system) = conversation.get("system") {
        let default = SystemPrompt::default();
        let given = |key: &str, default: &Option<String>| match system.get(key) {
            Some(value) => value.as_str().map(str::to_owned),
            None => default.clone(),
        };
        let named = text(system, "effort").expect("an effort");
        let prompt = SystemPrompt {
            identity: given("identity", &default.identity),
            knowledge_cutoff: given("knowledge_cutoff", &default.knowledge_cutoff),
            date: text(system, "date"),
            effort: ReasoningEffort::ALL.into_iter().find(|effort| effort.name() == named).expect("a known effort"),
            functions: developer.as_ref().is_some_and(|developer| !developer.functions.is_empty()),
            ..default
        };
        messages.push(prompt.message());
    }
    messages.extend(developer.map(|developer| developer.message()));
    messages.extend(conversation["messages"].as_array().expect("an array of messages").iter().map(message));
    messages
}

#[test]
fn conversations_and_turns_equal_openais() {
    let tokenizer = o200k();
    let harmony = Harmony::new(&tokenizer).expect("harmony's control tokens");
    assert_eq!(harmony.stops(), [200_002, 200_012]);
    let conversations = lines("conversations.jsonl");
    assert!(conversations.len() > 15);
    for conversation in &conversations {
        let (name, messages) = (&conversation["name"], messages(conversation));
        let rendered: Vec<u32> = messages.iter().flat_map(|message| harmony.render(message)).collect();
        let expected = tokens(&conversation["tokens"]);
        assert_eq!(tokenizer.decode(&rendered), tokenizer.decode(&expected), "{name}");
        assert_eq!(rendered, expected, "{name}");
        if !conversation["prompt"].is_null() {
            let (prompt, expected) = (harmony.render_prompt(&messages), tokens(&conversation["prompt"]));
            assert_eq!(tokenizer.decode(&prompt), tokenizer.decode(&expected), "{name}");
            assert_eq!(prompt, expected, "{name}");
            assert!(harmony.least_prompt_tokens(&messages) <= prompt.len(), "{name}");
        }
        if !messages.is_empty() {
            assert_eq!(harmony.parse_conversation(&rendered).as_ref(), Ok(&messages), "{name}");
        }
    }

    let turns = lines("turns.jsonl");
    assert!(turns.len() > 10);
    for turn in &turns {
        let generated = text(turn, "generated").expect("text");
        assert_eq!(tokenizer.encode_with_control(&generated), tokens(&turn["tokens"]), "{generated}");
        let mut parser = harmony.parser();
        for token in tokens(&turn["tokens"]) {
            parser.push(token);
        }
        parser.finish();
        let expected: Vec<Message> = turn["messages"].as_array().expect("an array").iter().map(message).collect();
        assert_eq!(parser.messages(), expected, "{generated}");
    }
}

#[test]
fn schemas_equal_openais() {
    let schemas = lines("schemas.jsonl");
    assert!(schemas.len() > 15);
    for schema in &schemas {
        let function = Function {
            name: "f".into(),
            description: Some("F".into()),
            parameters: Some(schema["parameters"].clone()).filter(|parameters| !parameters.is_null()),
        };
        let developer = DeveloperPrompt { functions: vec![function], ..DeveloperPrompt::default() };
        let expected = format!(
            "# Tools\n\n## functions\n\nnamespace functions {{\n\n{}\n\n}} // namespace functions",
            text(schema, "declaration").expect("text")
        );
        assert_eq!(developer.message().content, expected, "{}", schema["name"]);
    }
}

/// The training texts of the embedded model are rendered in Python. This crate must render the examples that `reference/tiny/rendered.py`
/// recorded in the same way.
#[test]
fn training_texts_equal_recorded_rendering() {
    let lines = lines("miniature.jsonl");
    assert!(lines.len() > 30);
    for line in &lines {
        let messages = messages(line);
        let write =
            |message: &Message| format!("<|start|>{}<|message|>{}<|end|>", message.role.name(), message.content);
        let rendered: String = messages.iter().map(write).collect();
        assert_eq!(Some(rendered), text(line, "text"), "{}", line["name"]);
    }
}
