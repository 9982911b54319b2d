//! The checks of OpenAI's compatibility test for gpt-oss (`compatibility-test` in openai/gpt-oss), with tools that the embedded model was
//! trained on: six tools with five questions each, five requests at a time, up to ten turns per answer.
//!
//! In OpenAI's test a case passes if the model calls the tool by its name, with arguments that match its schema, and its reasoning is
//! readable: in chats as `message.reasoning`, in responses as an item with `reasoning_text`. Here the model must also call the tool exactly
//! once, with the expected arguments, and then answer with text. Answers are sent back as OpenAI's Agents SDK, the client of that
//! test, sends them: with the reasoning, with `tool_calls: []` if there are no calls, and with unchanged items of responses.

#[path = "../http/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod http;
#[path = "../schema/mod.rs"]
mod schema;

use std::thread;

use http::{Answer, MODEL, Running};
use schema::fits;
use serde_json::{Value, json};
use serving::api::Settings;
use serving::worker::Options;

const MAX_TURNS: usize = 10;
const AT_ONCE: usize = 5;

struct Tool {
    name: &'static str,
    description: &'static str,
    /// Names and types of the tool's parameters, all of them required.
    parameters: &'static [(&'static str, &'static str)],
    result: &'static str,
    /// Questions that need the tool, and the arguments of the expected call.
    questions: [(&'static str, &'static str); 5],
}

