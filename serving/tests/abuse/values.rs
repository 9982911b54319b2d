//! Invalid values: bodies that are not JSON or not UTF-8, endless schemas, too many tools, huge numbers.

use gptoss_reference::Random;
use serde_json::{Map, Value, json};

use crate::http::{Answer, MODEL, Running};
use crate::shared_server::{CHAT, ask, assert_refused, shared_server};

const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const TOO_LONG: Option<&str> = Some("context_length_exceeded");
const UNSUPPORTED: Option<&str> = Some("unsupported_value");

fn send(server: &Running, path: &str, body: &[u8]) -> Answer {
    server.send("POST", path, &[], body)
}

#[test]
fn survives_invalid_json() {
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"\0".to_vec(),
        b"{".to_vec(),
        b"{} x".to_vec(),
        b"{'messages': []}".to_vec(),
        b"{\"messages\": [,]}".to_vec(),
        b"{\"messages\": [NaN]}".to_vec(),
        // Invalid UTF-8, also in a field that is ignored.
        b"{\"model\": \"\xff\xfe\"}".to_vec(),
        b"{\"unknown\": \"\xc3\"}".to_vec(),
        b"\xff\xfe{\0}\0".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec(),
        ("{\"a\":".repeat(100_000) + &"}".repeat(100_000)).into_bytes(),
        ("{\"messages\":".to_owned() + &"[".repeat(100_000)).into_bytes(),
    ];
    let half = [
        (CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"\\ud800\"}]}"),
        (COMPLETIONS, "{\"prompt\": \"\\ud800\"}"),
        (RESPONSES, "{\"input\": \"\\ud800\"}"),
        ("/tokenize", "{\"content\": \"\\ud800\"}"),
    ];
    shared_server().assert_survives(|server| {
        let refused = |path: &str, body: &[u8]| {
            let what = String::from_utf8_lossy(&body[..body.len().min(60)]);
            let answer = send(server, path, body);
            assert_refused(&format!("{path} {what}"), &answer, 400, Some("invalid_json"), None);
        };
        for body in &bodies {
            for path in [CHAT, COMPLETIONS, RESPONSES, "/v1/responses/input_tokens", "/tokenize", "/detokenize"] {
                refused(path, body);
            }
            for path in ["/api/chat", "/api/generate", "/api/show"] {
                let answer = send(server, path, body);
                assert_eq!((answer.status, answer.json()["error"].is_string()), (400, true), "{path}: {}", answer.body);
            }
        }
        half.iter().for_each(|(path, body)| refused(path, body.as_bytes()));
    });
}

/// A schema with this many levels, as text.
fn deep_schema(levels: usize) -> String {
    let open = "{\"type\":\"object\",\"properties\":{\"x\":".repeat(levels);
    format!("{open}{{\"type\":\"string\"}}{}", "}}".repeat(levels))
}

#[test]
fn survives_deeply_nested_schemas() {
    let chat = |rest: &str| {
        format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],\"max_tokens\":1,{rest}}}").into_bytes()
    };
    let format = |schema: &str| {
        format!(
            "\"response_format\":{{\"type\":\"json_schema\",\"json_schema\":{{\"name\":\"n\",\"schema\":{schema}}}}}"
        )
    };
    let tools = |schema: &str, strict: bool| {
        format!(
            "\"tools\":[{{\"type\":\"function\",\"function\":{{\"name\":\"f\",\"strict\":{strict},\"parameters\":{schema}}}}}]"
        )
    };
    let flat = |schema: &str| {
        format!("{{\"input\":\"x\",\"text\":{{\"format\":{{\"type\":\"json_schema\",\"name\":\"n\",\"schema\":{schema}}}}}}}").into_bytes()
    };
    shared_server().assert_survives(|server| {
        for levels in [1000, 100_000] {
            let schema = deep_schema(levels);
            for body in [chat(&format(&schema)), chat(&tools(&schema, false)), chat(&tools(&schema, true))] {
                assert_refused("a deep schema", &send(server, CHAT, &body), 400, Some("invalid_json"), None);
            }
            assert_refused("a deep schema", &send(server, RESPONSES, &flat(&schema)), 400, Some("invalid_json"), None);
        }
        // The JSON parser accepts this depth, but the schema is too deep to be enforced.
        let schema = deep_schema(58);
        let refused = |path: &str, body: &[u8], param: &str| {
            assert_refused("a schema of 58 levels", &send(server, path, body), 400, UNSUPPORTED, Some(param));
        };
        refused(CHAT, &chat(&format(&schema)), "response_format");
        refused(CHAT, &chat(&tools(&schema, true)), "tools");
        refused(RESPONSES, &flat(&schema), "text.format");
    });
}

