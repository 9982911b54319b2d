//! An agent's loop of 20 requests over HTTP: each repeats the whole conversation, and no prompt token is computed twice.

#[path = "../http/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod http;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{MODEL, Running, engine};
use phase2_forward::{Engine, EngineError, Input, Ticket, Work, delegate_engine};
use phase5_flash::CpuEngine;
use serde_json::{Value, json};
use serving::api::Settings;
use serving::worker::Options;

const TURNS: usize = 20;

/// An engine that counts the prompt tokens that it is fed; tokens that it drew itself are not counted.
struct Counting {
    inner: CpuEngine,
    read: Arc<AtomicUsize>,
}

impl Engine for Counting {
    delegate_engine!(inner: config, capacity, length, collect, fork, truncate, release);

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        let ticket = self.inner.submit(work)?;
        let named = |item: &Work<'_>| match item.input {
            Input::Tokens(tokens) => tokens.len(),
            Input::Drawn => 0,
        };
        self.read.fetch_add(work.iter().map(named).sum(), Ordering::Relaxed);
        Ok(ticket)
    }
}

/// One turn of the model.
struct Turn {
    prompt: Vec<u32>,
    /// Prompt tokens that `usage` reports as cached, and those that the engine was fed.
    cached: usize,
    read: usize,
    /// The model's message, without ids.
    message: Value,
}

fn tools() -> Value {
    let tool = |name: &str, description: &str, parameter: &str, kind: &str| {
        let parameters =
            json!({ "type": "object", "properties": { parameter: { "type": kind } }, "required": [parameter] });
        let function = json!({ "name": name, "description": description, "parameters": parameters });
        json!({ "type": "function", "function": function })
    };
    json!([
        tool("get_weather", "Get the weather in a city.", "city", "string"),
        tool("calculator", "Calculate an expression.", "expression", "string"),
        tool("timer", "Start a timer.", "minutes", "number"),
        tool("search", "Search for a topic.", "topic", "string"),
    ])
}

const QUESTIONS: [&str; 6] = [
    "Do I need an umbrella in Stockholm?",
    "Set a timer for 31 minutes.",
    "What's the weather like in Paris?",
    "Calculate 12 + 30 with the tool.",
    "Search for owls.",
    "How is the weather in Rome?",
];

/// The loop: a question, a tool call, its result, the model's answer, the next question.
fn turns(prefix_cache: bool) -> Vec<Turn> {
    let read = Arc::new(AtomicUsize::new(0));
    let counting = Counting { inner: engine(None), read: read.clone() };
    let options = Options { prefix_cache, ..Options::default() };
    let server = Running::start_on(Box::new(counting), Settings::default(), options);
    let mut messages = vec![json!({ "role": "system", "content": "Be friendly." })];
    let mut questions = QUESTIONS.iter().cycle();
    let mut turns = Vec::new();
    for number in 0..TURNS {
        let has_result = messages.last().is_some_and(|message| message["role"] == "tool");
        if !has_result {
            messages.push(json!({ "role": "user", "content": questions.next() }));
        }
        let asked = json!({ "model": MODEL, "messages": messages, "tools": tools() });
        let prompt = server.post("/tokenize", &asked).json()["tokens"].clone();
        let prompt: Vec<u32> = serde_json::from_value(prompt).expect("tokens");
        let mut body = asked;
        body["temperature"] = 0.into();
        body["max_tokens"] = 120.into();
        let choice = if has_result { "auto" } else { "required" };
        body["tool_choice"] = choice.into();
        let before = read.load(Ordering::Relaxed);
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        let usage = &answer["usage"];
        assert_eq!(usage["prompt_tokens"], prompt.len(), "turn {number}");
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number") as usize;
        let read = read.load(Ordering::Relaxed) - before;

        let mut message = answer["choices"][0]["message"].clone();
        messages.push(message.clone());
        for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
            let id = call["id"].take();
            messages
                .push(json!({ "role": "tool", "tool_call_id": id, "content": format!("{{\"result\": {number}}}") }));
        }
        turns.push(Turn { prompt, cached, read, message });
    }
    let total: usize = turns.iter().map(|turn| turn.cached).sum();
    assert_eq!(server.metric("vllm:prompt_tokens_cached_total", ""), total as f64);
    turns
}

#[test]
fn twenty_turns_compute_no_prompt_token_twice() {
    let cached = turns(true);
    let mut before: &[u32] = &[];
    for (number, Turn { prompt, cached, read, .. }) in cached.iter().enumerate() {
        let shared = before.iter().zip(prompt).take_while(|(before, now)| before == now).count();
        let what = format!("turn {number}: {} tokens, {shared} as before, {cached} cached, {read} read", prompt.len());
        assert!(number == 0 || shared > 64, "{what}");
        assert!(*cached >= shared, "{what}");
        assert_eq!(cached + read, prompt.len(), "{what}");
        before = prompt;
    }
    let calls = cached.iter().filter(|turn| turn.message["tool_calls"].is_array()).count();
    assert!(calls >= 5, "{calls} calls");
    let (prompts, read) =
        cached.iter().fold((0, 0), |(prompts, read), turn| (prompts + turn.prompt.len(), read + turn.read));
    assert!(read * 3 < prompts, "{read} of {prompts} tokens were read");

    // Without the cache all prompts are computed, and the text is the same.
    for (number, (cached, cold)) in cached.iter().zip(turns(false)).enumerate() {
        assert_eq!((cold.cached, cold.read), (0, cold.prompt.len()), "turn {number}");
        assert_eq!(cached.message, cold.message, "turn {number}");
        assert_eq!(cached.prompt, cold.prompt, "turn {number}");
    }
}