static TOOLS: [Tool; 6] = [
    Tool {
        name: "get_weather",
        description: "Get the weather in a city.",
        parameters: &[("city", "string")],
        result: r#"{"temperature": 13, "sky": "stormy"}"#,
        questions: [
            ("Do I need an umbrella in Stockholm?", r#"{"city": "Stockholm"}"#),
            ("How is the weather in Dublin?", r#"{"city": "Dublin"}"#),
            ("Is it warm in Seattle?", r#"{"city": "Seattle"}"#),
            ("Weather in Santiago?", r#"{"city": "Santiago"}"#),
            ("How cold is it in Jakarta now?", r#"{"city": "Jakarta"}"#),
        ],
    },
    Tool {
        name: "get_time",
        description: "Get the time in a city.",
        parameters: &[("city", "string")],
        result: r#"{"time": "09:19"}"#,
        questions: [
            ("What time is it in Warsaw?", r#"{"city": "Warsaw"}"#),
            ("Tell me the time in Havana.", r#"{"city": "Havana"}"#),
            ("Can you check the clock in Lima?", r#"{"city": "Lima"}"#),
            ("What time is it now in Mumbai?", r#"{"city": "Mumbai"}"#),
            ("What is the time in Tbilisi?", r#"{"city": "Tbilisi"}"#),
        ],
    },
    Tool {
        name: "search",
        description: "Search for a topic.",
        parameters: &[("topic", "string")],
        result: r#"{"text": "There is a museum about glaciers in Helsinki."}"#,
        questions: [
            ("Search for gardens.", r#"{"topic": "gardens"}"#),
            ("Look up volcanoes for me.", r#"{"topic": "volcanoes"}"#),
            ("Search the web for sailing.", r#"{"topic": "sailing"}"#),
            ("What can you find about owls?", r#"{"topic": "owls"}"#),
            ("Find something about tea.", r#"{"topic": "tea"}"#),
        ],
    },
    Tool {
        name: "calculator",
        description: "Calculate an expression.",
        parameters: &[("expression", "string")],
        result: r#"{"result": 3360}"#,
        questions: [
            ("Please work out 6125 * 6575.", r#"{"expression": "6125 * 6575"}"#),
            ("Calculate 8673 - 8449.", r#"{"expression": "8673 - 8449"}"#),
            ("How much is 8668 - 1437?", r#"{"expression": "8668 - 1437"}"#),
            ("Use the calculator for 8352 + 8146.", r#"{"expression": "8352 + 8146"}"#),
            ("Compute 4086 - 5209 for me.", r#"{"expression": "4086 - 5209"}"#),
        ],
    },
    Tool {
        name: "set_timer",
        description: "Start a timer.",
        parameters: &[("minutes", "number")],
        result: r#"{"ok": true}"#,
        questions: [
            ("Remind me in 131 minutes.", r#"{"minutes": 131}"#),
            ("I need a timer for 3 minutes.", r#"{"minutes": 3}"#),
            ("Start a timer of 69 minutes.", r#"{"minutes": 69}"#),
            ("Wake me in 66 minutes.", r#"{"minutes": 66}"#),
            ("Please set a 149 minute timer.", r#"{"minutes": 149}"#),
        ],
    },
    Tool {
        name: "send_message",
        description: "Send a message to a person.",
        parameters: &[("to", "string"), ("text", "string")],
        result: r#"{"ok": true}"#,
        questions: [
            ("Tell Paul \"happy birthday\".", r#"{"to": "Paul", "text": "happy birthday"}"#),
            ("Write a message to Wanda: \"call me at 2\".", r#"{"to": "Wanda", "text": "call me at 2"}"#),
            ("Please text Greta: \"the meeting is at 1\".", r#"{"to": "Greta", "text": "the meeting is at 1"}"#),
            ("Please text Carmen: \"dinner is ready\".", r#"{"to": "Carmen", "text": "dinner is ready"}"#),
            ("Tell Otto \"happy birthday\".", r#"{"to": "Otto", "text": "happy birthday"}"#),
        ],
    },
];

impl Tool {
    fn schema(&self) -> Value {
        let properties: serde_json::Map<String, Value> =
            self.parameters.iter().map(|(name, kind)| ((*name).to_owned(), json!({ "type": kind }))).collect();
        let required: Vec<&str> = self.parameters.iter().map(|(name, _)| *name).collect();
        json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
    }

    fn function(&self) -> Value {
        json!({ "name": self.name, "description": self.description, "parameters": self.schema() })
    }
}

/// The API and mode of a request.
#[derive(Clone, Copy, Debug)]
enum Wire {
    Chat { stream: bool },
    Responses,
}

/// The model's reaction to one question.
#[derive(Default)]
struct Course {
    /// Names and arguments of its calls.
    calls: Vec<(String, String)>,
    /// Whether the reasoning was readable: one entry per turn of a chat, or per reasoning item of the responses.
    reasoned: Vec<bool>,
    text: String,
}

/// The message of a streamed chat, joined as clients join it. Ids and names are concatenated too, so the server must not repeat them.
fn joined(answer: &Answer) -> Value {
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::<[String; 3]>::new());
    for chunk in answer.events() {
        let delta = &chunk["choices"][0]["delta"];
        assert!(delta.is_object(), "a chunk without a choice: {chunk}");
        content += delta["content"].as_str().unwrap_or_default();
        reasoning += delta["reasoning"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().expect("an index") as usize;
            calls.resize(calls.len().max(index + 1), Default::default());
            let parts = [&call["id"], &call["function"]["name"], &call["function"]["arguments"]];
            for (joined, part) in calls[index].iter_mut().zip(parts) {
                *joined += part.as_str().unwrap_or_default();
            }
        }
    }
    let call = |[id, name, arguments]: &[String; 3]| {
        let function = json!({ "name": name, "arguments": arguments });
        json!({ "id": id, "type": "function", "function": function })
    };
    let content = if content.is_empty() { Value::Null } else { content.into() };
    json!({ "content": content, "reasoning": reasoning, "tool_calls": calls.iter().map(call).collect::<Vec<_>>() })
}

fn chat(server: &Running, question: &str, result: &str, stream: bool) -> Course {
    let tools: Value = TOOLS.iter().map(|tool| json!({ "type": "function", "function": tool.function() })).collect();
    let mut messages = vec![json!({ "role": "user", "content": question })];
    let mut course = Course::default();
    for _ in 0..MAX_TURNS {
        let body = json!({ "model": MODEL, "messages": messages, "tools": tools, "temperature": 0, "max_tokens": 200, "stream": stream });
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{question}: {}", answer.body);
        let message = if stream { joined(&answer) } else { answer.json()["choices"][0]["message"].clone() };
        let reasoning = message["reasoning"].as_str().unwrap_or_default();
        course.reasoned.push(!reasoning.is_empty());
        let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
        // The Agents SDK would ignore calls that come together with text.
        assert!(calls.is_empty() || message["content"].is_null(), "{question}: {message}");
        messages.push(
            json!({ "role": "assistant", "content": message["content"], "reasoning": reasoning, "tool_calls": calls }),
        );
        if calls.is_empty() {
            course.text = message["content"].as_str().unwrap_or_default().into();
            break;
        }
        for call in &calls {
            let part = |name: &str| call["function"][name].as_str().expect("text").to_owned();
            course.calls.push((part("name"), part("arguments")));
            assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")), "{call}");
            messages.push(json!({ "role": "tool", "tool_call_id": call["id"], "content": result }));
        }
    }
    // The conversation continues after the answer.
    messages.push(json!({ "role": "user", "content": "Thank you." }));
    let body = json!({ "model": MODEL, "messages": messages, "tools": tools, "temperature": 0, "max_tokens": 8 });
    let answer = server.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{question}: {}", answer.body);
    course
}

fn responses(server: &Running, question: &str, result: &str) -> Course {
    let flat = |tool: &Tool| {
        let mut flat = tool.function();
        flat["type"] = "function".into();
        flat["strict"] = false.into();
        flat
    };
    let tools: Value = TOOLS.iter().map(flat).collect();
    let mut items = vec![json!({ "role": "user", "content": question })];
    let mut course = Course::default();
    for _ in 0..MAX_TURNS {
        let body =
            json!({ "model": MODEL, "input": items, "tools": tools, "temperature": 0, "max_output_tokens": 200 });
        let answer = server.post("/v1/responses", &body);
        assert_eq!(answer.status, 200, "{question}: {}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["status"], "completed", "{answer}");
        let output = answer["output"].as_array().expect("items").clone();
        items.extend(output.iter().cloned());
        let has_called = course.calls.len();
        for item in &output {
            match item["type"].as_str().expect("a type") {
                "reasoning" => {
                    let parts = item["content"].as_array().expect("content");
                    let is_text = |part: &Value| {
                        part["type"] == "reasoning_text" && part["text"].as_str().is_some_and(|text| !text.is_empty())
                    };
                    course.reasoned.push(!parts.is_empty() && parts.iter().all(is_text));
                }
                "function_call" => {
                    let part = |name: &str| item[name].as_str().expect("text").to_owned();
                    course.calls.push((part("name"), part("arguments")));
                    items.push(json!({ "type": "function_call_output", "call_id": item["call_id"], "output": result }));
                }
                _ => course.text += item["content"][0]["text"].as_str().expect("text"),
            }
        }
        if course.calls.len() == has_called {
            break;
        }
    }
    course
}

fn all_cases_pass(wire: Wire) {
    let server = Running::start(Settings::default(), Options::default());
    let cases: Vec<(&Tool, &str, &str)> = TOOLS
        .iter()
        .flat_map(|tool| tool.questions.iter().map(move |(question, arguments)| (tool, *question, *arguments)))
        .collect();
    assert_eq!(cases.len(), 30);
    let pass = |(tool, question, wanted): (&Tool, &str, &str)| {
        let Course { calls, reasoned, text } = match wire {
            Wire::Chat { stream } => chat(&server, question, tool.result, stream),
            Wire::Responses => responses(&server, question, tool.result),
        };
        let [(name, arguments)] = &calls[..] else { panic!("{question}: {} calls", calls.len()) };
        assert_eq!(name, tool.name, "{question}");
        let arguments: Value = serde_json::from_str(arguments).expect("arguments in JSON");
        assert!(fits(&tool.schema(), &arguments), "{question}: {arguments}");
        assert_eq!(arguments, serde_json::from_str::<Value>(wanted).expect("JSON"), "{question}");
        // The turn with the call must have reasoning; in responses, no reasoning item may be empty.
        assert_eq!(reasoned.first(), Some(&true), "{question}");
        assert!(matches!(wire, Wire::Chat { .. }) || reasoned.iter().all(|&reasoned| reasoned), "{question}");
        assert!(!text.is_empty(), "{question}");
    };
    let pass = &pass;
    for cases in cases.chunks(AT_ONCE) {
        thread::scope(|scope| {
            for &case in cases {
                scope.spawn(move || pass(case));
            }
        });
    }
}

#[test]
fn chats_pass_the_compatibility_test() {
    all_cases_pass(Wire::Chat { stream: false });
}

#[test]
fn streamed_chats_pass_the_compatibility_test() {
    all_cases_pass(Wire::Chat { stream: true });
}

#[test]
fn whole_responses_pass_the_compatibility_test() {
    all_cases_pass(Wire::Responses);
}
