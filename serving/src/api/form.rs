//! The format that a request requires of its answer, as a constraint on generated tokens.

use harmony::{Function, ResponseFormat};
use serde_json::{Value, json};

use super::app::Model;
use super::body::block_in_place_if_large;
use super::error::{ApiError, shortened};
use super::tools::{AnswerFormat, Toolbox};
use crate::grammar::{Content, GrammarError, TurnRules};
use crate::request::Constraint;

/// The constraint of a request; `None` if any answer is allowed. `param` is the field that `format` was read from.
///
/// # Errors
/// A schema cannot be enforced, there are too many schemas, or the model's vocabulary cannot be constrained.
pub fn constraint(
    model: &Model,
    param: &str,
    format: &AnswerFormat,
    toolbox: &Toolbox,
) -> Result<Option<Box<dyn Constraint>>, ApiError> {
    let Some(rules) = rules(format, toolbox) else { return Ok(None) };
    let build = || model.grammars.constraint(&model.tokenizer, model.handle.vocab(), &rules);
    block_in_place_if_large(usize::MAX, build).map(Some).map_err(|error| refusal(param, error))
}

/// The response format that the prompt contains, in addition to the constraint.
pub fn shown(format: &AnswerFormat) -> Option<ResponseFormat> {
    match format {
        AnswerFormat::Json(format) => format.clone(),
        AnswerFormat::Free | AnswerFormat::Call(_) => None,
    }
}

/// The rules for the turn; `None` if anything is allowed. A forced call takes precedence over a format of the answer.
fn rules(format: &AnswerFormat, toolbox: &Toolbox) -> Option<TurnRules> {
    let Toolbox { functions, strict, tool_choice } = toolbox;
    let is_strict = |function: &Function| strict.contains(&function.name);
    let forced = match tool_choice {
        AnswerFormat::Call(names) => Some(names),
        AnswerFormat::Free | AnswerFormat::Json(_) => None,
    };
    let answer = match (forced, format) {
        (Some(_), _) => None,
        (None, AnswerFormat::Json(Some(ResponseFormat { schema, .. }))) => {
            Some(Content::Json { schema: schema.clone(), lenient: false })
        }
        (None, AnswerFormat::Json(None)) => Some(Content::object()),
        (None, _) => Some(Content::Text),
    };
    if answer == Some(Content::Text) && !functions.iter().any(is_strict) {
        return None;
    }
    let callable = functions.iter().filter(|function| forced.is_none_or(|names| names.contains(&function.name)));
    let calls = callable.map(|function| {
        // The arguments of a forced call follow the schema if it can be enforced; otherwise they are any JSON object.
        let content = match (is_strict(function), forced) {
            (false, None) => Content::Text,
            (is_strict, _) => Content::Json { schema: parameters(function), lenient: !is_strict },
        };
        (function.name.clone(), content)
    });
    Some(TurnRules { answer, calls: calls.collect() })
}

/// The schema of a function's arguments.
fn parameters(function: &Function) -> Value {
    let nothing = || json!({ "type": "object", "properties": {}, "additionalProperties": false });
    function.parameters.clone().unwrap_or_else(nothing)
}

fn refusal(param: &str, error: GrammarError) -> ApiError {
    match error {
        GrammarError::Schema { function: Some(function), path, problem } => {
            let message = format!(
                "The parameters of the function `{}` cannot be enforced: {problem} (at `{}`).",
                shortened(&function),
                shortened(&path)
            );
            ApiError::unsupported("tools", message)
        }
        GrammarError::Schema { function: None, path, problem } => {
            let message = format!("The schema of `{param}` cannot be enforced: {problem} (at `{}`).", shortened(&path));
            ApiError::unsupported(param, message)
        }
        GrammarError::TooMany => ApiError::invalid("tools", format!("Too many strict functions: {error}.")),
        GrammarError::Vocabulary(message) => {
            ApiError::bad_request(format!("This model's output cannot be constrained: {message}."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolbox(strict: &[&str], tool_choice: AnswerFormat) -> Toolbox {
        let functions = ["f", "g"].map(|name| Function { name: name.into(), description: None, parameters: None });
        Toolbox { functions: functions.to_vec(), strict: strict.iter().map(|&name| name.into()).collect(), tool_choice }
    }

    /// A short description of the rules: the answer, and each function with the kind of its arguments.
    fn brief(format: AnswerFormat, toolbox: &Toolbox) -> Option<String> {
        let kind = |content: &Content| match content {
            Content::Text => "text",
            Content::Json { lenient: false, .. } => "json",
            Content::Json { lenient: true, .. } => "lenient",
        };
        let TurnRules { answer, calls } = rules(&format, toolbox)?;
        let answer = answer.as_ref().map_or("none", kind);
        let calls: String = calls.iter().map(|(name, content)| format!(" {name}:{}", kind(content))).collect();
        Some(format!("{answer}{calls}"))
    }

    #[test]
    fn only_required_formats_are_constrained() {
        let auto = toolbox(&[], AnswerFormat::Free);
        assert_eq!(brief(AnswerFormat::Free, &auto), None);
        assert_eq!(brief(AnswerFormat::Free, &Toolbox::default()), None);
        assert_eq!(brief(AnswerFormat::Json(None), &Toolbox::default()).as_deref(), Some("json"));
        assert_eq!(brief(AnswerFormat::Json(None), &auto).as_deref(), Some("json f:text g:text"));
        assert_eq!(
            brief(AnswerFormat::Free, &toolbox(&["g"], AnswerFormat::Free)).as_deref(),
            Some("text f:text g:json")
        );
        // A strict function that is not among `functions`, because the tool choice excludes it, adds no constraint.
        assert_eq!(brief(AnswerFormat::Free, &toolbox(&["h"], AnswerFormat::Free)), None);
        let forced = toolbox(&["g"], AnswerFormat::Call(vec!["f".into(), "g".into()]));
        assert_eq!(brief(AnswerFormat::Json(None), &forced).as_deref(), Some("none f:lenient g:json"));
        let named = toolbox(&[], AnswerFormat::Call(vec!["g".into()]));
        assert_eq!(brief(AnswerFormat::Free, &named).as_deref(), Some("none g:lenient"));
    }
}
