//! The HTTP API on a socket, with the model inside the program.

#[path = "../http/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod http;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use http::{Answer, MODEL, ResponseReader, Running};
use serde_json::{Value, json};
use serving::api::{Key, Settings};
use serving::worker::Options;

fn server() -> Running {
    Running::start(Settings::default(), Options::default())
}

fn ask(text: &str) -> Value {
    json!({ "model": MODEL, "messages": [{ "role": "user", "content": text }], "temperature": 0, "max_tokens": 200 })
}

fn with(mut body: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

#[test]
fn streamed_answer_equals_whole_answer() {
    let server = server();
    let whole = server.post("/v1/chat/completions", &ask("What is 47 + 38?"));
    assert_eq!(whole.status, 200, "{}", whole.body);
    let whole = whole.json();
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["content"], "47 + 38 = 85.");
    let usage = &whole["usage"];
    assert_eq!(
        usage["prompt_tokens"]
            .as_u64()
            .zip(usage["completion_tokens"].as_u64())
            .map(|(prompt, tokens)| prompt + tokens),
        usage["total_tokens"].as_u64()
    );

    let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let stream = server.post("/v1/chat/completions", &with(ask("What is 47 + 38?"), options));
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    assert!(stream.body.ends_with("data: [DONE]\n\n"));
    let chunks = stream.events();
    let joined = |field: &str| -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
    };
    assert_eq!(message["content"], joined("content"));
    assert_eq!(message["reasoning"].as_str().unwrap_or_default(), joined("reasoning"));
    let streamed = &chunks[chunks.len() - 1]["usage"];
    assert_eq!(streamed["completion_tokens"], usage["completion_tokens"]);
    assert_eq!(streamed["prompt_tokens"], usage["prompt_tokens"]);
    // The same prompt was computed before, but its last token is always computed again.
    let cached = streamed["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number");
    assert!(cached < streamed["prompt_tokens"].as_u64().expect("a number"));
}

#[test]
fn choices_depend_on_their_seeds() {
    let server = server();
    let body = with(ask("Tell me something."), json!({ "n": 3, "temperature": 1, "seed": 5, "max_tokens": 24 }));
    let texts = |body: &Value| {
        let answer = server.post("/v1/chat/completions", body).json();
        let choices = answer["choices"].as_array().expect("choices").clone();
        choices.into_iter().map(|choice| choice["message"].clone()).collect::<Vec<_>>()
    };
    let several = texts(&body);
    assert_eq!(several.len(), 3);
    assert_eq!(several[1], texts(&with(body, json!({ "n": 1, "seed": 6 })))[0]);
}

