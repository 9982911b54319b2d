//! Tests of answers with scripted turns instead of a model's. The code under test reads both in the same way.

use std::path::Path;

use harmony::{Function, Harmony};
use phase1_loading::{Checkpoint, Tokenizer};
use serde_json::{Map, Value, json};

use super::chat::{ChatAnswer, Head};
use super::responses::ResponseAnswer;
use super::runs::{Answer, Flow};
use super::stream::{Form, Frames};
use super::turn::Turn;
use crate::request::{Event, Finish};

pub const THINK_AND_CALL: &str = "<|channel|>analysis<|message|>Ask the tool.<|end|><|start|>assistant<|channel|>commentary\
    <|message|>I look.<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{\"a\": 1}<|call|>";
const THINK_AND_ANSWER: &str = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>One, two, three é.<|return|>";

pub fn tokenizer() -> Tokenizer {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/gptoss-tiny.gguf");
    Checkpoint::open(&file).expect("opens").tokenizer().expect("builds")
}

pub fn function() -> Function {
    Function { name: "f".into(), description: None, parameters: None }
}

/// Feeds the tokens of `text` to an answer and returns the frames that it writes. If `text` does not end with a stop token, the turn is cut
/// off by the token limit.
pub fn feed<A: Answer>(answer: &mut A, tokenizer: &Tokenizer, text: &str, form: Form) -> String {
    let mut frames = Frames::new(form);
    answer.begin(&mut frames);
    answer.take(0, Event::Started { cached_tokens: 5 }, &mut frames);
    let tokens = tokenizer.encode_with_control(text);
    let last = tokens.last().copied().filter(|last| tokenizer.stops().contains(last));
    for id in tokens {
        if answer.take(0, Event::Token { id, logprobs: None }, &mut frames) == Flow::Stop {
            answer.end(&mut frames);
            return frames.take();
        }
    }
    answer.take(0, Event::Finished(last.map_or(Finish::Length, Finish::Stop)), &mut frames);
    answer.end(&mut frames);
    frames.take()
}

fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

fn chat(tokenizer: &Tokenizer, text: &str, stops: &[&str]) -> (Value, Vec<Value>) {
    let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
    let answer = || {
        let harmony = Harmony::new(tokenizer).expect("harmony's control tokens");
        let head = Head {
            id: "chatcmpl-1".into(),
            created: 1,
            model: "m".into(),
            fingerprint: "fp".into(),
            prompt_tokens: 10,
            logprobs: false,
            include_reasoning: true,
            include_usage: true,
        };
        ChatAnswer::new(head, tokenizer, vec![Turn::new(&harmony, &[function()], &stops, &[])])
    };
    let mut whole = answer();
    assert_eq!(feed(&mut whole, tokenizer, text, Form::Silent), "");
    let streamed = feed(&mut answer(), tokenizer, text, Form::Data);
    assert!(streamed.ends_with("data: [DONE]\n\n"));
    (whole.whole(), events(&streamed))
}

/// The concatenated deltas of a choice.
fn joined(chunks: &[Value], field: &str) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
}

#[test]
fn chat_with_a_call_is_the_same_streamed_or_whole() {
    let (whole, chunks) = chat(&tokenizer(), THINK_AND_CALL, &[]);
    let choice = &whole["choices"][0];
    let message = &choice["message"];
    assert_eq!((&message["reasoning"], &message["content"]), (&json!("Ask the tool."), &json!("I look.")));
    assert_eq!(message["reasoning"], message["reasoning_content"]);
    let call = &message["tool_calls"][0];
    assert_eq!(call["function"], json!({ "name": "f", "arguments": "{\"a\": 1}" }));
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 5);

    assert_eq!(joined(&chunks, "reasoning"), "Ask the tool.");
    assert_eq!(joined(&chunks, "content"), "I look.");
    let calls: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0]).collect();
    let calls: Vec<&Value> = calls.into_iter().filter(|call| call.is_object()).collect();
    assert_eq!((&calls[0]["function"]["name"], &calls[0]["type"]), (&json!("f"), &json!("function")));
    assert!(calls[0]["id"].as_str().is_some_and(|id| id.starts_with("call_")));
    assert!(calls[1..].iter().all(|call| call["id"].is_null() && call["function"]["name"].is_null()));
    let arguments: String = calls.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, "{\"a\": 1}");
    let finishes = chunks.iter().filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str());
    assert_eq!(finishes.collect::<Vec<_>>(), ["tool_calls"]);
    let usage = &chunks[chunks.len() - 1]["usage"];
    assert_eq!(usage, &whole["usage"]);
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["usage"].is_null()));
}