#[test]
fn refuses_too_large_and_unsupported_schemas() {
    let format = |schema: Value| {
        ask(
            "x",
            json!({ "max_tokens": 1, "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": schema } } }),
        )
    };
    let many: Map<String, Value> =
        (0..20_000).map(|index| (format!("p{index}"), json!({ "type": "string" }))).collect();
    shared_server().assert_survives(|server| {
        // These schemas are part of the prompt, and make it too long.
        for (what, schema) in [
            ("20,000 properties", json!({ "type": "object", "properties": many })),
            ("100,000 values", json!({ "enum": (0..100_000).collect::<Vec<_>>() })),
        ] {
            let answer = server.post(CHAT, &format(schema));
            assert_refused(what, &answer, 400, Some("context_length_exceeded"), Some("messages"));
        }
        for (what, schema) in [
            ("a reference to itself", json!({ "$ref": "#" })),
            ("a negative length", json!({ "type": "string", "minLength": -1 })),
            ("a huge minimum and a tiny step", json!({ "type": "number", "minimum": 1e308, "multipleOf": 1e-300 })),
        ] {
            assert_refused(what, &server.post(CHAT, &format(schema)), 400, UNSUPPORTED, Some("response_format"));
        }
        // Answers that the schema makes very long are generated up to the request's limit.
        for schema in [
            json!({ "type": "array", "items": { "type": "string" }, "minItems": 1_000_000_000 }),
            json!({ "type": "string", "minLength": 1_000_000_000 }),
        ] {
            let answer = server.post(CHAT, &format(schema));
            assert_eq!(answer.status, 200, "{}", answer.body);
            assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
        }
    });
}

#[test]
fn survives_ten_thousand_tools() {
    let parameters = json!({ "type": "object", "properties": { "a": { "type": "string" } } });
    let function = |index: usize, strict: bool| json!({ "name": format!("tool_{index}"), "parameters": parameters, "strict": strict });
    let tools = |count: usize, strict: bool| -> Value {
        (0..count).map(|index| json!({ "type": "function", "function": function(index, strict) })).collect()
    };
    let flat: Value = (0..10_000)
        .map(|index| {
            let mut tool = function(index, false);
            tool["type"] = "function".into();
            tool
        })
        .collect();
    shared_server().assert_survives(|server| {
        let chat = |fields: Value| server.post(CHAT, &ask("x", fields));
        let refused = |what: &str, answer: Answer, code: Option<&str>, param: &str| {
            assert_refused(what, &answer, 400, code, Some(param));
        };
        refused("many tools", chat(json!({ "tools": tools(10_000, false) })), None, "tools");
        refused("many strict tools", chat(json!({ "tools": tools(10_000, true) })), None, "tools");
        let required = json!({ "tools": tools(10_000, false), "tool_choice": "required" });
        refused("many tools, one required", chat(required), None, "tools");
        refused("many flat tools", server.post(RESPONSES, &json!({ "input": "x", "tools": flat })), None, "tools");
        // 1,000 tools are allowed, but their declarations are longer than the context. 200 strict ones are too many for a grammar.
        refused("1,000 tools", chat(json!({ "tools": tools(1000, false) })), TOO_LONG, "messages");
        refused("200 strict tools", chat(json!({ "tools": tools(200, true) })), None, "tools");
        let long = json!([{ "type": "function", "function": { "name": "x".repeat(100_000) } }]);
        refused("a long name", chat(json!({ "tools": long })), None, "tools[0].function.name");
        let odd = json!([{ "type": "function", "function": { "name": "<|end|>" } }]);
        refused("a control token as name", chat(json!({ "tools": odd })), None, "tools[0].function.name");
    });
}

/// Unusual numbers that are valid JSON.
const ODD: [&str; 10] = [
    "0",
    "-1",
    "1.5",
    "1e308",
    "-1e308",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999999999",
    "-9223372036854775809",
    "1e999",
];

/// The numeric fields of a chat request, and for each the numbers of [`ODD`] that the server accepts.
const CHAT_FIELDS: [(&str, &[&str]); 13] = [
    ("max_tokens", &["18446744073709551615"]),
    ("max_completion_tokens", &["18446744073709551615"]),
    ("temperature", &["0", "1.5"]),
    ("top_p", &["0"]),
    ("top_k", &["0", "-1"]),
    ("min_p", &["0"]),
    ("n", &[]),
    ("seed", &["0", "-1"]),
    ("presence_penalty", &["0", "-1", "1.5"]),
    ("frequency_penalty", &["0", "-1", "1.5"]),
    ("repetition_penalty", &["1.5"]),
    ("top_logprobs", &["0"]),
    ("timeout", &ODD),
];

#[test]
fn survives_zero_and_huge_numbers() {
    shared_server().assert_survives(|server| {
        for (field, allowed) in CHAT_FIELDS {
            for number in ODD {
                // These fields end the text by themselves; the others need a limit.
                let bound = if field.starts_with("max_") { "" } else { ",\"max_tokens\":1" };
                let messages = r#""messages":[{"role":"user","content":"What is 2 + 2?"}],"logprobs":true"#;
                let body = format!("{{{messages},\"{field}\":{number}{bound}}}");
                let answer = send(server, CHAT, body.as_bytes());
                let what = format!("{field} {number}");
                match number {
                    // JSON parsers refuse a number this large, unless the field is ignored.
                    "1e999" if field != "timeout" => assert_refused(&what, &answer, 400, Some("invalid_json"), None),
                    _ if allowed.contains(&number) => assert_eq!(answer.status, 200, "{what}: {}", answer.body),
                    _ => assert_refused(&what, &answer, 400, None, Some(field)),
                }
            }
        }
    });
}