#[test]
fn every_refusal_is_an_error_object() {
    let settings = Settings { max_body: 100_000, ..Settings::default() };
    let server = Running::start(settings, Options::default());
    let chat = "/v1/chat/completions";
    let post = |path: &str, body: Value| server.post(path, &body);
    let image = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "data:," } }] }]);
    let not = json!({ "type": "object", "properties": { "a": { "not": {} } } });
    let tools = json!([{ "type": "function", "function": { "name": "f", "strict": true, "parameters": not } }]);
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": not } });
    let flat = json!({ "format": { "type": "json_schema", "name": "n", "schema": not } });
    let long = "word ".repeat(8000);
    #[rustfmt::skip]
    let refusals: Vec<(Answer, u16, Option<&str>, Option<&str>)> = vec![
        (server.get("/v1/nothing"), 404, Some("unknown_url"), None),
        (server.get(chat), 405, Some("method_not_allowed"), None),
        (server.send("POST", chat, &[], b"{"), 400, Some("invalid_json"), None),
        (server.send("POST", chat, &[], b"{\"model\": \"\xff\"}"), 400, Some("invalid_json"), None),
        (server.send("POST", chat, &[], &vec![b'x'; 1_000_000]), 413, Some("request_too_large"), None),
        (post(chat, json!({ "messages": "hi" })), 400, None, Some("messages")),
        (post(chat, json!({})), 400, None, Some("messages")),
        (post(chat, json!({ "messages": [] })), 400, None, Some("messages")),
        (post(chat, json!({ "messages": [{ "role": "wizard", "content": "x" }] })), 400, None, Some("messages[0].role")),
        (post(chat, json!({ "messages": image })), 400, None, Some("messages[0].content[0]")),
        (post(chat, with(ask("x"), json!({ "model": "other" }))), 404, Some("model_not_found"), Some("model")),
        (post(chat, with(ask("x"), json!({ "temperature": 3 }))), 400, None, Some("temperature")),
        (post(chat, with(ask("x"), json!({ "stop": 7 }))), 400, None, Some("stop")),
        (post(chat, with(ask("x"), json!({ "n": 0 }))), 400, None, Some("n")),
        (post(chat, with(ask("x"), json!({ "max_tokens": 0 }))), 400, None, Some("max_tokens")),
        (post(chat, with(ask("x"), json!({ "logit_bias": { "word": 1 } }))), 400, None, Some("logit_bias")),
        (post(chat, with(ask("x"), json!({ "top_logprobs": 2 }))), 400, None, Some("top_logprobs")),
        (post(chat, with(ask("x"), json!({ "logprobs": true, "top_logprobs": 21 }))), 400, None, Some("top_logprobs")),
        (post(chat, with(ask("x"), json!({ "stream_options": {} }))), 400, None, Some("stream_options")),
        (post(chat, with(ask("x"), json!({ "tool_choice": "required" }))), 400, None, Some("tool_choice")),
        (post(chat, with(ask("x"), json!({ "tools": tools, "tool_choice": "required" }))), 400, Some("unsupported_value"), Some("tools")),
        (post(chat, with(ask("x"), json!({ "response_format": format }))), 400, Some("unsupported_value"), Some("response_format")),
        (post(chat, ask(&long)), 400, Some("context_length_exceeded"), Some("messages")),
        (post("/v1/completions", json!({})), 400, None, Some("prompt")),
        (post("/v1/completions", json!({ "prompt": [] })), 400, None, Some("prompt")),
        (post("/v1/completions", json!({ "prompt": [4_000_000_000u32] })), 400, None, Some("prompt")),
        (post("/v1/completions", json!({ "prompt": "x", "suffix": "y" })), 400, Some("unsupported_value"), Some("suffix")),
        (post("/v1/completions", json!({ "prompt": "x", "n": 2, "best_of": 1 })), 400, None, Some("best_of")),
        (post("/v1/responses", json!({ "input": "x", "text": flat })), 400, Some("unsupported_value"), Some("text.format")),
        (post("/v1/responses", json!({ "model": MODEL })), 400, None, Some("input")),
        (post("/v1/responses", json!({ "input": "x", "previous_response_id": "resp_x" })), 404, None, Some("previous_response_id")),
        (post("/v1/responses", json!({ "input": "x", "background": true })), 400, Some("unsupported_value"), Some("background")),
        (server.get("/v1/responses/resp_x"), 404, None, Some("id")),
        (post("/v1/embeddings", json!({ "input": "x" })), 400, Some("unsupported_value"), Some("model")),
        (server.get("/v1/models/other"), 404, Some("model_not_found"), Some("model")),
    ];
    for (index, (answer, status, code, param)) in refusals.into_iter().enumerate() {
        let context = format!("refusal {index}: {}", answer.body);
        assert_eq!(answer.status, status, "{context}");
        let error = &answer.json()["error"];
        assert_eq!((error["code"].as_str(), error["param"].as_str()), (code, param), "{context}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{context}");
        assert!(error["type"].is_string() && answer.header("x-request-id").is_some(), "{context}");
    }
    let message = format!("The model `other` does not exist; this server has `{MODEL}`.");
    assert_eq!(server.post("/api/chat", &json!({ "model": "other" })).json()["error"], message);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn api_keys_and_origins_are_checked() {
    let key = Key { name: "ada".into(), secret: "sesame".into() };
    let settings = Settings { keys: vec![key], origins: vec!["https://a.example".into()], ..Settings::default() };
    let server = Running::start(settings, Options::default());
    let get = |path: &str, headers: &[(&str, &str)]| server.send("GET", path, headers, b"");
    let refused = get("/v1/models", &[("authorization", "Bearer open")]);
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
    assert_eq!(get("/metrics", &[]).status, 401);
    let bearer = ("authorization", "Bearer sesame");
    assert_eq!(get("/v1/models", &[bearer]).json()["data"][0]["id"], MODEL);
    assert_eq!((get("/health", &[]).status, get("/", &[]).status), (200, 200));

    assert_eq!(get("/v1/models", &[bearer, ("origin", "https://evil.example")]).status, 403);
    let allowed = get("/v1/models", &[bearer, ("origin", "https://a.example"), ("x-request-id", "mine-1")]);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(allowed.header("x-request-id"), Some("mine-1"));
    let preflight = [("origin", "https://a.example"), ("access-control-request-method", "POST")];
    let preflight = server.send("OPTIONS", "/v1/chat/completions", &preflight, b"");
    assert_eq!(preflight.status, 204);
    assert!(preflight.header("access-control-allow-headers").is_some_and(|headers| headers.contains("authorization")));
}

