//! Asks the questions of `gptoss eval` through the API: arithmetic, facts told earlier, tool calls.
//!
//! The server writes the system message itself, with its own date. Everything after it must equal the question's tokens. In each suite, as
//! many answers must be right as without a server, up to `MARGIN`, and the first `COMPARED` answers must equal the engine's answers to the
//! same prompts.

#[path = "../http/mod.rs"]
#[allow(dead_code, reason = "each test uses a part of it")]
mod http;
mod question;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::thread;

use harmony::Harmony;
use http::{MODEL, Running, checkpoint, engine};
use phase1_loading::Tokenizer;
use phase2_forward::Engine;
use phase3_kvcache::{Generated, GenerationParams, generate};
use question::{Question, Reply, questions};
use serde_json::json;
use serving::api::Settings;
use serving::worker::Options;

const SUITES: [&str; 4] = ["arithmetic", "recall_near", "recall_far", "tools"];
/// Questions per suite, and how many of them are also given to the engine as the server renders them.
const QUESTIONS: usize = 40;
const COMPARED: usize = 10;
/// The number of answers per suite that may be right with one date and wrong with another.
const MARGIN: usize = 1;
const AT_ONCE: usize = 8;
/// The most tokens of an answer, over HTTP and without a server. `gptoss eval` allows more.
const MAX_TOKENS: usize = 192;

/// The result of a question over HTTP.
struct Answered {
    /// The prompt as the server renders it.
    prompt: Vec<u32>,
    reply: Reply,
    tokens: usize,
}

fn ask(server: &Running, question: &Question) -> Answered {
    let mut body = json!({ "model": MODEL, "messages": question.messages, "reasoning_effort": question.effort });
    if !question.tools.is_empty() {
        body["tools"] = question.tools.clone().into();
    }
    let prompt = server.post("/tokenize", &body).json()["tokens"].clone();
    body["temperature"] = 0.into();
    body["max_tokens"] = MAX_TOKENS.into();
    let answer = server.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = answer.json();
    let message = &answer["choices"][0]["message"];
    let call = message["tool_calls"].get(0).map(|call| {
        let part = |name: &str| call["function"][name].as_str().expect("text").to_owned();
        (part("name"), part("arguments"))
    });
    let reply = Reply { content: message["content"].as_str().unwrap_or_default().to_owned(), call };
    let tokens = answer["usage"]["completion_tokens"].as_u64().expect("a number") as usize;
    Answered { prompt: serde_json::from_value(prompt).expect("tokens"), reply, tokens }
}

/// The engine's answer without a server, and its number of tokens.
fn ask_engine(engine: &mut dyn Engine, tokenizer: &Tokenizer, prompt: &[u32]) -> (Reply, usize) {
    let params = GenerationParams {
        max_tokens: MAX_TOKENS,
        stop_tokens: tokenizer.stops().to_vec(),
        ..GenerationParams::default()
    };
    let generated = generate(engine, tokenizer, 0, &[], prompt, &params, &mut |_| ControlFlow::Continue(()));
    let Generated { tokens, .. } = generated.expect("a text");
    engine.release(0);
    let mut parser = Harmony::new(tokenizer).expect("control tokens").parser();
    tokens.iter().for_each(|&token| drop(parser.push(token)));
    parser.finish();
    let visible = parser.messages().iter().filter(|message| message.is_visible());
    let content = visible.map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n");
    let call = parser.messages().last().and_then(|last| Some((last.function()?.to_owned(), last.content.clone())));
    (Reply { content, call }, tokens.len())
}

#[test]
fn served_answers_equal_the_engines() {
    let tokenizer = checkpoint().tokenizer().expect("builds");
    let questions = questions(&tokenizer, &SUITES, QUESTIONS);
    assert_eq!(questions.len(), SUITES.len() * QUESTIONS);
    let server = Running::start(Settings::default(), Options::default());
    let mut answers: Vec<Answered> = Vec::new();
    for questions in questions.chunks(AT_ONCE) {
        let server = &server;
        answers.extend(thread::scope(|scope| {
            let asked: Vec<_> = questions.iter().map(|question| scope.spawn(move || ask(server, question))).collect();
            asked.into_iter().map(|asked| asked.join().expect("an answer")).collect::<Vec<_>>()
        }));
    }

    let end = tokenizer.control("<|end|>").expect("a control token");
    let after_system = |prompt: &[u32]| {
        let at = prompt.iter().position(|&token| token == end).expect("a message") + 1;
        prompt[at..].to_vec()
    };
    let mut engine = engine(None);
    // Number of right answers per suite: over HTTP, and of the engine for the prompt of `gptoss eval`.
    let mut right: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for (index, (question, answered)) in questions.iter().zip(&answers).enumerate() {
        let own = if question.has_system { after_system(&question.prompt) } else { question.prompt.clone() };
        assert_eq!(after_system(&answered.prompt), own, "{}", question.shown);
        if index % QUESTIONS < COMPARED {
            let (reply, tokens) = ask_engine(&mut engine, &tokenizer, &answered.prompt);
            assert_eq!((&reply, tokens), (&answered.reply, answered.tokens), "{}", question.shown);
        }
        let (reply, _) = ask_engine(&mut engine, &tokenizer, &question.prompt);
        let counts = right.entry(question.suite.as_str()).or_default();
        counts[0] += usize::from(question.is_met_by(&answered.reply));
        counts[1] += usize::from(question.is_met_by(&reply));
    }
    println!("right over HTTP and without: {right:?} of {QUESTIONS}");
    for (suite, [over_http, directly]) in right {
        // If few answers were right without the server, the comparison would show little.
        assert!(directly * 10 >= QUESTIONS * 9, "{suite}: {directly} of {QUESTIONS} are right");
        assert!(over_http + MARGIN >= directly, "{suite}: {over_http} are right over HTTP, {directly} without");
    }
}
