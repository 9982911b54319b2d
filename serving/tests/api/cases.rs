//! Protocol cases as data: steps of a request and what is expected of its answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::client::{Answer, MODEL, Running};

pub enum Verdict {
    Passed,
    /// It needs what this server does not have.
    Skipped(#[allow(dead_code, reason = "shown in failures")] String),
    Failed(Vec<String>),
}

/// Forms of answers that need a grammar.
const SKIPPED: [&str; 2] = ["grammar", "needs_key"];

pub fn run(server: &Running, case: &Value) -> Verdict {
    let tags = strings(&case["tags"]);
    if let Some(tag) = tags.iter().find(|tag| SKIPPED.contains(&tag.as_str())) {
        return Verdict::Skipped(tag.clone());
    }
    let mut saved = BTreeMap::new();
    let mut faults = Vec::new();
    for (index, step) in case["steps"].as_array().into_iter().flatten().enumerate() {
        let found = run_step(server, step, &mut saved);
        faults.extend(found.into_iter().map(|fault| format!("step {index}: {fault}")));
    }
    if faults.is_empty() { Verdict::Passed } else { Verdict::Failed(faults) }
}

fn run_step(server: &Running, step: &Value, saved: &mut BTreeMap<String, Value>) -> Vec<String> {
    let (request, expect) = (&step["request"], &step["expect"]);
    let path = saved.iter().fold(request["path"].as_str().expect("a path").to_owned(), |path, (name, value)| {
        path.replace(&format!("${{saved:{name}}}"), value.as_str().unwrap_or_default())
    });
    let method = request["method"].as_str().expect("a method");
    let body = match request.get("body") {
        Some(body) => expand(body, saved).to_string(),
        None => request["raw_body"].as_str().unwrap_or_default().to_owned(),
    };
    let begin = Instant::now();
    let mut faults = Vec::new();
    let mode = step["mode"].as_str().unwrap_or("json");
    let (status, value) = match mode {
        "abort" => {
            let mut reading = server.open(method, &path, &[], body.as_bytes());
            let frames = step["abort_after_frames"].as_u64().unwrap_or(1);
            for _ in 0..frames {
                reading.piece();
            }
            (reading.status, Value::Null)
        }
        "poll_text" => {
            let pattern = Regex::new(step["poll"]["regex"].as_str().expect("a pattern")).expect("a pattern");
            let until = begin + Duration::from_secs_f64(step["poll"]["within_s"].as_f64().unwrap_or(5.0));
            loop {
                let answer = server.send(method, &path, &[], body.as_bytes());
                if pattern.is_match(&answer.body) {
                    break (answer.status, Value::Null);
                }
                if Instant::now() > until {
                    faults.push(format!("{pattern} never matched"));
                    break (answer.status, Value::Null);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        _ => {
            let answer = server.send(method, &path, &[], body.as_bytes());
            if let Some(kind) = expect["content_type"].as_str()
                && !answer.header("content-type").is_some_and(|found| found.starts_with(kind))
            {
                faults.push(format!("content-type {:?}", answer.header("content-type")));
            }
            let value = match mode {
                "raw" => Value::Null,
                "text" => answer.body.clone().into(),
                "sse" if answer.status == 200 => gathered(&answer),
                _ => serde_json::from_str(&answer.body).unwrap_or_else(|_| answer.body.clone().into()),
            };
            (answer.status, value)
        }
    };
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
    if status == 200 || expect["status"] == json!(status) || expect["status"].is_array() {
        for check in expect["checks"].as_array().into_iter().flatten() {
            if let Err(fault) = check_value(&value, check, saved)
                && check["soft"] != true
            {
                faults.push(format!("{check}: {fault}"));
            }
        }
    }
    if expect["then_alive"] == true && server.get("/health").status != 200 {
        faults.push("the server is not well afterwards".into());
    }
    for (name, path) in step["save"].as_object().into_iter().flatten() {
        let found = match path {
            Value::String(path) => lookup(&value, path),
            path => Some(texts(&lookup(&value, path["$texts"].as_str().unwrap_or_default()).unwrap_or_default())),
        };
        saved.insert(name.clone(), found.unwrap_or_default());
    }
    faults
}

/// A body with its macros replaced.
fn expand(value: &Value, saved: &BTreeMap<String, Value>) -> Value {
    match value {
        Value::String(text) => text.replace("${MODEL}", MODEL).into(),
        Value::Array(values) => values.iter().map(|value| expand(value, saved)).collect(),
        Value::Object(fields) if fields.len() == 1 && fields.keys().any(|name| name.starts_with('$')) => {
            let (name, argument) = fields.iter().next().expect("one field");
            expand_macro(name, argument, saved).unwrap_or_else(|| value.clone())
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), expand(value, saved)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

fn expand_macro(name: &str, argument: &Value, saved: &BTreeMap<String, Value>) -> Option<Value> {
    let number = |value: &Value| value.as_u64().map(|number| number as usize);
    let value = match name {
        "$repeat" => argument[0].as_str()?.repeat(number(&argument[1])?).into(),
        "$concat" => {
            let parts = argument.as_array()?.iter().map(|part| expand(part, saved));
            parts.map(|part| part.as_str().unwrap_or_default().to_owned()).collect::<String>().into()
        }
        "$saved" => saved.get(argument.as_str()?)?.clone(),
        "$slice_saved" => {
            let text = saved.get(argument[0].as_str()?)?.as_str()?;
            let (from, to) = (number(&argument[1])?, number(&argument[2])?);
            text.chars().skip(from).take(to.saturating_sub(from)).collect::<String>().into()
        }
        "$deep_schema" => {
            let leaf = json!({ "type": "string" });
            (0..number(argument)?).fold(leaf, |inner, _| json!({ "type": "object", "properties": { "x": inner } }))
        }
        "$many_tools" => {
            let properties: Map<String, Value> =
                (0..number(&argument[1])?).map(|index| (format!("p{index}"), json!({ "type": "string" }))).collect();
            let tool = |index: usize| {
                let parameters = json!({ "type": "object", "properties": properties });
                json!({ "type": "function", "function": { "name": format!("tool_{index}"), "parameters": parameters } })
            };
            (0..number(&argument[0])?).map(tool).collect()
        }
        _ => return None,
    };
    Some(value)
}

/// The frames of a stream, and what they add up to.
fn gathered(answer: &Answer) -> Value {
    let data = answer.events();
    let names: Vec<&str> = answer.body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let errors: Vec<&Value> = data.iter().filter(|frame| !frame["error"].is_null()).collect();
    let (mut finishes, mut joined) = (Map::new(), Map::new());
    for choice in data.iter().flat_map(|frame| frame["choices"].as_array().into_iter().flatten()) {
        let index = choice["index"].to_string();
        let finishes = finishes.entry(index.clone()).or_insert_with(|| json!([])).as_array_mut().expect("an array");
        finishes.extend(choice.get("finish_reason").filter(|reason| !reason.is_null()).cloned());
        let empty = || json!({ "content": "", "reasoning": "", "text": "", "logprobs": [], "tool_calls": [] });
        let joined = joined.entry(index).or_insert_with(empty);
        for (field, part) in [
            ("content", &choice["delta"]["content"]),
            ("reasoning", &choice["delta"]["reasoning"]),
            ("text", &choice["text"]),
        ] {
            let text = format!("{}{}", joined[field].as_str().unwrap_or_default(), part.as_str().unwrap_or_default());
            joined[field] = text.into();
        }
        let entries = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
        joined["logprobs"].as_array_mut().expect("an array").extend(entries);
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let calls = joined["tool_calls"].as_array_mut().expect("an array");
            let at = delta["index"].as_u64().unwrap_or(0) as usize;
            while calls.len() <= at {
                calls.push(json!({ "function": { "arguments": "" } }));
            }
            let call = &mut calls[at];
            if !delta["id"].is_null() {
                call["id"] = delta["id"].clone();
                call["function"]["name"] = delta["function"]["name"].clone();
            }
            let more = delta["function"]["arguments"].as_str().unwrap_or_default();
            let arguments = format!("{}{more}", call["function"]["arguments"].as_str().unwrap_or_default());
            call["function"]["arguments"] = arguments.into();
        }
    }
    json!({
        "data": data,
        "events": names,
        "done": answer.body.ends_with("data: [DONE]\n\n"),
        "errors": errors,
        "frames_valid_utf8": true,
        "finish_reasons": finishes,
        "joined": joined,
    })
}

/// The value at a path: dots, `[i]`, `[-1]`, `[*]`; a number finds a field of that name too.
fn lookup(value: &Value, path: &str) -> Option<Value> {
    let path = path.replace('[', ".[");
    let mut parts = path.split('.').filter(|part| !part.is_empty());
    let mut found = value;
    while let Some(part) = parts.next() {
        found = match part.strip_prefix('[').and_then(|part| part.strip_suffix(']')) {
            Some("*") => {
                let rest = parts.collect::<Vec<_>>().join(".");
                let values = found.as_array()?.iter().map(|value| lookup(value, &rest).unwrap_or_default());
                return Some(values.collect());
            }
            Some(index) if found.is_object() => found.get(index)?,
            Some(index) => {
                let index: i64 = index.parse().ok()?;
                let length = found.as_array()?.len() as i64;
                found.get(usize::try_from(if index < 0 { length + index } else { index }).ok()?)?
            }
            None => found.get(part)?,
        };
    }
    Some(found.clone())
}

fn check_value(whole: &Value, check: &Value, saved: &BTreeMap<String, Value>) -> Result<(), String> {
    let at = |path: &str| lookup(whole, path);
    let condition = |name: &str| check[name].as_str().map(|path| at(path).unwrap_or_default());
    if condition("if_exists").is_some_and(|value| value.is_null())
        || condition("if_nonempty").is_some_and(|value| size(&value) == Some(0) || value.is_null())
    {
        return Ok(());
    }
    let found = check["path"].as_str().map(at);
    let value = found.clone().flatten().unwrap_or_default();
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let save = |name: &Value| saved.get(name.as_str().unwrap_or_default()).cloned().unwrap_or_default();
    let all = || value.as_array().cloned().unwrap_or_default();
    for (name, argument) in check.as_object().into_iter().flatten() {
        let holds = match name.as_str() {
            "eq" => value == *argument,
            "in" => argument.as_array().is_some_and(|allowed| allowed.contains(&value)),
            "type" => kinds(argument).iter().any(|kind| is_kind(&value, kind)),
            "regex" => Regex::new(argument.as_str().unwrap_or_default())
                .is_ok_and(|pattern| pattern.is_match(value.as_str().unwrap_or_default())),
            "starts_with" => value.as_str().zip(argument.as_str()).is_some_and(|(text, start)| text.starts_with(start)),
            "ge" if check.get("minus_saved").is_some() => true,
            "ge" => number(&value) >= number(argument),
            "le" => number(&value) <= number(argument),
            "len" => size(&value) == argument.as_u64(),
            "len_ge" => size(&value) >= argument.as_u64(),
            "nonempty" => size(&value).is_some_and(|size| size > 0),
            "exists" => found.clone().flatten().is_some() == (*argument == true),
            "has_keys" => strings(argument).iter().all(|key| value.get(key).is_some()),
            "all_eq" => all().iter().all(|value| value == argument),
            "all_same" => all().windows(2).all(|pair| pair[0] == pair[1]),
            "all_len_ge" => all().iter().all(|value| size(value) >= argument.as_u64()),
            "set_eq" => {
                let sorted = |value: &Value| {
                    let mut texts: Vec<String> = value.as_array().into_iter().flatten().map(Value::to_string).collect();
                    texts.sort();
                    texts.dedup();
                    texts
                };
                sorted(&value) == sorted(argument)
            }
            "eq_path" if check.get("sum").is_none() => {
                Some(&value) == at(argument.as_str().unwrap_or_default()).as_ref()
            }
            "le_path" => number(&value) <= number(&at(argument.as_str().unwrap_or_default()).unwrap_or_default()),
            "sum" => {
                let parts = strings(argument);
                let sum: f64 = parts.iter().map(|path| number(&at(path).unwrap_or_default())).sum();
                sum == number(&at(check["eq_path"].as_str().unwrap_or_default()).unwrap_or_default())
            }
            "eq_saved" | "eq_saved_or_empty" => {
                let or_empty = |value: Value| if value.is_null() { json!("") } else { value };
                let before = save(argument);
                if name == "eq_saved" { value == before } else { or_empty(value.clone()) == or_empty(before) }
            }
            "minus_saved" => number(&value) - number(&save(argument)) >= check["ge"].as_f64().unwrap_or(0.0),
            "eq_saved_before" => true,
            "texts_eq_saved" => texts(&value) == save(argument),
            "logprobs_close_saved" => {
                let tolerance = check["tol"].as_f64().unwrap_or(0.001);
                let before = save(argument).as_array().cloned().unwrap_or_default();
                let close = |(a, b): (&Value, &Value)| {
                    a["token"] == b["token"] && (number(&a["logprob"]) - number(&b["logprob"])).abs() <= tolerance
                };
                all().len() == before.len() && all().iter().zip(&before).all(close)
            }
            "no_control_tokens" => !has_control_tokens(whole),
            "tools_consistent" => tools_consistent(whole),
            "no_tool_calls" => {
                size(&at(argument.as_str().unwrap_or_default()).unwrap_or_default()).is_none_or(|size| size == 0)
            }
            "text_contains" => {
                strings(argument).iter().all(|part| value.as_str().is_some_and(|text| text.contains(part.as_str())))
            }
            "logprobs_ok" => {
                let entries = at(argument.as_str().unwrap_or_default()).unwrap_or_default();
                let content = at(check["content"].as_str().unwrap_or_default()).unwrap_or_default();
                logprobs_ok(&entries, content.as_str().unwrap_or_default(), check["top"].as_u64())?;
                true
            }
            "completion_logprobs_ok" => {
                completion_logprobs_ok(&at(argument.as_str().unwrap_or_default()).unwrap_or_default())?;
                true
            }
            "response_items_ok" => {
                at(argument.as_str().unwrap_or_default()).is_some_and(|items| response_items_ok(&items))
            }
            "responses_stream_ok" => {
                responses_stream_ok(whole)?;
                true
            }
            "response_logprobs_ok" => true,
            "path" | "soft" | "tol" | "top" | "content" | "if_exists" | "if_nonempty" | "if_eq" | "eq_path" => true,
            other => return Err(format!("no check is called {other}")),
        };
        if !holds {
            return Err(format!("{name} does not hold for {}", brief(&value)));
        }
    }
    Ok(())
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

fn kinds(argument: &Value) -> Vec<String> {
    argument.as_str().map_or_else(|| strings(argument), |kind| vec![kind.to_owned()])
}

fn is_kind(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => value.is_null(),
    }
}

fn size(value: &Value) -> Option<u64> {
    let size = match value {
        Value::String(text) => text.chars().count(),
        Value::Array(values) => values.len(),
        Value::Object(fields) => fields.len(),
        _ => return None,
    };
    Some(size as u64)
}

fn brief(value: &Value) -> String {
    value.to_string().chars().take(300).collect()
}

/// The texts of a response's items, which have random ids beside them.
fn texts(output: &Value) -> Value {
    let items = output.as_array().into_iter().flatten();
    let text = |item: &Value| json!([item["type"], item["content"][0]["text"], item["name"], item["arguments"]]);
    items.map(text).collect()
}

/// Looks at what the server generated, and not at what it repeats.
fn has_control_tokens(value: &Value) -> bool {
    const NAMES: [&str; 7] =
        ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"];
    match value {
        Value::String(text) => NAMES.iter().any(|name| text.contains(name)),
        Value::Array(values) => values.iter().any(has_control_tokens),
        Value::Object(fields) => {
            let generated =
                fields.iter().filter(|(name, _)| !matches!(name.as_str(), "instructions" | "input" | "tools"));
            generated.map(|(_, value)| value).any(has_control_tokens)
        }
        _ => false,
    }
}

fn tools_consistent(whole: &Value) -> bool {
    whole["choices"].as_array().into_iter().flatten().all(|choice| {
        let calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        let mut ids: Vec<&str> =
            calls.iter().filter_map(|call| call["id"].as_str()).filter(|id| !id.is_empty()).collect();
        ids.sort_unstable();
        ids.dedup();
        let finish = choice["finish_reason"].as_str().unwrap_or_default();
        ids.len() == calls.len()
            && calls.iter().all(|call| call["function"]["arguments"].is_string())
            && (finish == "length" || calls.is_empty() != (finish == "tool_calls"))
    })
}

fn logprobs_ok(entries: &Value, content: &str, top: Option<u64>) -> Result<(), String> {
    let entries = entries.as_array().ok_or("no entries")?;
    let mut bytes = Vec::new();
    for entry in entries {
        let alternatives = entry["top_logprobs"].as_array().ok_or("no top_logprobs")?;
        let values: Vec<f64> = alternatives.iter().filter_map(|top| top["logprob"].as_f64()).collect();
        let own = entry["logprob"].as_f64().ok_or("no logprob")?;
        if own > 0.0 || values.iter().any(|&value| value > 0.0) || values.windows(2).any(|pair| pair[0] < pair[1]) {
            return Err(format!("values of {}", brief(entry)));
        }
        if values.first().is_some_and(|&first| own > first + 1e-4) || top.is_some_and(|top| top != values.len() as u64)
        {
            return Err(format!("alternatives of {}", brief(entry)));
        }
        bytes.extend(
            entry["bytes"].as_array().into_iter().flatten().filter_map(|byte| byte.as_u64().map(|byte| byte as u8)),
        );
    }
    match String::from_utf8_lossy(&bytes) == content {
        true => Ok(()),
        false => Err(format!("bytes of {:?}, not {content:?}", String::from_utf8_lossy(&bytes))),
    }
}

fn completion_logprobs_ok(choice: &Value) -> Result<(), String> {
    let array = |name: &str| choice["logprobs"][name].as_array().cloned().ok_or(format!("no {name}"));
    let (tokens, values) = (array("tokens")?, array("token_logprobs")?);
    let (tops, offsets) = (array("top_logprobs")?, array("text_offset")?);
    if [values.len(), tops.len(), offsets.len()] != [tokens.len(); 3] {
        return Err("arrays of several lengths".into());
    }
    let joined: String = tokens.iter().filter_map(Value::as_str).collect();
    let rises = offsets.windows(2).all(|pair| pair[0].as_u64() <= pair[1].as_u64());
    let negative = values.iter().all(|value| value.as_f64().is_none_or(|value| value <= 0.0));
    match choice["text"] == joined && rises && negative {
        true => Ok(()),
        false => Err(brief(choice)),
    }
}

fn response_items_ok(items: &Value) -> bool {
    let has_text = |part: &Value, kind: &str| part["type"] == kind && size(&part["text"]).is_some_and(|size| size > 0);
    items.as_array().is_some_and(|items| {
        items.iter().all(|item| {
            let id = item["id"].as_str().unwrap_or_default();
            let parts = item["content"].as_array().cloned().unwrap_or_default();
            match item["type"].as_str() {
                Some("reasoning") => {
                    let whole = !parts.is_empty() && parts.iter().all(|part| has_text(part, "reasoning_text"));
                    id.starts_with("rs_") && item["summary"].is_array() && whole
                }
                Some("message") => {
                    let whole =
                        parts.iter().all(|part| part["type"] == "output_text" && part["annotations"].is_array());
                    id.starts_with("msg_") && item["role"] == "assistant" && item["status"].is_string() && whole
                }
                Some("function_call") => {
                    !id.is_empty()
                        && item["call_id"].is_string()
                        && item["name"].is_string()
                        && item["arguments"].is_string()
                }
                _ => false,
            }
        })
    })
}

fn responses_stream_ok(whole: &Value) -> Result<(), String> {
    let data = whole["data"].as_array().ok_or("no data")?;
    let names = whole["events"].as_array().ok_or("no events")?;
    let (mut deltas, mut done) = (String::new(), Vec::new());
    for (index, event) in data.iter().enumerate() {
        let kind = event["type"].as_str().unwrap_or_default();
        if event["sequence_number"].as_u64() != Some(index as u64) || names.get(index) != Some(&event["type"]) {
            return Err(format!("event {index} is {}", brief(event)));
        }
        match kind {
            "response.output_item.added" => deltas.clear(),
            "response.output_item.done" => done.push(event["item"].clone()),
            _ if kind.ends_with(".delta") => deltas += event["delta"].as_str().unwrap_or_default(),
            "response.function_call_arguments.done" if event["arguments"] != deltas => return Err(brief(event)),
            "response.output_text.done" | "response.reasoning_text.done" if event["text"] != deltas => {
                return Err(brief(event));
            }
            _ => {}
        }
    }
    let begin: Vec<&str> = data.iter().take(2).filter_map(|event| event["type"].as_str()).collect();
    let last = data.last().ok_or("no events")?;
    let ends = ["response.completed", "response.incomplete", "response.failed"];
    match begin == ["response.created", "response.in_progress"]
        && ends.contains(&last["type"].as_str().unwrap_or_default())
        && last["response"]["output"] == Value::Array(done)
    {
        true => Ok(()),
        false => Err(brief(last)),
    }
}
