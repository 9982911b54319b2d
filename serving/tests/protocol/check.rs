//! Checks of one response, by the names that the cases use.

use regex::Regex;
use serde_json::{Value, json};

use crate::run::Saved;
use crate::schema::fits;
use crate::stream;

/// The value at a path: dots, `[i]`, `[-1]`, `[*]`; a number finds a field of that name too.
pub fn lookup(value: &Value, path: &str) -> Option<Value> {
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

/// # Errors
/// Why the rule does not hold, or that there is no such check.
pub fn check(whole: &Value, rule: &Value, saved: &Saved) -> Result<(), String> {
    let at = |path: &Value| lookup(whole, path.as_str().unwrap_or_default());
    let is_empty = |value: &Value| value.is_null() || size(value) == Some(0);
    if rule.get("if_exists").is_some_and(|path| at(path).is_none_or(|value| value.is_null()))
        || rule.get("if_nonempty").is_some_and(|path| at(path).is_none_or(|value| is_empty(&value)))
        || rule.get("if_eq").is_some_and(|pair| at(&pair[0]).unwrap_or_default() != pair[1])
        || is_excused(whole, rule)
    {
        return Ok(());
    }
    let found = rule.get("path").and_then(at);
    let value = found.clone().unwrap_or_default();
    for (name, argument) in rule.as_object().expect("a check is an object") {
        let verdict = match name.as_str() {
            // These names are parameters of other checks of the rule.
            "path" | "soft" | "tol" | "top" | "content" | "if_exists" | "if_nonempty" | "if_eq" | "name" | "schema"
            | "is" | "unless_finish" | "unless_status" | "param" | "code" => continue,
            "ge" if rule.get("minus_saved").is_some() => continue,
            "eq_path" if rule.get("sum").is_some() => continue,
            "sum" => sum(whole, argument, &rule["eq_path"]),
            "eq_path" | "le_path" => against(name, &value, &at(argument).unwrap_or_default()),
            "minus_saved"
            | "eq_saved"
            | "eq_saved_or_empty"
            | "eq_saved_before"
            | "texts_eq_saved"
            | "logprobs_close_saved" => against_saved(name, &value, argument, rule, saved),
            "exists" => holds(found.is_some() == (*argument == true)),
            "no_tool_calls" => holds(at(argument).is_none_or(|calls| is_empty(&calls))),
            "no_control_tokens" => holds(!has_control_tokens(whole)),
            "tools_consistent" => tools_consistent(whole),
            "chat_object" => chat_object(whole),
            "error_object" => error_object(whole, rule),
            "tool_call_valid" => calls_fit(&at(argument).unwrap_or_default()["message"]["tool_calls"], rule),
            "response_call_ok" => calls_fit(&at(argument).unwrap_or_default(), rule),
            "json_content" => json_fits(&at(argument).unwrap_or_default()["message"]["content"], rule),
            "response_json_ok" => json_fits(&final_text(&at(argument).unwrap_or_default()), rule),
            "stream_json_ok" => json_fits(&at(argument).unwrap_or_default()["content"], rule),
            "stream_tool_calls_ok" => stream::tool_calls(whole).and_then(|calls| calls_fit(&calls, rule)),
            "responses_stream_ok" => stream::responses(whole),
            "responses_stream_call_ok" => stream::response_calls(whole).and_then(|calls| calls_fit(&calls, rule)),
            "logprobs_ok" => {
                let content = at(&rule["content"]).unwrap_or_default();
                let content = content.as_str().unwrap_or_default();
                logprobs_ok(&at(argument).unwrap_or_default(), content, rule["top"].as_u64())
            }
            "completion_logprobs_ok" => completion_logprobs_ok(&at(argument).unwrap_or_default(), rule["top"].as_u64()),
            "response_logprobs_ok" => response_logprobs_ok(&at(argument).unwrap_or_default(), rule["top"].as_u64()),
            "response_items_ok" => response_items_ok(&at(argument).unwrap_or_default()),
            other => of_value(other, &value, argument),
        };
        verdict.map_err(|fault| format!("{name} does not hold for {}: {fault}", brief(&value)))?;
    }
    Ok(())
}

/// Whether the answer was cut off, and the rule allows that.
fn is_excused(whole: &Value, rule: &Value) -> bool {
    let finishes = whole["choices"].as_array().into_iter().flatten().map(|choice| &choice["finish_reason"]);
    let streamed = whole["finish_reasons"].as_object().into_iter().flat_map(|reasons| reasons.values());
    let mut finishes = finishes.chain(streamed.flat_map(|reasons| reasons.as_array().into_iter().flatten()));
    let last = whole["data"].as_array().and_then(|data| data.last()).map(|event| &event["response"]["status"]);
    let statuses = [Some(&whole["status"]), last];
    rule.get("unless_finish").is_some_and(|excuse| finishes.any(|finish| finish == excuse))
        || rule.get("unless_status").is_some_and(|excuse| statuses.contains(&Some(excuse)))
}

fn holds(is_so: bool) -> Result<(), String> {
    if is_so { Ok(()) } else { Err("the condition is false".into()) }
}

/// Checks of the value at the rule's path.
fn of_value(name: &str, value: &Value, argument: &Value) -> Result<(), String> {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let all = || value.as_array().cloned().unwrap_or_default();
    holds(match name {
        "eq" => value == argument,
        "in" => argument.as_array().is_some_and(|allowed| allowed.contains(value)),
        "type" => match argument {
            Value::Array(kinds) => kinds.iter().any(|kind| is_kind(value, kind)),
            kind => is_kind(value, kind),
        },
        "regex" => {
            let pattern = Regex::new(argument.as_str().unwrap_or_default()).map_err(|error| error.to_string())?;
            value.as_str().is_some_and(|text| pattern.is_match(text))
        }
        "starts_with" => value.as_str().zip(argument.as_str()).is_some_and(|(text, start)| text.starts_with(start)),
        "text_contains" => {
            strings(argument).iter().all(|part| value.as_str().is_some_and(|text| text.contains(part.as_str())))
        }
        "ge" => number(value) >= number(argument),
        "le" => number(value) <= number(argument),
        "len" => size(value) == argument.as_u64(),
        "len_ge" => size(value) >= argument.as_u64(),
        "nonempty" => size(value).is_some_and(|size| size > 0),
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
            sorted(value) == sorted(argument)
        }
        other => return Err(format!("no check is called {other}")),
    })
}