/// Checks that no request is running or waiting any longer; `tests/abuse` checks the pages.
#[test]
fn disconnecting_frees_the_requests_cache() {
    let server = server();
    let endless = json!({ "stream": true, "ignore_eos": true, "temperature": 1, "max_tokens": null });
    let body = with(ask("Tell me everything."), endless).to_string();
    for _ in 0..3 {
        let mut reading = server.open("POST", "/v1/chat/completions", &[], body.as_bytes());
        assert_eq!(reading.status, 200);
        assert!(reading.piece().is_some() && reading.piece().is_some());
    }
    server.wait_for("vllm:num_requests_running", 0.0);
    server.wait_for("vllm:num_requests_waiting", 0.0);
    assert!(server.app.is_idle());
}

#[test]
fn answer_beyond_its_deadline_is_ended() {
    let settings = Settings { answer_time: Some(Duration::from_millis(50)), ..Settings::default() };
    let server = Running::start(settings, Options::default());
    let endless = with(ask("Tell me everything."), json!({ "ignore_eos": true, "temperature": 1, "max_tokens": null }));
    let late = server.post("/v1/chat/completions", &endless);
    assert_eq!((late.status, late.header("x-should-retry")), (504, Some("false")), "{}", late.body);
    assert_eq!(late.json()["error"]["code"], "timeout");
    let stream = server.post("/v1/chat/completions", &with(endless, json!({ "stream": true })));
    assert_eq!(stream.events().last().expect("an event")["error"]["code"], "timeout");
    assert!(stream.body.ends_with("data: [DONE]\n\n"));
    server.wait_for("vllm:num_requests_running", 0.0);
}

/// A deadline that has passed before the first token.
#[test]
fn a_response_that_fails_says_so_in_its_last_event() {
    let settings = Settings { answer_time: Some(Duration::from_nanos(1)), ..Settings::default() };
    let server = Running::start(settings, Options::default());
    let events = server.post("/v1/responses", &json!({ "input": "Tell me a story.", "stream": true })).events();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds, ["response.created", "response.in_progress", "response.failed"]);
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["sequence_number"].as_u64()).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let response = &events[2]["response"];
    assert_eq!((&response["status"], &response["error"]["code"]), (&json!("failed"), &json!("server_error")));
    assert!(response["error"]["message"].as_str().is_some_and(|message| message.contains("longer")), "{response}");
    // The failed response is not stored.
    let id = response["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/v1/responses/{id}")).status, 404);

    let lines = server.post("/api/generate", &json!({ "prompt": "Tell me a story." })).body;
    let last: Value = serde_json::from_str(lines.lines().last().expect("a line")).expect("JSON");
    assert!(last["error"].as_str().is_some_and(|message| message.contains("longer")), "{lines}");
}

