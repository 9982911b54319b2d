//! System and developer messages, and how schemas are rendered, also those of which OpenAI's package loses information.

use harmony::{DeveloperPrompt, Function, ReasoningEffort, ResponseFormat, Role, SystemPrompt};
use serde_json::{Value, json};

/// The declaration of a function with these parameters.
fn declared(parameters: Value) -> String {
    let function = Function { name: "f".into(), description: None, parameters: Some(parameters) };
    let content = DeveloperPrompt { functions: vec![function], ..DeveloperPrompt::default() }.message().content;
    let head = "# Tools\n\n## functions\n\nnamespace functions {\n\ntype f = (_: ";
    let tail = ") => any;\n\n} // namespace functions";
    content.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail)).expect("a declaration").to_owned()
}

#[test]
fn schemas_render_as_typescript() {
    let cases = [
        // In front of a type, each line of a description becomes a comment line; after a variant, all are joined in one.
        (
            json!({"type": "object", "description": "one\ntwo", "properties": {"a": {"type": "string", "description": "b\r\nc\n"}}}),
            "// one\n// two\n{\n// b\n// c\na?: string,\n}",
        ),
        (json!({"oneOf": [{"type": "string", "description": "b\nc"}]}), "\n | string // b c"),
        (json!({"type": "string", "enum": ["a\nb"], "default": "a\nb"}), r#""a\nb""#),
        // Unions of plain types are written on one line, other unions with a line per variant.
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
        // An `anyOf` that only narrows a type is ignored.
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
        // References may be circular or unresolved.
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

/// Cases in which random schemas revealed a difference from OpenAI's package. The expected texts are that package's.
#[test]
fn schema_edge_cases_equal_openais() {
    let cases = [
        // An empty description becomes an empty comment line.
        (
            json!({"type": "object", "description": "", "properties": {"a": {"type": "string", "title": "", "description": ""}}}),
            "// \n{\n// \n//\n// \na?: string,\n}",
        ),
        (json!({"oneOf": [{"type": "string", "description": ""}]}), "\n | string // "),
        // The default of an enumeration has no quotes in a property and in the variants of a property. Elsewhere it is JSON.
        (
            json!({"oneOf": [{"type": "string", "enum": ["a"], "default": "a\""}]}),
            r#"
 | "a" // default: "a\"""#,
        ),
        (
            json!({"type": "object", "properties": {"b": {"oneOf": [{"type": "string", "enum": ["a"], "default": "a"}]}}}),
            "{\nb?:\n | \"a\" // default: a\n,\n}",
        ),
        // Variants do not repeat the description of their property.
        (
            json!({"type": "object", "properties": {"a": {"description": "D", "oneOf": [
                {"type": "string", "description": "S"}, {"type": "number", "description": "D"}, {"type": "boolean", "description": "B"}]}}}),
            "{\n// D\na?:\n | string\n | number\n | boolean // B\n,\n}",
        ),
        // A variant with variants may be nullable; `null` is not repeated in a type that already has it.
        (json!({"oneOf": [{"oneOf": [{"type": "string"}], "nullable": true}]}), "\n | \n    | string | null"),
        (
            json!({"type": "object", "properties": {"a": {"type": ["null", "string"], "nullable": true}}}),
            "{\na?: null | string,\n}",
        ),
    ];
    for (schema, expected) in cases {
        assert_eq!(declared(schema.clone()), expected, "{schema}");
    }
}

/// OpenAI's package loses a description that the first variant repeats, and `null` if the rendered type contains the word `null`. This
/// crate loses neither.
#[test]
fn schema_descriptions_and_null_are_kept() {
    let cases = [
        (
            json!({"type": "object", "properties": {"a": {"description": "D", "oneOf": [{"type": "string", "description": "D"}]}}}),
            "{\n// D\na?:\n | string\n,\n}",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "enum": ["null"], "nullable": true}}}),
            "{\na?: \"null\" | null,\n}",
        ),
        (
            json!({"type": "object", "properties": {"a": {"nullable": true, "type": "object", "properties": {
                "b": {"type": "string", "nullable": true}}}}, "required": ["a"]}),
            "{\na: {\n    b?: string | null,\n    } | null,\n}",
        ),
    ];
    for (schema, expected) in cases {
        assert_eq!(declared(schema.clone()), expected, "{schema}");
    }
}

/// No schema makes the text arbitrarily long.
#[test]
fn hostile_schemas_render_to_bounded_text() {
    // Each definition refers to the next one twice, which would give 2⁴⁰ strings.
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
fn absent_prompt_parts_are_omitted() {
    let bare = SystemPrompt {
        identity: None,
        knowledge_cutoff: None,
        effort: ReasoningEffort::Low,
        ..SystemPrompt::default()
    };
    let message = bare.message();
    assert_eq!(message.role, Role::System);
    let channels = "# Valid channels: analysis, commentary, final. Channel must be included for every message.";
    assert_eq!(message.content, format!("Reasoning: low\n\n{channels}"));
    let empty = SystemPrompt { identity: Some(String::new()), ..bare };
    assert_eq!(
        empty.message().content,
        format!("\n\nReasoning: low\n\n{channels}"),
        "an empty part is rendered, unlike a missing one"
    );
    let tools = SystemPrompt { browser: true, python: true, functions: true, ..SystemPrompt::default() };
    let content = tools.message().content;
    let order = ["Reasoning: medium\n\n# Tools\n\n## browser\n\n//", "\n\n## python\n\n", channels, "'functions'."];
    let places: Vec<usize> = order.iter().map(|part| content.find(part).expect("the message has every part")).collect();
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
