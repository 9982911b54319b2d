//! A held-out question: its rendered conversation, and the request by which a client would ask it.

use std::path::Path;

use harmony::{Harmony, Role};
use phase1_loading::Tokenizer;
use regex::Regex;
use serde_json::{Map, Value, json};

pub struct Question {
    pub suite: String,
    /// The text of the prompt, for failures.
    pub shown: String,
    pub prompt: Vec<u32>,
    pub has_system: bool,
    pub effort: String,
    pub messages: Vec<Value>,
    pub tools: Vec<Value>,
    expected: Value,
}

/// What the model said: what a user reads, and the call at the end by name and arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub content: String,
    pub call: Option<(String, String)>,
}

/// The first questions of each suite.
pub fn questions(tokenizer: &Tokenizer, suites: &[&str], count: usize) -> Vec<Question> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reference/tiny/heldout.json");
    let all: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).expect("readable")).expect("JSON");
    let of_suite = |suite: &&str| {
        let suite = (*suite).to_owned();
        all.iter().filter(move |question| question["suite"] == suite.as_str()).take(count)
    };
    suites.iter().flat_map(of_suite).map(|question| Question::read(tokenizer, question)).collect()
}

impl Question {
    fn read(tokenizer: &Tokenizer, question: &Value) -> Question {
        let harmony = Harmony::new(tokenizer).expect("control tokens");
        let text = |name: &str| question[name].as_str().expect("text").to_owned();
        let prompt = tokenizer.encode_with_control(&text("prompt"));
        let said = prompt.strip_suffix(&harmony.opening()[..]).expect("the assistant is next");
        let (mut has_system, mut effort) = (false, "medium".to_owned());
        let (mut messages, mut tools) = (Vec::new(), Vec::new());
        for message in harmony.parse_conversation(said).expect("a conversation") {
            let content = message.content;
            match message.role {
                Role::System => {
                    has_system = true;
                    let line = content.lines().find_map(|line| line.strip_prefix("Reasoning: "));
                    effort = line.expect("an effort").to_owned();
                }
                Role::Developer => {
                    let (instructions, functions) = developer(&content);
                    messages.extend(instructions.map(|text| json!({ "role": "developer", "content": text })));
                    tools = functions;
                }
                Role::User => messages.push(json!({ "role": "user", "content": content })),
                Role::Assistant => {
                    assert_eq!(message.channel.as_deref(), Some("final"));
                    messages.push(json!({ "role": "assistant", "content": content }));
                }
                Role::Tool => panic!("a result of a tool, which no suite here has"),
            }
        }
        let expected = question["expected"].clone();
        Question { suite: text("suite"), shown: text("prompt"), prompt, has_system, effort, messages, tools, expected }
    }

    /// Whether an answer is right, by the rules of `gptoss eval`.
    pub fn is_met_by(&self, said: &Said) -> bool {
        if let Some(number) = self.expected["number"].as_i64() {
            return last_number(&said.content) == Some(number);
        }
        if let Some(words) = self.expected["contains"].as_str() {
            return contains_words(&said.content, words);
        }
        let arguments = |text: &str| serde_json::from_str::<Map<String, Value>>(text).ok();
        let wanted = self.expected["arguments"].as_object().expect("arguments");
        let is_wanted = |(name, found): &(String, String)| {
            self.expected["name"] == name.as_str() && arguments(found).as_ref() == Some(wanted)
        };
        said.call.as_ref().is_some_and(is_wanted)
    }
}

/// What a developer message says: instructions, and the functions that it declares as OpenAI's tools.
fn developer(text: &str) -> (Option<String>, Vec<Value>) {
    let (instructions, declared) = match text.split_once("# Tools\n") {
        Some((before, after)) => (before.trim_end(), after),
        None => (text, ""),
    };
    let function = Regex::new(r"(?s)// ([^\n]*)\ntype (\w+) = \(_: \{\n(.*?)\}\) => any;").expect("a pattern");
    let tools: Vec<Value> = function
        .captures_iter(declared)
        .map(|found| {
            let members =
                found[3].lines().map(|line| line.trim_end_matches(',').split_once(": ").expect("a parameter"));
            let members: Vec<(&str, &str)> = members.collect();
            let properties: Map<String, Value> =
                members.iter().map(|(name, kind)| ((*name).to_owned(), json!({ "type": kind }))).collect();
            let required: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
            let parameters = json!({ "type": "object", "properties": properties, "required": required });
            let function = json!({ "name": &found[2], "description": &found[1], "parameters": parameters });
            json!({ "type": "function", "function": function })
        })
        .collect();
    assert_eq!(tools.len(), declared.matches("\ntype ").count(), "{text}");
    let instructions = instructions.strip_prefix("# Instructions\n\n").map(str::to_owned);
    (instructions, tools)
}

fn last_number(text: &str) -> Option<i64> {
    let number = Regex::new("-?[0-9]+").expect("a pattern");
    number.find_iter(text).last()?.as_str().parse().ok()
}

/// Whether `words` stand in a text without letters or digits attached.
fn contains_words(text: &str, words: &str) -> bool {
    let alone =
        Regex::new(&format!(r"(^|[^\p{{Alphabetic}}\p{{N}}]){}($|[^\p{{Alphabetic}}\p{{N}}])", regex::escape(words)));
    alone.expect("a pattern").is_match(text)
}