fn against(name: &str, value: &Value, other: &Value) -> Result<(), String> {
    let is_so = match name {
        "eq_path" => value == other,
        _ => value.as_f64().zip(other.as_f64()).is_some_and(|(value, most)| value <= most),
    };
    if is_so { Ok(()) } else { Err(format!("the other is {}", brief(other))) }
}

fn sum(whole: &Value, paths: &Value, total: &Value) -> Result<(), String> {
    let number = |path: &str| lookup(whole, path).and_then(|value| value.as_f64()).unwrap_or(f64::NAN);
    let parts: Vec<f64> = strings(paths).iter().map(|path| number(path)).collect();
    let total = number(total.as_str().unwrap_or_default());
    if parts.iter().sum::<f64>() == total { Ok(()) } else { Err(format!("{parts:?} and {total}")) }
}

/// Checks against what an earlier step saved.
fn against_saved(name: &str, value: &Value, argument: &Value, rule: &Value, saved: &Saved) -> Result<(), String> {
    let get = |name: &Value| saved.get(name.as_str().unwrap_or_default()).cloned();
    let before = match argument {
        // A saved text, and the text that ends the part to compare.
        Value::Array(pair) => pair.first().and_then(get),
        name => get(name),
    };
    let before = before.ok_or_else(|| format!("nothing was saved as {argument}"))?;
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let or_empty = |value: &Value| if value.is_null() { json!("") } else { value.clone() };
    let is_so = match name {
        "eq_saved" => *value == before,
        "eq_saved_or_empty" => or_empty(value) == or_empty(&before),
        "eq_saved_before" => {
            let (text, mark) = (before.as_str().unwrap_or_default(), argument[1].as_str().unwrap_or_default());
            let end = text.find(mark).filter(|_| !mark.is_empty()).unwrap_or(text.len());
            value.as_str().unwrap_or_default() == &text[..end]
        }
        "texts_eq_saved" => texts(value) == before,
        "minus_saved" => number(value) - number(&before) >= rule["ge"].as_f64().unwrap_or(0.0),
        _ => {
            let tolerance = rule["tol"].as_f64().unwrap_or(0.001);
            let entries = |value: &Value| value.as_array().cloned().unwrap_or_default();
            let (now, before) = (entries(value), entries(&before));
            let is_close = |(a, b): (&Value, &Value)| {
                a["token"] == b["token"] && (number(&a["logprob"]) - number(&b["logprob"])).abs() <= tolerance
            };
            now.len() == before.len() && now.iter().zip(&before).all(is_close)
        }
    };
    if is_so { Ok(()) } else { Err(format!("before it was {}", brief(&before))) }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

fn is_kind(value: &Value, kind: &Value) -> bool {
    match kind.as_str().unwrap_or_default() {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        other => panic!("no type is called {other}"),
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

pub fn brief(value: &Value) -> String {
    value.to_string().chars().take(300).collect()
}

/// Type, text, name and arguments of each of a response's items, without its random id.
pub fn texts(output: &Value) -> Value {
    let items = output.as_array().into_iter().flatten();
    let text = |item: &Value| json!([item["type"], item["content"][0]["text"], item["name"], item["arguments"]]);
    items.map(text).collect()
}

/// Whether the text that the server generated contains control tokens.
fn has_control_tokens(value: &Value) -> bool {
    const NAMES: [&str; 7] =
        ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"];
    // These fields repeat the request, or list tokens that were not generated.
    const NOT_SAID: [&str; 4] = ["instructions", "input", "tools", "top_logprobs"];
    match value {
        Value::String(text) => NAMES.iter().any(|name| text.contains(name)),
        Value::Array(values) => values.iter().any(has_control_tokens),
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| !NOT_SAID.contains(&name.as_str()) && has_control_tokens(value))
        }
        _ => false,
    }
}

/// Checks the fields that every complete chat must have.
fn chat_object(whole: &Value) -> Result<(), String> {
    let is_choice = |(index, choice): (usize, &Value)| {
        let (message, finish) = (&choice["message"], choice["finish_reason"].as_str().unwrap_or_default());
        choice["index"] == index
            && message["role"] == "assistant"
            && message.get("content").is_some_and(|content| content.is_string() || content.is_null())
            && ["stop", "length", "tool_calls"].contains(&finish)
    };
    let choices = whole["choices"].as_array().ok_or("no choices")?;
    let has_head = size(&whole["id"]) > Some(0)
        && whole["object"] == "chat.completion"
        && whole["created"].is_u64()
        && whole["model"].is_string();
    let usage = ["prompt_tokens", "completion_tokens", "total_tokens"].map(|name| whole["usage"][name].as_u64());
    let [Some(prompt), Some(answer), Some(total)] = usage else { return Err("usage lacks numbers".into()) };
    holds(has_head && choices.iter().enumerate().all(is_choice))?;
    holds(prompt >= 1 && answer >= 1 && prompt + answer == total && !has_control_tokens(whole))?;
    tools_consistent(whole)
}

/// Checks for OpenAI's error object with the rule's field and code.
fn error_object(whole: &Value, rule: &Value) -> Result<(), String> {
    let error = &whole["error"];
    let or_null = |value: &Value| value.is_string() || value.is_null();
    let is_error = size(&error["message"]) > Some(0)
        && error["type"].is_string()
        && ["param", "code"].iter().all(|name| error.get(name).is_some_and(or_null));
    let is_named = ["param", "code"].iter().all(|name| rule.get(name).is_none_or(|wanted| error[*name] == *wanted));
    if is_error && is_named { Ok(()) } else { Err(brief(whole)) }
}

/// Whether each choice has calls if, and only if, its finish reason is `tool_calls`, and the calls have distinct ids and arguments as text.
/// A choice that was cut off (`length`) may have calls or not.
fn tools_consistent(whole: &Value) -> Result<(), String> {
    for choice in whole["choices"].as_array().into_iter().flatten() {
        let calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        let mut ids: Vec<&str> =
            calls.iter().filter_map(|call| call["id"].as_str()).filter(|id| !id.is_empty()).collect();
        ids.sort_unstable();
        ids.dedup();
        let finish = choice["finish_reason"].as_str().unwrap_or_default();
        let is_consistent = ids.len() == calls.len()
            && calls.iter().all(|call| call["function"]["arguments"].is_string())
            && (finish == "length" || calls.is_empty() != (finish == "tool_calls"));
        if !is_consistent {
            return Err(brief(choice));
        }
    }
    Ok(())
}

/// Whether at least one call is of the rule's function, and each such call has arguments that match the rule's schema. In Responses the
/// fields of a call are flat; in Chat Completions they are nested.
fn calls_fit(calls: &Value, rule: &Value) -> Result<(), String> {
    let calls = calls.as_array().into_iter().flatten();
    let calls = calls.map(|call| if call["function"].is_object() { &call["function"] } else { call });
    let named: Vec<&Value> = calls.filter(|call| call["name"] == rule["name"]).collect();
    let is_fit = |call: &Value| {
        let arguments = call["arguments"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        arguments.is_some_and(|arguments| rule.get("schema").is_none_or(|schema| fits(schema, &arguments)))
    };
    match named.iter().find(|call| !is_fit(call)) {
        Some(call) => Err(format!("the call {}", brief(call))),
        None if named.is_empty() => Err("there is no such call".into()),
        None => Ok(()),
    }
}

/// Whether a text is JSON, of the rule's type and schema.
fn json_fits(text: &Value, rule: &Value) -> Result<(), String> {
    let text = text.as_str().ok_or("there is no text")?;
    let value: Value = serde_json::from_str(text).map_err(|error| format!("{error}: {text}"))?;
    let is_fit = rule.get("is").is_none_or(|kind| is_kind(&value, kind))
        && rule.get("schema").is_none_or(|schema| fits(schema, &value));
    if is_fit { Ok(()) } else { Err(brief(&value)) }
}

/// The text of the final messages among a response's items.
fn final_text(items: &Value) -> Value {
    let messages = items.as_array().into_iter().flatten().filter(|item| item["type"] == "message");
    let messages = messages.filter(|item| item["phase"] != "commentary");
    let parts = messages.flat_map(|item| item["content"].as_array().into_iter().flatten());
    let texts: Vec<&str> = parts.filter_map(|part| part["text"].as_str()).collect();
    if texts.is_empty() { Value::Null } else { texts.concat().into() }
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
        let own = entry["bytes"].as_array().into_iter().flatten();
        bytes.extend(own.filter_map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok())));
    }
    match String::from_utf8_lossy(&bytes) == content {
        true => Ok(()),
        false => Err(format!("bytes of {:?}, not {content:?}", String::from_utf8_lossy(&bytes))),
    }
}