/// A page of another site whose name was made to resolve to this machine: its origin equals the host.
#[test]
fn names_of_other_sites_are_not_trusted() {
    let status = |server: &Running, host: &str| {
        let mut stream = TcpStream::connect(server.address).expect("connects");
        let head = format!("host: {host}\r\norigin: http://{host}\r\nconnection: close");
        write!(stream, "GET /v1/models HTTP/1.1\r\n{head}\r\n\r\n").expect("it reads");
        ResponseReader::begin(stream).finish().status
    };
    let closed = Settings { origins: vec!["http://chat.example".into()], ..Settings::default() };
    let server = Running::start(closed, Options::default());
    for (host, expected) in
        [("evil.example:8080", 403), ("localhost:8080", 200), ("127.0.0.1", 200), ("chat.example", 200)]
    {
        assert_eq!(status(&server, host), expected, "{host}");
    }
    // A page of another site does not know the key.
    let keys = vec![Key { name: "ada".into(), secret: "sesame".into() }];
    let server = Running::start(Settings { keys, ..Settings::default() }, Options::default());
    assert_eq!(status(&server, "evil.example"), 401);
}

#[test]
fn stopping_server_finishes_running_answers() {
    let mut server = server();
    let mut reading = server.open(
        "POST",
        "/v1/chat/completions",
        &[],
        with(ask("What is 2 + 2?"), json!({ "stream": true })).to_string().as_bytes(),
    );
    assert!(reading.piece().is_some());
    server.stop();
    assert!(reading.finish().body.ends_with("data: [DONE]\n\n"));
    server.wait();
}

#[test]
fn loading_server_reports_its_state() {
    let server = Running::starting(Settings::default());
    let health = server.get("/health");
    assert_eq!((health.status, health.header("retry-after")), (503, Some("2")));
    assert_eq!(server.post("/v1/chat/completions", &ask("x")).status, 503);
    assert_eq!(server.get("/version").status, 200);
}

#[test]
fn completions_accept_texts_and_tokens() {
    let server = server();
    let tokens = server.post("/tokenize", &json!({ "content": "Hello there" })).json()["tokens"].clone();
    assert_eq!(server.post("/detokenize", &json!({ "tokens": tokens })).json()["content"], "Hello there");
    let body = json!({ "model": MODEL, "prompt": "Hello there", "temperature": 0, "max_tokens": 8, "n": 2 });
    let text = server.post("/v1/completions", &body).json();
    assert_eq!(text["choices"].as_array().map(Vec::len), Some(2));
    let answer =
        server.post("/v1/completions", &with(body.clone(), json!({ "prompt": [tokens, tokens], "n": 1 }))).json();
    for choice in 0..2 {
        assert_eq!(answer["choices"][choice]["text"], text["choices"][choice]["text"]);
        assert_eq!(answer["choices"][choice]["index"], choice);
    }
    let echo = server.post("/v1/completions", &with(body.clone(), json!({ "echo": true, "n": 1 }))).json();
    let expected = format!("Hello there{}", text["choices"][0]["text"].as_str().expect("text"));
    assert_eq!(echo["choices"][0]["text"], expected);
    let only = server.post("/v1/completions", &with(body, json!({ "echo": true, "n": 1, "max_tokens": 0 }))).json();
    assert_eq!((&only["choices"][0]["text"], &only["usage"]["completion_tokens"]), (&json!("Hello there"), &json!(0)));
}

