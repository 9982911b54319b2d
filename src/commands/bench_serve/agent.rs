//! Agents: conversations with tools that grow turn by turn and are sent as a whole each time, so that a server without a prefix cache reads
//! the same tokens again and again.

use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::answer::{Answer, Call};
use super::figures::Figures;
use super::http::{Failure, Target};
use super::prompt::words;
use super::random::Random;

/// Number of words of a question, and of a tool's result.
const QUESTION: usize = 12;
const RESULT: usize = 40;

/// The parameters of agents.
pub struct Agents<'a> {
    pub target: &'a Target,
    pub model: &'a str,
    pub turns: usize,
    /// The most tokens of an answer.
    pub generate: usize,
    pub seed: u64,
}

impl Agents<'_> {
    /// Runs this many agents, each with its own conversation.
    pub fn run(&self, agents: usize) -> Figures {
        let begin = Instant::now();
        let mut figures = Figures::new(agents);
        thread::scope(|scope| {
            let agents = (0..agents).map(|agent| scope.spawn(move || self.converse(agents, agent)));
            for agent in agents.collect::<Vec<_>>() {
                figures.join(agent.join().expect("an agent does not panic"));
            }
        });
        figures.time = begin.elapsed();
        figures
    }

    /// A conversation ends at the first turn that fails.
    fn converse(&self, agents: usize, agent: usize) -> Figures {
        let mut random = Random::new(self.seed, (agents * 100_000 + agent) as u64);
        let mut figures = Figures::default();
        let system = format!("You are an agent. Use the tools.{}", words(&mut random, 4 * QUESTION));
        let mut messages = vec![json!({ "role": "system", "content": system })];
        for _ in 0..self.turns {
            // After a call, the tool's result is already the last message.
            if messages.last().is_none_or(|message| message["role"] != "tool") {
                messages.push(
                    json!({ "role": "user", "content": format!("Find out about{}.", words(&mut random, QUESTION)) }),
                );
            }
            match self.turn(&messages) {
                Ok(answer) => {
                    go_on(&mut messages, &answer, &mut random);
                    figures.count(Ok(answer));
                }
                Err(failure) => {
                    figures.count(Err(failure));
                    break;
                }
            }
        }
        figures
    }

    fn turn(&self, messages: &[Value]) -> Result<Answer, Failure> {
        let body = json!({
            "model": self.model,
            "messages": messages,
            "tools": tools(),
            "temperature": 0,
            "max_tokens": self.generate,
        });
        Answer::stream(self.target, "/v1/chat/completions", &body)
    }
}

fn tools() -> Value {
    let tool = |name: &str, description: &str, parameter: &str| {
        let parameters =
            json!({ "type": "object", "properties": { parameter: { "type": "string" } }, "required": [parameter] });
        let function = json!({ "name": name, "description": description, "parameters": parameters });
        json!({ "type": "function", "function": function })
    };
    json!([
        tool("search", "Search for a topic.", "topic"),
        tool("get_weather", "Get the weather in a city.", "city"),
        tool("calculator", "Calculate an expression.", "expression"),
    ])
}

/// Appends the model's message and the results of its calls. Calls that were cut off are left out.
fn go_on(messages: &mut Vec<Value>, answer: &Answer, random: &mut Random) {
    let is_whole = |call: &&Call| serde_json::from_str::<Value>(&call.arguments).is_ok_and(|value| value.is_object());
    let calls: Vec<&Call> = answer.calls.iter().filter(is_whole).collect();
    let call = |call: &&Call| {
        let Call { id, name, arguments } = call;
        json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
    };
    let mut message = json!({ "role": "assistant", "content": answer.text });
    if !answer.reasoning.is_empty() {
        message["reasoning"] = answer.reasoning.as_str().into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.iter().map(call).collect();
        if answer.text.is_empty() {
            message["content"] = Value::Null;
        }
    }
    messages.push(message);
    for call in calls {
        let result = json!({ "found": words(random, RESULT).trim_start() }).to_string();
        messages.push(json!({ "role": "tool", "tool_call_id": call.id, "content": result }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_messages_equal_a_clients() {
        let call = |id: &str, arguments: &str| Call { id: id.into(), name: "f".into(), arguments: arguments.into() };
        let answer =
            Answer { reasoning: "why".into(), calls: vec![call("1", "{}"), call("2", "{\"a")], ..Answer::default() };
        let mut messages = Vec::new();
        go_on(&mut messages, &answer, &mut Random::new(1, 0));
        let [assistant, result] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!((&assistant["content"], &assistant["reasoning"]), (&Value::Null, &json!("why")));
        assert_eq!(
            assistant["tool_calls"],
            json!([{ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{}" } }])
        );
        assert_eq!((&result["role"], &result["tool_call_id"]), (&json!("tool"), &json!("1")));

        let answer = Answer { text: "done".into(), ..Answer::default() };
        go_on(&mut messages, &answer, &mut Random::new(1, 0));
        assert_eq!(messages[2], json!({ "role": "assistant", "content": "done" }));
    }
}