/// The four arrays of a completion's log probabilities. The first token of an echoed prompt has none.
fn completion_logprobs_ok(choice: &Value, top: Option<u64>) -> Result<(), String> {
    let array = |name: &str| choice["logprobs"][name].as_array().cloned().ok_or(format!("no {name}"));
    let (tokens, values) = (array("tokens")?, array("token_logprobs")?);
    let (tops, offsets) = (array("top_logprobs")?, array("text_offset")?);
    if [values.len(), tops.len(), offsets.len()] != [tokens.len(); 3] {
        return Err("arrays of several lengths".into());
    }
    let joined: String = tokens.iter().filter_map(Value::as_str).collect();
    let rises = offsets.windows(2).all(|pair| pair[0].as_u64() <= pair[1].as_u64());
    let negative = values.iter().skip(1).all(|value| value.as_f64().is_some_and(|value| value <= 0.0));
    let first = values.first().is_none_or(|value| value.is_null() || value.as_f64().is_some_and(|value| value <= 0.0));
    let enough = |tops: &Value| top.is_none_or(|top| size(tops).is_some_and(|size| size <= top + 1));
    let is_so = choice["text"] == joined && rises && negative && first && tops.iter().skip(1).all(enough);
    if is_so { Ok(()) } else { Err(brief(choice)) }
}