#[test]
fn responses_continue_previous_ones() {
    let server = server();
    let first =
        server.post("/v1/responses", &json!({ "input": "What is 2 + 3?", "temperature": 0, "metadata": { "k": "v" } }));
    assert_eq!(first.status, 200, "{}", first.body);
    let first = first.json();
    assert_eq!((&first["status"], &first["metadata"]["k"]), (&json!("completed"), &json!("v")));
    let id = first["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/v1/responses/{id}")).json()["output"], first["output"]);
    let input = server.get(&format!("/v1/responses/{id}/input_items")).json();
    assert_eq!(input["data"][0]["content"][0]["text"], "What is 2 + 3?");

    let second = json!({ "input": "And 4 + 4?", "temperature": 0, "previous_response_id": id, "stream": true });
    let events = server.post("/v1/responses", &second).events();
    let last = &events[events.len() - 1];
    assert_eq!(last["type"], "response.completed");
    assert_eq!(last["response"]["previous_response_id"], id);
    let tokens = |response: &Value| response["usage"]["input_tokens"].as_u64().expect("a number");
    assert!(tokens(&last["response"]) > tokens(&first) + 3);

    assert_eq!(server.send("DELETE", &format!("/v1/responses/{id}"), &[], b"").json()["deleted"], true);
    assert_eq!(server.get(&format!("/v1/responses/{id}")).status, 404);
}

#[test]
fn ollama_routes_answer() {
    let server = server();
    assert_eq!(server.get("/api/tags").json()["models"][0]["name"], MODEL);
    let body = json!({ "model": format!("{MODEL}:latest"), "messages": [{ "role": "user", "content": "What is 2 + 2?" }],
                       "options": { "temperature": 0 } });
    let lines = server.post("/api/chat", &body);
    assert_eq!(lines.header("content-type"), Some("application/x-ndjson"));
    let lines: Vec<Value> = lines.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let joined: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    let whole = server.post("/api/chat", &with(body, json!({ "stream": false }))).json();
    assert_eq!(whole["message"]["content"], joined);
    assert_eq!((&whole["done"], &whole["done_reason"]), (&json!(true), &json!("stop")));
    let generate =
        json!({ "model": MODEL, "prompt": "What is 2 + 2?", "stream": false, "options": { "temperature": 0 } });
    assert_eq!(server.post("/api/generate", &generate).json()["response"], joined);
}

/// Biases that make the model end its reasoning at once, and then answer or call `f`.
fn in_haste() -> Value {
    let tokenizer = http::checkpoint().tokenizer().expect("builds");
    let mut tokens: Vec<u32> = [" to=functions.f", "final"].map(|text| tokenizer.encode(text)[0]).to_vec();
    tokens.extend(["<|end|>", "<|return|>", "<|call|>"].map(|name| tokenizer.control(name).expect("a control token")));
    tokens.into_iter().map(|token| (token.to_string(), json!(100))).collect::<serde_json::Map<_, _>>().into()
}

#[test]
fn answers_and_arguments_match_their_schemas() {
    let server = server();
    let schema = json!({
        "type": "object",
        "properties": { "sure": { "type": "boolean" }, "word": { "enum": ["yes", "no"] } },
        "required": ["sure", "word"],
        "additionalProperties": false,
    });
    let check = |text: &Value| {
        let value: Value = serde_json::from_str(text.as_str().expect("text")).expect("JSON");
        let members = value.as_object().expect("an object");
        assert_eq!(members.keys().collect::<Vec<_>>(), ["sure", "word"], "{value}");
        assert!(members["sure"].is_boolean() && (value["word"] == "yes" || value["word"] == "no"), "{value}");
    };
    let chat = |fields: Value| {
        let haste = json!({ "logit_bias": in_haste(), "max_tokens": 1000 });
        let answer = server.post("/v1/chat/completions", &with(with(ask("Is it so?"), haste), fields));
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["choices"][0].clone()
    };
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "verdict", "schema": schema, "strict": true } });
    let choice = chat(json!({ "response_format": format, "ignore_eos": true }));
    assert_eq!(choice["finish_reason"], "stop", "{choice}");
    check(&choice["message"]["content"]);

    let function = |strict: bool| json!({ "name": "f", "parameters": schema, "strict": strict });
    let tools = |strict: bool| json!([{ "type": "function", "function": function(strict) }]);
    let named = json!({ "type": "function", "function": { "name": "f" } });
    for fields in [
        json!({ "tools": tools(false), "tool_choice": "required", "parallel_tool_calls": true }),
        json!({ "tools": tools(false), "tool_choice": named }),
        json!({ "tools": tools(true) }),
    ] {
        let choice = chat(fields.clone());
        // Without a forced call, the model may also answer.
        let is_forced = fields.get("tool_choice").is_some();
        assert!(choice["finish_reason"] == "tool_calls" || !is_forced, "{choice}");
        if let Some(call) = choice["message"]["tool_calls"].get(0) {
            assert_eq!(call["function"]["name"], "f");
            check(&call["function"]["arguments"]);
        }
    }
}