#[test]
fn stop_strings_end_visible_text_only() {
    let tokenizer = tokenizer();
    // `sy.` occurs only in the reasoning.
    for (stop, text) in [(", th", "One, two"), ("two, three", "One, "), ("sy.", "One, two, three é."), ("One", "")] {
        let (whole, chunks) = chat(&tokenizer, THINK_AND_ANSWER, &[stop]);
        let choice = &whole["choices"][0];
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(text), &json!("stop")), "{stop}");
        assert_eq!(choice["message"]["reasoning"], "Easy.");
        assert_eq!(choice["stop_reason"].is_string(), stop != "sy.");
        assert_eq!(joined(&chunks, "content"), text, "{stop}");
    }
}

#[test]
fn truncated_text_and_calls_are_returned() {
    let tokenizer = tokenizer();
    let (whole, _) = chat(&tokenizer, "<|channel|>analysis<|message|>Let me th", &[]);
    let choice = &whole["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(null), &json!("length")));
    assert_eq!(choice["message"]["reasoning"], "Let me th");
    let (whole, _) = chat(&tokenizer, "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\"", &[]);
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\"");
    assert_eq!(choice["finish_reason"], "length");
    // Text without a header is shown to the user.
    let (whole, _) = chat(&tokenizer, "Hello there.<|end|>", &[]);
    assert_eq!(whole["choices"][0]["message"]["content"], "Hello there.");
}

fn response(tokenizer: &Tokenizer, text: &str) -> (Value, Vec<Value>) {
    let answer = || {
        let harmony = Harmony::new(tokenizer).expect("harmony's control tokens");
        let turn = Turn::new(&harmony, &[function()], &[], &[]);
        let shell = Map::from_iter([("id".to_owned(), json!("resp_1"))]);
        ResponseAnswer::new(shell, tokenizer, turn, false, 10, None)
    };
    let mut whole = answer();
    feed(&mut whole, tokenizer, text, Form::Silent);
    let streamed = feed(&mut answer(), tokenizer, text, Form::Events);
    (whole.ended(), events(&streamed))
}

#[test]
fn every_event_of_a_response_comes_in_order() {
    let (whole, events) = response(&tokenizer(), THINK_AND_CALL);
    let mut kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    kinds.dedup();
    let expected = "created in_progress \
        output_item.added content_part.added reasoning_text.delta reasoning_text.done content_part.done output_item.done \
        output_item.added content_part.added output_text.delta output_text.done content_part.done output_item.done \
        output_item.added function_call_arguments.delta function_call_arguments.done output_item.done completed";
    let expected: Vec<String> = expected.split_whitespace().map(|kind| format!("response.{kind}")).collect();
    assert_eq!(kinds, expected);
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["sequence_number"].as_u64()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());

    let done: Vec<&Value> = events.iter().filter(|event| event["type"] == "response.output_item.done").collect();
    let last = &events[events.len() - 1]["response"];
    for (index, done) in done.iter().enumerate() {
        assert_eq!(done["item"], last["output"][index]);
    }
    // Ids are random, so only the texts are compared with the answer without a stream.
    let texts = |response: &Value| {
        let items = response["output"].as_array().into_iter().flatten();
        let text = |item: &Value| item["content"][0]["text"].as_str().or(item["arguments"].as_str()).map(str::to_owned);
        items.map(text).collect::<Vec<_>>()
    };
    assert_eq!(texts(last), texts(&whole));
    let phases: Vec<&Value> = done.iter().map(|done| &done["item"]["phase"]).collect();
    assert_eq!(phases, [&Value::Null, &json!("commentary"), &Value::Null]);
    assert_eq!(
        whole["usage"]["output_tokens_details"]["reasoning_tokens"],
        last["usage"]["output_tokens_details"]["reasoning_tokens"]
    );
}

#[test]
fn truncated_response_is_incomplete() {
    let (whole, events) = response(&tokenizer(), "<|channel|>analysis<|message|>Let me th");
    assert_eq!((&whole["status"], &whole["output"][0]["status"]), (&json!("incomplete"), &json!("incomplete")));
    assert_eq!(whole["incomplete_details"], json!({ "reason": "max_output_tokens" }));
    assert_eq!(whole["output"][0]["content"][0]["text"], "Let me th");
    assert_eq!(events[events.len() - 1]["type"], "response.incomplete");
}