/// Whether the text of a response's messages has matching log probabilities.
fn response_logprobs_ok(items: &Value, top: Option<u64>) -> Result<(), String> {
    let messages = items.as_array().into_iter().flatten().filter(|item| item["type"] == "message");
    for part in messages.flat_map(|item| item["content"].as_array().into_iter().flatten()) {
        logprobs_ok(&part["logprobs"], part["text"].as_str().unwrap_or_default(), top)?;
    }
    Ok(())
}

fn response_items_ok(items: &Value) -> Result<(), String> {
    let has_text = |part: &Value, kind: &str| part["type"] == kind && size(&part["text"]) > Some(0);
    let is_whole = |item: &Value| {
        let id = item["id"].as_str().unwrap_or_default();
        let parts = item["content"].as_array().cloned().unwrap_or_default();
        match item["type"].as_str() {
            Some("reasoning") => {
                let has_parts = !parts.is_empty() && parts.iter().all(|part| has_text(part, "reasoning_text"));
                id.starts_with("rs_") && item["summary"].is_array() && has_parts
            }
            Some("message") => {
                let is_text = |part: &Value| part["type"] == "output_text" && part["annotations"].is_array();
                let is_said = item["role"] == "assistant" && item["status"].is_string();
                id.starts_with("msg_") && is_said && parts.iter().all(is_text)
            }
            Some("function_call") => {
                !id.is_empty() && ["call_id", "name", "arguments"].iter().all(|field| item[*field].is_string())
            }
            _ => false,
        }
    };
    let items = items.as_array().ok_or("no items")?;
    match items.iter().find(|item| !is_whole(item)) {
        Some(item) => Err(brief(item)),
        None => Ok(()),
    }
}
