//! The tools that a request declares, and the required form of its answer.

use std::collections::BTreeSet;

use harmony::{Function, ReasoningEffort, ResponseFormat};
use serde::Deserialize;
use serde_json::Value;

use super::error::{ApiError, shortened};

/// The largest number of tools.
const MAX_TOOLS: usize = 1024;

/// A tool in the format of Chat Completions, which nests the function.
#[derive(Clone, Debug, Deserialize)]
pub struct Tool {
    #[serde(rename = "type")]
    pub kind: String,
    pub function: Option<ToolFunction>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ToolFunction {
    pub name: Option<String>,
    pub description: Option<String>,
    pub parameters: Option<Value>,
    /// Whether arguments must match the schema.
    pub strict: Option<bool>,
}

/// The required form of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum AnswerFormat {
    #[default]
    Free,
    /// The answer is JSON that matches the schema, if there is one.
    Json(Option<ResponseFormat>),
    /// The answer is a call of one of these functions.
    Call(Vec<String>),
}

/// The functions that the model sees, and whether it must call one.
#[derive(Clone, Debug, Default)]
pub struct Toolbox {
    pub functions: Vec<Function>,
    /// Names of the functions whose arguments must match their schema.
    pub strict: Vec<String>,
    pub tool_choice: AnswerFormat,
}

impl Toolbox {
    /// From a Chat Completions request.
    ///
    /// # Errors
    /// `tools` is empty or has more than 1024 entries, a tool is not a valid function, two have the same name, `choice` is invalid or names
    /// a function that is not declared, or without `tools`, `choice` is given and neither `none` nor `auto`.
    pub fn of_chat(tools: Option<&[Tool]>, choice: Option<&Value>) -> Result<Toolbox, ApiError> {
        let Some(tools) = tools else { return Toolbox::build(None, choice) };
        let functions = tools.iter().enumerate().map(|(index, tool)| {
            let at = format!("tools[{index}]");
            if tool.kind != "function" {
                let kind = shortened(&tool.kind);
                return Err(ApiError::unsupported(
                    &at,
                    format!("Tools of type `{kind}` are not supported; use `function`."),
                ));
            }
            let function = tool.function.as_ref();
            let function = function.ok_or_else(|| ApiError::invalid(&at, format!("`{at}.function` is missing.")))?;
            declared(&format!("{at}.function"), function)
        });
        let functions = functions.collect::<Result<Vec<Function>, ApiError>>()?;
        let strict = tools.iter().filter_map(|tool| tool.function.as_ref()).filter(|tool| tool.strict == Some(true));
        let strict = strict.filter_map(|tool| tool.name.clone()).collect();
        Ok(Toolbox { strict, ..Toolbox::build(Some(functions), choice)? })
    }