/// Without biases the JSON may be incomplete, but it is a prefix of valid JSON for the schema.
#[test]
fn every_endpoint_accepts_a_schema() {
    let server = server();
    let schema = json!({ "enum": ["yes", "no"] });
    let schema =
        json!({ "type": "object", "properties": { "a": schema }, "required": ["a"], "additionalProperties": false });
    let is_beginning = |text: &str| {
        let text: String = text.split_whitespace().collect();
        ["{\"a\":\"yes\"}", "{\"a\":\"no\"}"].iter().any(|whole| whole.starts_with(&text))
    };
    let flat = json!({ "format": { "type": "json_schema", "name": "n", "schema": schema } });
    let body = json!({ "input": "What is 2 + 2?", "text": flat, "temperature": 0, "max_output_tokens": 300 });
    let response = server.post("/v1/responses", &body);
    assert_eq!(response.status, 200, "{}", response.body);
    let response = response.json();
    for item in response["output"].as_array().expect("items").iter().filter(|item| item["type"] == "message") {
        let text = item["content"][0]["text"].as_str().expect("text");
        assert!(is_beginning(text), "{text}");
    }
    assert!(response["output"].as_array().is_some_and(|items| !items.is_empty()), "{response}");

    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "What is 2 + 2?" }], "format": schema,
                       "stream": false, "options": { "temperature": 0, "num_predict": 300 } });
    let answer = server.post("/api/chat", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let text = answer.json()["message"]["content"].as_str().expect("text").to_owned();
    assert!(is_beginning(&text), "{text}");
    let refused = server.post("/api/chat", &with(body, json!({ "format": "yaml" })));
    assert_eq!(refused.status, 400, "{}", refused.body);
}

/// A prompt is refused without being encoded if its bytes cannot fit into the context even in the longest tokens, and only then.
#[test]
fn too_long_prompt_is_refused_without_encoding() {
    let server = server();
    let model = server.app.loaded().expect("a model");
    let (tokenizer, context) = (&model.tokenizer, model.handle.context());
    let tokens = (0..tokenizer.vocab() as u32).filter_map(|token| tokenizer.token_bytes(token));
    let longest = tokens.filter(|bytes| bytes.contains(&b'x')).map(<[u8]>::len).max().expect("a token with an x");
    let fits_at_best = "x".repeat(longest * (context - 1));
    let encoded = tokenizer.encode_with_control(&fits_at_best).len();
    for (text, count) in
        [(fits_at_best.clone(), encoded.to_string()), (fits_at_best.clone() + "x", format!("at least {context}"))]
    {
        let refused = server.post("/v1/completions", &json!({ "prompt": text }));
        let expected =
            format!("This model's maximum context length is {context} tokens, and the prompt has {count}. Shorten it.");
        assert_eq!((refused.status, &refused.json()["error"]["message"]), (400, &Value::from(expected)));
    }
    // If the beginning may be truncated, the prompt is accepted.
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let input =
        [message("user", &fits_at_best.repeat(2)), message("assistant", "Yes."), message("user", "What is 2 + 2?")];
    let mut body = json!({ "input": input, "truncation": "auto", "temperature": 0, "max_output_tokens": 200 });
    let answer = server.post("/v1/responses", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    body["truncation"] = "disabled".into();
    assert_eq!(server.post("/v1/responses", &body).json()["error"]["code"], "context_length_exceeded");
}
