//! Runs one case: its steps in order, and the values that they save for later steps.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::check::{brief, check, lookup, texts};
use crate::http::{MODEL, ResponseReader, Running};
use crate::stream::gathered;

/// The key of the server that cases with the tag `needs_key` run on.
pub const KEY: &str = "sesame";

/// Values that earlier steps saved.
pub type Saved = BTreeMap<String, Value>;

pub enum Verdict {
    Passed,
    Skipped(String),
    Failed(Vec<String>),
}

pub fn run(server: &Running, case: &Value) -> Verdict {
    let tags: Vec<&str> = case["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut saved = Saved::new();
    let mut faults = Vec::new();
    for (index, step) in case["steps"].as_array().expect("steps").iter().enumerate() {
        if let Some(tag) = tags.iter().find(|tag| is_too_short(tag, &saved)) {
            return if faults.is_empty() { Verdict::Skipped((*tag).to_owned()) } else { Verdict::Failed(faults) };
        }
        // The step is sent this many times at once, and the values of the first are saved.
        let copies = step["parallel"].as_u64().unwrap_or(1).max(1);
        let before = saved.clone();
        let found: Vec<(Vec<String>, Saved)> = thread::scope(|scope| {
            let run = || {
                let mut saved = before.clone();
                (run_step(server, step, &mut saved), saved)
            };
            let running: Vec<_> = (0..copies).map(|_| scope.spawn(run)).collect();
            running.into_iter().map(|copy| copy.join().expect("a step panics only if the case is invalid")).collect()
        });
        faults.extend(found.iter().flat_map(|(faults, _)| faults).map(|fault| format!("step {index}: {fault}")));
        saved.extend(found.into_iter().next().map(|(_, saved)| saved).unwrap_or_default());
    }
    if faults.is_empty() { Verdict::Passed } else { Verdict::Failed(faults) }
}

/// Whether a tag `skip_if_short:NAME:N` requires a saved text to be longer than it is.
fn is_too_short(tag: &str, saved: &Saved) -> bool {
    let parts = tag.strip_prefix("skip_if_short:").and_then(|rest| rest.split_once(':'));
    parts.is_some_and(|(name, least)| {
        let least: usize = least.parse().expect("a number of characters");
        saved.get(name).is_some_and(|text| text.as_str().unwrap_or_default().chars().count() < least)
    })
}

/// The result of a step, before any check.
struct Given {
    status: u16,
    headers: Vec<(String, String)>,
    value: Value,
}

fn run_step(server: &Running, step: &Value, saved: &mut Saved) -> Vec<String> {
    let expect = &step["expect"];
    let begin = Instant::now();
    let Given { status, headers, value } = match give(server, step, saved) {
        Ok(given) => given,
        Err(fault) => return vec![fault],
    };
    let mut faults = Vec::new();
    let header = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    if let Some(kind) = expect["content_type"].as_str()
        && !header("content-type").is_some_and(|found| found.starts_with(kind))
    {
        faults.push(format!("content-type {:?}", header("content-type")));
    }
    for (name, pattern) in expect["headers"].as_object().into_iter().flatten() {
        let pattern = Regex::new(pattern.as_str().expect("a pattern")).expect("a pattern");
        if !header(name).is_some_and(|found| pattern.is_match(found)) {
            faults.push(format!("{name} is {:?}", header(name)));
        }
    }
    let allowed = match &expect["status"] {
        Value::Array(several) => several.clone(),
        one => vec![one.clone()],
    };
    if !allowed.contains(&json!(status)) {
        faults.push(format!("status {status}: {}", brief(&value)));
    }
    if let Some(seconds) = expect["within_s"].as_f64()
        && begin.elapsed().as_secs_f64() > seconds
    {
        faults.push(format!("{:.1} s", begin.elapsed().as_secs_f64()));
    }
    // Checks apply only to a response with an expected status.
    if allowed.contains(&json!(status)) {
        for rule in expect["checks"].as_array().into_iter().flatten() {
            match check(&value, &expand(rule, saved), saved) {
                Err(fault) if rule["soft"] == true => println!("soft: {rule}: {fault}"),
                Err(fault) => faults.push(format!("{rule}: {fault}")),
                Ok(()) => {}
            }
        }
    }
    if expect["then_alive"] == true && server.get("/health").status != 200 {
        faults.push("the server is not well afterwards".into());
    }
    for (name, path) in step["save"].as_object().into_iter().flatten() {
        let found = match path {
            Value::String(path) => lookup(&value, path),
            path => lookup(&value, path["$texts"].as_str().expect("a path")).map(|output| texts(&output)),
        };
        saved.insert(name.clone(), found.unwrap_or_default());
    }
    faults
}

/// Sends a step's request and reads its response in the step's mode.
fn give(server: &Running, step: &Value, saved: &Saved) -> Result<Given, String> {
    let request = &step["request"];
    let (method, body) = (request["method"].as_str().expect("a method"), body(request, saved));
    let path = saved.iter().fold(request["path"].as_str().expect("a path").to_owned(), |path, (name, value)| {
        path.replace(&format!("${{saved:{name}}}"), value.as_str().unwrap_or_default())
    });
    let path = path.replace("${MODEL}", MODEL);
    let headers: Vec<(String, String)> = request["headers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.as_str().expect("a header").replace("${KEY}", KEY)))
        .collect();
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let send = || server.send(method, &path, &headers, &body);
    let given = match step["mode"].as_str().unwrap_or("json") {
        "abort" => {
            let reading = server.open(method, &path, &headers, &body);
            let (status, headers) = (reading.status, reading.headers.clone());
            abort(reading, step);
            Given { status, headers, value: Value::Null }
        }
        "poll_text" => {
            let pattern = Regex::new(step["poll"]["regex"].as_str().expect("a pattern")).expect("a pattern");
            let until = Instant::now() + Duration::from_secs_f64(step["poll"]["within_s"].as_f64().unwrap_or(5.0));
            loop {
                let answer = send();
                if pattern.is_match(&answer.body) {
                    break Given { status: answer.status, headers: answer.headers, value: answer.body.into() };
                }
                if Instant::now() > until {
                    return Err(format!("{pattern} never matched"));
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        mode => {
            let answer = send();
            let value = match mode {
                "raw" => Value::Null,
                "text" => answer.body.clone().into(),
                "sse" if answer.status == 200 => gathered(&answer)?,
                "json" | "sse" => {
                    serde_json::from_str(&answer.body).map_err(|_| format!("no JSON: {}", answer.body))?
                }
                other => panic!("no mode is called {other}"),
            };
            Given { status: answer.status, headers: answer.headers, value }
        }
    };
    Ok(given)
}

/// Reads some frames, or waits for a while, and disconnects.
fn abort(mut reading: ResponseReader, step: &Value) {
    if let Some(seconds) = step["abort_after_s"].as_f64() {
        thread::sleep(Duration::from_secs_f64(seconds));
        return;
    }
    for _ in 0..step["abort_after_frames"].as_u64().unwrap_or(1) {
        reading.piece();
    }
}

fn body(request: &Value, saved: &Saved) -> Vec<u8> {
    if let Some(body) = request.get("body") {
        return expand(body, saved).to_string().into_bytes();
    }
    if let Some(bytes) = request["raw_bytes"].as_array() {
        return bytes.iter().map(|byte| byte.as_u64().and_then(|byte| byte.try_into().ok()).expect("a byte")).collect();
    }
    request["raw_body"].as_str().unwrap_or_default().as_bytes().to_vec()
}

/// A value with its macros replaced.
fn expand(value: &Value, saved: &Saved) -> Value {
    match value {
        Value::String(text) => text.replace("${MODEL}", MODEL).into(),
        Value::Array(values) => values.iter().map(|value| expand(value, saved)).collect(),
        Value::Object(fields) => {
            let only = fields.iter().next().filter(|_| fields.len() == 1);
            if let Some(found) = only.and_then(|(name, argument)| expand_macro(name, argument, saved)) {
                return found;
            }
            let fields = fields.iter().map(|(name, value)| (name.clone(), expand(value, saved)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// `None` if it is not a macro: names in schemas may begin with `$` too.
fn expand_macro(name: &str, argument: &Value, saved: &Saved) -> Option<Value> {
    let number = |value: &Value| value.as_u64().expect("a number") as usize;
    let value = match name {
        "$repeat" => argument[0].as_str().expect("text").repeat(number(&argument[1])).into(),
        "$concat" => {
            let parts = argument.as_array().expect("parts").iter().map(|part| expand(part, saved));
            parts.map(|part| part.as_str().unwrap_or_default().to_owned()).collect::<String>().into()
        }
        "$saved" => saved.get(argument.as_str().expect("a name")).cloned().unwrap_or_default(),
        "$slice_saved" => {
            let text = saved.get(argument[0].as_str().expect("a name")).and_then(Value::as_str).unwrap_or_default();
            let (from, to) = (number(&argument[1]), number(&argument[2]));
            text.chars().skip(from).take(to.saturating_sub(from)).collect::<String>().into()
        }
        "$deep_schema" => {
            let leaf = json!({ "type": "string" });
            (0..number(argument)).fold(leaf, |inner, _| json!({ "type": "object", "properties": { "x": inner } }))
        }
        "$many_tools" => {
            let properties: Map<String, Value> =
                (0..number(&argument[1])).map(|index| (format!("p{index}"), json!({ "type": "string" }))).collect();
            let tool = |index: usize| {
                let parameters = json!({ "type": "object", "properties": properties });
                json!({ "type": "function", "function": { "name": format!("tool_{index}"), "parameters": parameters } })
            };
            (0..number(&argument[0])).map(tool).collect()
        }
        _ => return None,
    };
    Some(value)
}