    /// From functions that were already parsed. An empty list is refused, as by OpenAI.
    ///
    /// # Errors
    /// As [`Toolbox::of_chat`].
    pub fn build(functions: Option<Vec<Function>>, choice: Option<&Value>) -> Result<Toolbox, ApiError> {
        let Some(mut functions) = functions else {
            return match choice {
                None | Some(Value::Null) => Ok(Toolbox::default()),
                Some(Value::String(word)) if word == "none" || word == "auto" => Ok(Toolbox::default()),
                Some(_) => Err(ApiError::invalid("tool_choice", "`tool_choice` is only allowed with `tools`.")),
            };
        };
        if functions.is_empty() || functions.len() > MAX_TOOLS {
            return Err(ApiError::invalid("tools", format!("`tools` must hold 1 to {MAX_TOOLS} tools.")));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = functions.iter().find(|function| !names.insert(function.name.clone())) {
            return Err(ApiError::invalid("tools", format!("The function `{}` is declared twice.", twice.name)));
        }
        let tool_choice = match choice.unwrap_or(&Value::Null) {
            Value::Null => AnswerFormat::Free,
            Value::String(word) => match word.as_str() {
                "auto" => AnswerFormat::Free,
                "none" => return Ok(Toolbox::default()),
                "required" => AnswerFormat::Call(names.into_iter().collect()),
                _ => return Err(bad_choice()),
            },
            Value::Object(_) => chosen(choice, &mut functions)?,
            _ => return Err(bad_choice()),
        };
        Ok(Toolbox { functions, strict: Vec::new(), tool_choice })
    }
}

/// A `tool_choice` that is an object: one function, or several allowed ones; functions that are not allowed are removed from `functions`.
fn chosen(choice: Option<&Value>, functions: &mut Vec<Function>) -> Result<AnswerFormat, ApiError> {
    let choice = choice.unwrap_or(&Value::Null);
    // Chat Completions nests the name in `function`; Responses has it next to the type.
    let name = |value: &Value| value["function"]["name"].as_str().or(value["name"].as_str()).map(str::to_owned);
    let known = |name: String, functions: &[Function]| match functions.iter().any(|function| function.name == name) {
        true => Ok(name),
        false => {
            let message = format!("`tool_choice` names `{}`, which `tools` does not declare.", shortened(&name));
            Err(ApiError::invalid("tool_choice", message))
        }
    };
    match choice["type"].as_str() {
        Some("function") => {
            Ok(AnswerFormat::Call(vec![known(name(choice).ok_or_else(bad_choice)?, functions.as_slice())?]))
        }
        Some("allowed_tools") => {
            let nested = &choice["allowed_tools"];
            let allowed = if nested.is_object() { nested } else { choice };
            let tools = allowed["tools"].as_array().ok_or_else(bad_choice)?;
            let names = tools.iter().map(|tool| known(name(tool).ok_or_else(bad_choice)?, functions.as_slice()));
            let names = names.collect::<Result<Vec<String>, ApiError>>()?;
            functions.retain(|function| names.contains(&function.name));
            match allowed["mode"].as_str() {
                Some("auto") => Ok(AnswerFormat::Free),
                Some("required") => Ok(AnswerFormat::Call(names)),
                _ => Err(bad_choice()),
            }
        }
        _ => Err(bad_choice()),
    }
}

fn bad_choice() -> ApiError {
    let message = "`tool_choice` must be `none`, `auto`, `required`, or an object that names declared functions.";
    ApiError::invalid("tool_choice", message)
}

/// A function in harmony's format; `at` is its path in the request.
///
/// # Errors
/// The name is missing or invalid, or the parameters are not an object.
pub fn declared(at: &str, function: &ToolFunction) -> Result<Function, ApiError> {
    let odd = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let name = function.name.as_deref().unwrap_or_default();
    if name.is_empty() || name.len() > 64 || name.contains(odd) {
        let message = "A function's name must hold 1 to 64 letters, digits, `_` or `-`.";
        return Err(ApiError::invalid(&format!("{at}.name"), message));
    }
    let parameters = function.parameters.clone().filter(|parameters| !parameters.is_null());
    if parameters.as_ref().is_some_and(|parameters| !parameters.is_object()) {
        let message = "A function's parameters must be a JSON schema of type object.";
        return Err(ApiError::invalid(&format!("{at}.parameters"), message));
    }
    Ok(Function { name: name.into(), description: function.description.clone(), parameters })
}

/// Harmony's reasoning effort for a name that a client sent; medium if it sent none.
///
/// # Errors
/// The name is unknown.
pub fn effort(param: &str, name: Option<&str>) -> Result<ReasoningEffort, ApiError> {
    match name {
        Some("none" | "minimal" | "low") => Ok(ReasoningEffort::Low),
        None | Some("medium") => Ok(ReasoningEffort::Medium),
        Some("high" | "xhigh" | "max") => Ok(ReasoningEffort::High),
        Some(other) => {
            let message = format!("`{}` is not a reasoning effort; use low, medium or high.", shortened(other));
            Err(ApiError::invalid(param, message))
        }
    }
}

/// `response_format` of Chat Completions, or `text.format` of Responses, which has the schema next to the type.
///
/// # Errors
/// The type is unknown, or the schema is missing or not an object.
pub fn response_format(param: &str, format: Option<&Value>) -> Result<AnswerFormat, ApiError> {
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(AnswerFormat::Free) };
    match format["type"].as_str() {
        Some("text") => Ok(AnswerFormat::Free),
        Some("json_object") => Ok(AnswerFormat::Json(None)),
        Some("json_schema") => {
            let nested = &format["json_schema"];
            let own = if nested.is_object() { nested } else { format };
            let schema = own.get("schema").filter(|schema| schema.is_object());
            let schema =
                schema.ok_or_else(|| ApiError::invalid(param, format!("`{param}` lacks its schema.")))?.clone();
            let name = own["name"].as_str().unwrap_or("response").to_owned();
            let description = own["description"].as_str().map(str::to_owned);
            Ok(AnswerFormat::Json(Some(ResponseFormat { name, description, schema })))
        }
        _ => Err(ApiError::invalid(param, format!("`{param}.type` must be text, json_object or json_schema."))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn toolbox(choice: Value) -> Result<Toolbox, Option<String>> {
        let tools = json!([
            { "type": "function", "function": { "name": "a", "parameters": { "type": "object" } } },
            { "type": "function", "function": { "name": "b" } },
        ]);
        let tools: Vec<Tool> = serde_json::from_value(tools).expect("tools");
        Toolbox::of_chat(Some(&tools), Some(&choice)).map_err(|error| error.param)
    }

    #[test]
    fn tool_choice_selects_visible_tools() {
        let names = |choice| {
            toolbox(choice).map(|toolbox| {
                (
                    toolbox.functions.iter().map(|function| function.name.as_str()).collect::<String>(),
                    toolbox.tool_choice,
                )
            })
        };
        assert_eq!(names(json!(null)), Ok(("ab".into(), AnswerFormat::Free)));
        assert_eq!(names(json!("none")), Ok(("".into(), AnswerFormat::Free)));
        let call = |names: &[&str]| AnswerFormat::Call(names.iter().map(|&name| name.into()).collect());
        assert_eq!(names(json!("required")), Ok(("ab".into(), call(&["a", "b"]))));
        assert_eq!(names(json!({ "type": "function", "function": { "name": "b" } })), Ok(("ab".into(), call(&["b"]))));
        assert_eq!(names(json!({ "type": "function", "name": "b" })), Ok(("ab".into(), call(&["b"]))));
        let allowed = json!({ "type": "allowed_tools", "allowed_tools": { "mode": "auto", "tools": [
            { "type": "function", "function": { "name": "b" } }
        ] } });
        assert_eq!(names(allowed), Ok(("b".into(), AnswerFormat::Free)));
        for choice in [json!("maybe"), json!(5), json!({ "type": "function", "function": { "name": "c" } })] {
            assert_eq!(names(choice), Err(Some("tool_choice".into())));
        }
    }

    #[test]
    fn invalid_tool_names_are_refused() {
        for name in [json!(null), json!(""), json!("a b"), json!("x".repeat(65))] {
            let function = serde_json::from_value(json!({ "name": name })).expect("a function");
            assert!(declared("tools[0]", &function).is_err(), "{name}");
        }
        assert!(Toolbox::of_chat(Some(&[]), None).is_err());
        assert!(Toolbox::of_chat(None, Some(&json!("required"))).is_err());
    }
}
