//! System and developer messages, and schemas that OpenAI's package does not write out.

use harmony::{DeveloperPrompt, Effort, Function, ResponseFormat, Role, SystemPrompt};
use serde_json::{Value, json};

/// How a function with these parameters is declared.
fn declared(parameters: Value) -> String {
    let function = Function { name: "f".into(), description: None, parameters: Some(parameters) };
    let content = DeveloperPrompt { functions: vec![function], ..DeveloperPrompt::default() }.message().content;
    let head = "# Tools\n\n## functions\n\nnamespace functions {\n\ntype f = (_: ";
    let tail = ") => any;\n\n} // namespace functions";
    content.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail)).expect("a declaration").to_owned()
}

#[test]
fn schemas_are_written_out() {
    let cases = [
        // Every line of a comment is one.
        (
            json!({"type": "object", "description": "one\ntwo", "properties": {"a": {"type": "string", "description": "b\r\nc\n"}}}),
            "// one\n// two\n{\n// b\n// c\na?: string,\n}",
        ),
        (json!({"oneOf": [{"type": "string", "description": "b\nc"}]}), "\n | string // b c"),
        (json!({"type": "string", "enum": ["a\nb"], "default": "a\nb"}), r#""a\nb""#),
        // Unions of plain types stand on one line, others on a line each.
        (
            json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "A", "default": null}}}),
            "{\n// A\n//\na?: string | null, // default: null\n}",
        ),
        (
            json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}}, "required": ["a"]}),
            "{\na: number[] | null,\n}",
        ),
        (
            json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "object", "properties": {"b": {"type": "number"}}}, {"type": "null"}], "description": "D"}}}),
            "{\n// D\na?:\n | {\n   b?: number,\n   }\n | null\n,\n}",
        ),
        // One that narrows a type adds nothing.
        (json!({"type": "object", "anyOf": [{"required": ["a"]}]}), "{\n}"),
        // References.
        (
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"type": "array", "items": {"$ref": "#/definitions/B"}}},
                "$defs": {"A": {"type": "string", "enum": ["x", "y"], "description": "of A"}}, "definitions": {"B": {"$ref": "#/$defs/A"}}}),
            "{\n// of A\na?: \"x\" | \"y\",\nb?: \"x\" | \"y\"[],\n}",
        ),
        (
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/A", "description": "mine", "default": 3}}, "$defs": {"A": {"type": "number", "description": "its"}}}),
            "{\n// mine\na?: number, // default: 3\n}",
        ),
        // They may go in circles, or nowhere.
        (
            json!({"$ref": "#/$defs/Tree", "$defs": {"Tree": {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}}}}}),
            "{\nchildren?: any[],\n}",
        ),
        (json!({"type": "object", "properties": {"a": {"$ref": "#"}}}), "{\na?: {\n    a?: any,\n    },\n}"),
        (
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}, "b": {"$ref": "https://example.org/b", "type": "string"}, "c": {"$ref": 3}}}),
            "{\na?: any,\nb?: string,\nc?: any,\n}",
        ),
        (json!(true), "any"),
    ];
    for (schema, expected) in cases {
        assert_eq!(declared(schema.clone()), expected, "{schema}");
    }
}

/// No schema makes a text without bounds.
#[test]
fn hostile_schemas_end() {
    // Each definition names the next one twice: 2⁴⁰ strings.
    let mut definitions = serde_json::Map::new();
    for number in 0..40 {
        let next = json!({"$ref": format!("#/$defs/{}", number + 1)});
        definitions.insert(number.to_string(), json!({"type": "object", "properties": {"a": next.clone(), "b": next}}));
    }
    definitions.insert("40".into(), json!({"type": "string"}));
    let text = declared(json!({"$ref": "#/$defs/0", "$defs": definitions}));
    assert!(text.len() < 4 << 20, "{}", text.len());

    let mut deep = json!({"type": "string"});
    for _ in 0..100 {
        deep = json!({"type": "array", "items": deep});
    }
    assert!(declared(deep).starts_with("any[]"));
}

#[test]
fn parts_are_left_out() {
    let bare = SystemPrompt { identity: None, knowledge_cutoff: None, effort: Effort::Low, ..SystemPrompt::default() };
    let message = bare.message();
    assert_eq!(message.role, Role::System);
    let channels = "# Valid channels: analysis, commentary, final. Channel must be included for every message.";
    assert_eq!(message.content, format!("Reasoning: low\n\n{channels}"));
    let tools = SystemPrompt { browser: true, python: true, functions: true, ..SystemPrompt::default() };
    let content = tools.message().content;
    let order = ["Reasoning: medium\n\n# Tools\n\n## browser\n\n//", "\n\n## python\n\n", channels, "'functions'."];
    let places: Vec<usize> = order.iter().map(|part| content.find(part).expect("it is there")).collect();
    assert!(places.is_sorted(), "{content}");
    assert!(DeveloperPrompt::default().is_empty());
}

#[test]
fn response_formats_end_the_developer_message() {
    let format = |name: &str, description: Option<&str>| ResponseFormat {
        name: name.into(),
        description: description.map(str::to_owned),
        schema: json!({"type": "object", "properties": {"b": {"type": "string"}, "a": {}}}),
    };
    let developer = DeveloperPrompt {
        instructions: Some("Be brief.".into()),
        response_formats: vec![format("first", Some("One\nform")), format("second", None)],
        ..DeveloperPrompt::default()
    };
    let schema = r#"{"type":"object","properties":{"b":{"type":"string"},"a":{}}}"#;
    let expected = format!(
        "# Instructions\n\nBe brief.\n\n# Response Formats\n\n## first\n\n// One\n// form\n{schema}\n\n## second\n\n{schema}"
    );
    assert_eq!(developer.message().content, expected);
}