#[test]
fn refuses_values_out_of_range() {
    let biases: Map<String, Value> = (0..100_000).map(|token| (token.to_string(), json!(1))).collect();
    let stops: Vec<String> = (0..10_000).map(|index| format!("stop {index}")).collect();
    #[rustfmt::skip]
    let refused: Vec<(&str, Value, &str)> = vec![
        (CHAT, ask("x", json!({ "logit_bias": { "2000": 1e308 } })), "logit_bias"),
        (CHAT, ask("x", json!({ "logit_bias": { "99999999999999999999": 1 } })), "logit_bias"),
        (CHAT, ask("x", json!({ "logit_bias": { "-1": 1 } })), "logit_bias"),
        (CHAT, ask("x", json!({ "logit_bias": biases })), "logit_bias"),
        (CHAT, ask("x", json!({ "stop": stops })), "stop"),
        (CHAT, ask("x", json!({ "stop": ["x".repeat(1_000_000)] })), "stop"),
        (CHAT, ask("x", json!({ "stop": [""] })), "stop"),
        (COMPLETIONS, json!({ "prompt": [u64::MAX] }), "prompt"),
        (COMPLETIONS, json!({ "prompt": [-1] }), "prompt"),
        (COMPLETIONS, json!({ "prompt": [2048] }), "prompt"),
        (COMPLETIONS, json!({ "prompt": vec!["x"; 100_000] }), "prompt"),
        (COMPLETIONS, json!({ "prompt": vec!["x"; 100], "n": 100 }), "n"),
        (COMPLETIONS, json!({ "prompt": "x", "logprobs": u64::MAX }), "logprobs"),
        (COMPLETIONS, json!({ "prompt": "x", "n": 0 }), "n"),
        (RESPONSES, json!({ "input": "x", "max_output_tokens": 0 }), "max_output_tokens"),
        (RESPONSES, json!({ "input": "x", "max_output_tokens": 1e30 }), "max_output_tokens"),
        (RESPONSES, json!({ "input": "x", "temperature": 1e300 }), "temperature"),
        ("/detokenize", json!({ "tokens": [u64::MAX] }), "tokens[0]"),
        ("/detokenize", json!({ "tokens": [u32::MAX] }), "tokens"),
    ];
    shared_server().assert_survives(|server| {
        for (path, body, param) in &refused {
            let what = body.to_string().chars().take(100).collect::<String>();
            assert_refused(&what, &server.post(path, body), 400, None, Some(*param));
        }
        let options = json!({ "num_predict": 1e30, "temperature": 0 });
        let body = json!({ "messages": [{ "role": "user", "content": "x" }], "options": options });
        let answer = server.post("/api/chat", &body);
        assert_eq!((answer.status, answer.json()["error"].is_string()), (400, true), "{}", answer.body);
    });
}

/// The response to a damaged request is either an answer, or an error object for an invalid request.
#[test]
fn damaged_requests_get_an_answer_or_an_error() {
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" }, "strict": true } }]);
    let messages = json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": [{ "type": "text", "text": "x" }] }]);
    let whole = [
        (
            CHAT,
            json!({ "model": MODEL, "messages": messages, "tools": tools, "tool_choice": "auto", "max_tokens": 4, "stream": false }),
        ),
        (
            RESPONSES,
            json!({ "model": MODEL, "input": messages, "text": { "format": { "type": "text" } }, "max_output_tokens": 4 }),
        ),
        (
            COMPLETIONS,
            json!({ "model": MODEL, "prompt": ["a", "b"], "max_tokens": 2, "logprobs": 1, "stop": ["z"], "echo": true }),
        ),
    ];
    shared_server().assert_survives(|server| {
        let mut random = Random::new(1);
        let mut refused = 0;
        for round in 0..240 {
            let (path, body) = &whole[round % whole.len()];
            let mut bytes = body.to_string().into_bytes();
            for _ in 0..=round % 3 {
                if bytes.is_empty() {
                    break;
                }
                let at = random.below(bytes.len());
                match random.below(5) {
                    0 => bytes[at] = random.bits() as u8,
                    1 => bytes[at] = b"{}[]\",:0-\\ntf "[random.below(14)],
                    2 => {
                        bytes.remove(at);
                    }
                    3 => bytes.insert(at, bytes[at]),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let answer = send(server, path, &bytes);
            let what = format!("round {round}: {}", String::from_utf8_lossy(&bytes));
            if answer.status != 200 {
                assert!([400, 404].contains(&answer.status), "{what}: {} {}", answer.status, answer.body);
                let error = &answer.json()["error"];
                assert!(error["message"].is_string() && error["type"] == "invalid_request_error", "{what}: {error}");
                refused += 1;
            }
        }
        assert!(refused > 100, "only {refused} damaged requests were refused");
    });
}
