//! A held-out question: its rendered conversation, and the request with which a client would ask it.

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

/// The model's answer: the text that a user reads, and the name and arguments of the call at its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub content: String,
    pub call: Option<(String, String)>,
}

/// The first questions of each suite that can be expressed as a client's request: those that [`Question::read`] can parse.
pub fn questions(tokenizer: &Tokenizer, suites: &[&str], count: usize) -> Vec<Question> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reference/tiny/heldout.json");
    let all: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).expect("readable")).expect("JSON");
    let of_suite = |suite: &&str| {
        let suite = (*suite).to_owned();
        let questions = all.iter().filter(move |question| question["suite"] == suite.as_str());
        questions.filter_map(|question| Question::read(tokenizer, question)).take(count)
    };
    suites.iter().flat_map(of_suite).collect()
}

impl Question {
    /// `None` if the question declares functions that [`developer`] cannot parse, or has a developer message after messages other than the
    /// system message.
    fn read(tokenizer: &Tokenizer, question: &Value) -> Option<Question> {
        let harmony = Harmony::new(tokenizer).expect("control tokens");
        let text = |name: &str| question[name].as_str().expect("text").to_owned();
        let prompt = tokenizer.encode_with_control(&text("prompt"));
        let conversation = prompt
            .strip_suffix(&harmony.generation_prompt()[..])
            .expect("the prompt ends where the assistant continues");
        let (mut has_system, mut effort) = (false, "medium".to_owned());
        let (mut messages, mut tools) = (Vec::new(), Vec::new());
        for message in harmony.parse_conversation(conversation).expect("a conversation") {
            let content = message.content;
            match message.role {
                Role::System => {
                    has_system = true;
                    let line = content.lines().find_map(|line| line.strip_prefix("Reasoning: "));
                    effort = line.expect("an effort").to_owned();
                }
                // A client's functions are declared at the beginning.
                Role::Developer if !messages.is_empty() => return None,
                Role::Developer => {
                    let (instructions, functions) = developer(&content)?;
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
        let (suite, shown) = (text("suite"), text("prompt"));
        Some(Question { suite, shown, prompt, has_system, effort, messages, tools, expected })
    }

    /// Whether an answer is right, by the rules of `gptoss eval`.
    pub fn is_met_by(&self, reply: &Reply) -> bool {
        if let Some(number) = self.expected["number"].as_i64() {
            return last_number(&reply.content) == Some(number);
        }
        if let Some(words) = self.expected["contains"].as_str() {
            return contains_words(&reply.content, words);
        }
        let arguments = |text: &str| serde_json::from_str::<Map<String, Value>>(text).ok();
        let wanted = self.expected["arguments"].as_object().expect("arguments");
        let is_wanted = |(name, found): &(String, String)| {
            self.expected["name"] == name.as_str() && arguments(found).as_ref() == Some(wanted)
        };
        reply.call.as_ref().is_some_and(is_wanted)
    }
}

/// The instructions of a developer message, and the functions that it declares, as OpenAI's tools. `None` if the declarations have a line
/// or a parameter type that is not supported here, such as an object.
fn developer(text: &str) -> Option<(Option<String>, Vec<Value>)> {
    let (instructions, declared) = match text.split_once("# Tools\n") {
        Some((before, after)) => (before.trim_end(), after),
        None => (text, ""),
    };
    let begin = Regex::new(r"^type (\w+) = \((_: \{|\) => any;)$").expect("a pattern");
    let member = Regex::new(r"^(\w+)(\??): (.+?),(?: // default: (.*))?$").expect("a pattern");
    let mut tools: Vec<Value> = Vec::new();
    // The comment above a function or a parameter.
    let mut comment = None;
    for line in declared.lines() {
        if let Some(text) = line.strip_prefix("// ") {
            comment = Some(text);
        } else if let Some(found) = begin.captures(line) {
            let parameters = json!({ "type": "object", "properties": {}, "required": [] });
            let mut function = json!({ "name": &found[1], "parameters": parameters });
            if let Some(text) = comment.take() {
                function["description"] = text.into();
            }
            tools.push(json!({ "type": "function", "function": function }));
        } else if let Some(found) = member.captures(line) {
            let parameters = &mut tools.last_mut()?["function"]["parameters"];
            let mut schema = schema(&found[3])?;
            if let Some(text) = comment.take() {
                schema["description"] = text.into();
            }
            if let Some(default) = found.get(4) {
                let text = default.as_str();
                schema["default"] = serde_json::from_str(text).unwrap_or_else(|_| text.into());
            }
            parameters["properties"][&found[1]] = schema;
            if found[2].is_empty() {
                parameters["required"].as_array_mut()?.push(found[1].into());
            }
        } else if !["", "## functions", "namespace functions {", "}) => any;", "} // namespace functions"]
            .contains(&line)
        {
            return None;
        }
    }
    assert_eq!(tools.len(), declared.matches("\ntype ").count(), "{text}");
    let instructions = instructions.strip_prefix("# Instructions\n\n").map(str::to_owned);
    Some((instructions, tools))
}

/// The JSON schema of a TypeScript type; `None` if the type is not supported here.
fn schema(kind: &str) -> Option<Value> {
    if let Some(kind) = kind.strip_suffix(" | null") {
        return Some(json!({ "type": [kind, "null"] }));
    }
    if let Some(items) = kind.strip_suffix("[]") {
        return Some(json!({ "type": "array", "items": schema(items)? }));
    }
    match kind {
        "string" | "number" | "boolean" => Some(json!({ "type": kind })),
        _ => {
            let values: Option<Vec<Value>> = kind.split(" | ").map(|value| serde_json::from_str(value).ok()).collect();
            Some(json!({ "type": "string", "enum": values? }))
        }
    }
}

fn last_number(text: &str) -> Option<i64> {
    let number = Regex::new("-?[0-9]+").expect("a pattern");
    number.find_iter(text).last()?.as_str().parse().ok()
}

/// Whether `words` occur in a text as whole words.
fn contains_words(text: &str, words: &str) -> bool {
    let alone =
        Regex::new(&format!(r"(^|[^\p{{Alphabetic}}\p{{N}}]){}($|[^\p{{Alphabetic}}\p{{N}}])", regex::escape(words)));
    alone.expect("a pattern").is_match(text)
}
