//! Functions declared in a file: `--tools F.json`.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use harmony::Function;
use serde_json::Value;

/// Reads an array of OpenAI's tools, `{"type": "function", "function": {…}}`, or of the functions themselves.
///
/// # Errors
/// The file cannot be read, or its content is invalid.
pub fn read(file: &Path) -> Result<Vec<Function>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    functions(&text).with_context(|| file.display().to_string())
}

fn functions(text: &str) -> Result<Vec<Function>> {
    let Value::Array(tools) = serde_json::from_str(text).context("not JSON")? else {
        bail!("expected an array of functions");
    };
    let mut names = HashSet::new();
    let mut functions = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let function = function(tool).with_context(|| format!("function {index}"))?;
        ensure!(names.insert(function.name.clone()), "two functions are called `{}`", function.name);
        functions.push(function);
    }
    Ok(functions)
}

fn function(tool: &Value) -> Result<Function> {
    let kind = tool.get("type").and_then(Value::as_str).unwrap_or("function");
    ensure!(kind == "function", "only functions can be declared, found the type `{kind}`");
    let function = tool.get("function").unwrap_or(tool);
    let name = function.get("name").and_then(Value::as_str).context("expected a `name`")?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    ensure!(is_name, "expected a name of letters, digits, `_`, `-` and `.`, found `{name}`");
    let parameters = function.get("parameters").filter(|parameters| !parameters.is_null());
    ensure!(parameters.is_none_or(Value::is_object), "expected a JSON schema as the `parameters` of `{name}`");
    let description = function.get("description").and_then(Value::as_str).map(str::to_owned);
    Ok(Function { name: name.into(), description, parameters: parameters.cloned() })
}

#[cfg(test)]
mod tests {
    use super::functions;

    #[test]
    fn both_tool_formats_are_read() {
        let text = r#"[{"type": "function", "function": {"name": "a", "description": "A", "parameters": {"type": "object"}}},
            {"name": "b.c-d_1"}, {"type": "function", "name": "e", "parameters": null, "strict": true}]"#;
        let functions = functions(text).expect("well-formed");
        assert_eq!(functions.iter().map(|function| function.name.as_str()).collect::<Vec<_>>(), ["a", "b.c-d_1", "e"]);
        assert_eq!(functions[0].description.as_deref(), Some("A"));
        assert!(functions[0].parameters.is_some() && functions[2].parameters.is_none());
    }

    #[test]
    fn anything_else_is_refused() {
        for (text, message) in [
            ("", "not JSON: EOF while parsing a value at line 1 column 0"),
            ("{}", "expected an array of functions"),
            ("[1]", "function 0: expected a `name`"),
            (r#"[{"name": "a b"}]"#, "function 0: expected a name of letters, digits, `_`, `-` and `.`, found `a b`"),
            (
                r#"[{"type": "custom", "name": "a"}]"#,
                "function 0: only functions can be declared, found the type `custom`",
            ),
            (r#"[{"name": "a", "parameters": 3}]"#, "function 0: expected a JSON schema as the `parameters` of `a`"),
            (r#"[{"name": "a"}, {"name": "a"}]"#, "two functions are called `a`"),
        ] {
            assert_eq!(format!("{:#}", functions(text).expect_err("malformed")), message);
        }
    }
}
