//! Converts JSON schemas to TypeScript types, in which GPT-OSS expects the declarations of functions.

use serde_json::{Map, Value};

/// Depth of nesting up to which values are written out; deeper ones become `any`.
const DEPTH: usize = 64;
/// Bytes of schema that references may add in total; of further references, only the keys next to them are used.
const REFERENCED: usize = 256 << 10;

/// The TypeScript type of a schema.
pub(crate) fn typescript(schema: &Value) -> String {
    Writer { root: schema, open: Vec::new(), referenced: 0, depth: 0 }.value(schema, "")
}

/// A text as comment lines.
pub(crate) fn comment(text: &str, indent: &str) -> String {
    text.lines().map(|line| format!("{indent}// {line}\n")).collect()
}

/// The value of a key as a comment. An empty value gives an empty comment line.
fn remark(schema: &Value, key: &str, indent: &str) -> Option<String> {
    Some(match text_of(schema, key)? {
        "" => format!("{indent}// \n"),
        text => comment(text, indent),
    })
}

struct Writer<'a> {
    root: &'a Value,
    /// References that are being resolved, to detect cycles.
    open: Vec<String>,
    /// Bytes that references have added so far.
    referenced: usize,
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, schema: &Value, indent: &str) -> String {
        if self.depth == DEPTH {
            return "any".into();
        }
        self.depth += 1;
        let text = self.resolved(schema, |this, schema| this.resolved_value(schema, indent));
        self.depth -= 1;
        text
    }

    fn resolved_value(&mut self, schema: &Value, indent: &str) -> String {
        if let Some(variants) = listed_variants(schema) {
            return self.union(variants, None, indent);
        }
        if let Some(variants) = any_of(schema) {
            let types: Vec<String> =
                variants.iter().map(|variant| or_null(variant, self.value(variant, indent))).collect();
            return types.join(" | ");
        }
        match schema.get("type") {
            Some(Value::Array(types)) => type_names(types),
            Some(Value::String(name)) => match name.as_str() {
                "object" => self.object(schema, indent),
                "array" => match schema.get("items") {
                    Some(items) => self.value(items, indent) + "[]",
                    None => "Array<any>".into(),
                },
                "string" => string(schema),
                "number" | "integer" => "number".into(),
                "boolean" => "boolean".into(),
                "null" => "null".into(),
                _ => "any".into(),
            },
            _ => "any".into(),
        }
    }

    fn object(&mut self, schema: &Value, indent: &str) -> String {
        let mut text = remark(schema, "description", indent).unwrap_or_default() + "{\n";
        if let Some(Value::Object(properties)) = schema.get("properties") {
            let required = schema.get("required").and_then(Value::as_array);
            for (name, property) in properties {
                let is_required = required.is_some_and(|names| names.iter().any(|required| required == name.as_str()));
                let name = if is_required { name.clone() } else { format!("{name}?") };
                text += &self.resolved(property, |this, property| this.property(&name, property, indent));
            }
        }
        text + indent + "}"
    }

    /// `NAME: TYPE, // default: VALUE`, preceded by comments; or a union with one line per variant.
    fn property(&mut self, name: &str, schema: &Value, indent: &str) -> String {
        let title = remark(schema, "title", indent).map_or(String::new(), |title| format!("{title}{indent}//\n"));
        let description = remark(schema, "description", indent).unwrap_or_default();
        let examples = examples(schema, indent);
        let default = default(schema, true);
        match listed_variants(schema) {
            Some(variants) => {
                let default = default.map_or(String::new(), |default| format!("{indent}// {default}\n"));
                let variants = self.union(variants, Some(schema), indent);
                format!("{title}{examples}{description}{default}{indent}{name}:{variants}\n{indent},\n")
            }
            None => {
                let default = default.map_or(String::new(), |default| format!(" // {default}"));
                let value = or_null(schema, self.value(schema, &format!("{indent}    ")));
                format!("{title}{description}{examples}{indent}{name}: {value},{default}\n")
            }
        }
    }

    /// One line per variant, followed by its comment. If the property has a description, the caller writes it above: variants do not repeat
    /// it, and it replaces the first variant's.
    fn union(&mut self, variants: &[Value], property: Option<&Value>, indent: &str) -> String {
        let above = property.and_then(|property| text_of(property, "description"));
        let inner = format!("{indent}   ");
        let mut text = String::new();
        for (index, variant) in variants.iter().enumerate() {
            text += &self.resolved(variant, |this, variant| {
                let value = or_null(variant, this.value(variant, &inner));
                let description = text_of(variant, "description");
                let description = description.filter(|&text| above.is_none_or(|above| index > 0 && text != above));
                let description = description.map(|text| text.lines().collect::<Vec<_>>().join(" "));
                let default = default(variant, property.is_some());
                let remarks: Vec<String> = description.into_iter().chain(default).collect();
                let remarks = if remarks.is_empty() { String::new() } else { format!(" // {}", remarks.join(" ")) };
                format!("\n{indent} | {value}{remarks}")
            });
        }
        text
    }

    /// Calls `write` with the schema; a reference is replaced by its target, over which the keys next to the reference take precedence.
    /// Only those keys are used if the reference is circular, leads to no object of this document, or would exceed [`REFERENCED`].
    fn resolved(&mut self, schema: &Value, write: impl FnOnce(&mut Self, &Value) -> String) -> String {
        let Some((reference, beside)) = reference(schema) else { return write(self, schema) };
        let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let target = target.filter(|_| !self.open.iter().any(|open| open == reference));
        let size = target.map_or(0, |target| target.to_string().len());
        let Some(Value::Object(target)) = target.filter(|_| self.referenced + size <= REFERENCED) else {
            return write(self, &Value::Object(beside));
        };
        self.referenced += size;
        let mut merged = target.clone();
        merged.extend(beside);
        self.open.push(reference.to_owned());
        let text = self.resolved(&Value::Object(merged), write);
        self.open.pop();
        text
    }
}

/// A reference, and the schema without it.
fn reference(schema: &Value) -> Option<(&str, Map<String, Value>)> {
    let reference = schema.get("$ref")?.as_str()?;
    let others = schema.as_object()?.iter().filter(|(key, _)| *key != "$ref");
    Some((reference, others.map(|(key, value)| (key.clone(), value.clone())).collect()))
}

/// Variants that are written one per line.
fn listed_variants(schema: &Value) -> Option<&[Value]> {
    match schema.get("oneOf") {
        Some(Value::Array(variants)) => Some(variants),
        _ => any_of(schema).filter(|variants| !variants.iter().all(is_plain)),
    }
}

/// The variants of `anyOf`; `None` if the schema also has a `type`, which `anyOf` then only narrows.
fn any_of(schema: &Value) -> Option<&[Value]> {
    let variants: &[Value] = schema.get("anyOf")?.as_array()?;
    (schema.get("type").is_none() && !variants.is_empty()).then_some(variants)
}

/// Whether a variant is short enough to be written on one line with others: a scalar type or an array of such, without a comment, a
/// reference or variants.
fn is_plain(schema: &Value) -> bool {
    let says_more = ["description", "default", "$ref", "oneOf", "anyOf"].iter().any(|&key| schema.get(key).is_some());
    let plain = match text_of(schema, "type") {
        Some("string" | "number" | "integer" | "boolean" | "null") => true,
        Some("array") => schema.get("items").is_none_or(is_plain),
        _ => false,
    };
    plain && !says_more
}

/// The type `string`, or a union of strings if the schema lists them in `enum`.
fn string(schema: &Value) -> String {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let strings: Vec<String> = listed.filter_map(Value::as_str).map(quoted).collect();
    if strings.is_empty() { "string".into() } else { strings.join(" | ") }
}

fn type_names(types: &[Value]) -> String {
    let names: Vec<&str> = types.iter().filter_map(Value::as_str).collect();
    if names.is_empty() {
        return "any".into();
    }
    let names: Vec<&str> = names.into_iter().map(|name| if name == "integer" { "number" } else { name }).collect();
    names.join(" | ")
}

/// The type, as a union with null if the schema says `nullable`.
fn or_null(schema: &Value, value: String) -> String {
    let is_nullable = schema.get("nullable") == Some(&Value::Bool(true));
    if is_nullable && !names_null(schema) { value + " | null" } else { value }
}

/// Whether null is among the types of a schema.
fn names_null(schema: &Value) -> bool {
    let is_null = |name: &Value| name == "null";
    match (any_of(schema), schema.get("type")) {
        (Some(variants), _) => variants.iter().any(names_null),
        (None, Some(Value::Array(types))) => types.iter().any(is_null),
        (None, name) => name.is_some_and(is_null),
    }
}

/// `default: VALUE`. Strings are quoted, except if they have no line break and the schema has an `enum` and is a property or a variant of
/// one.
fn default(schema: &Value, in_property: bool) -> Option<String> {
    let default = schema.get("default")?;
    let listed = schema.get("enum").and_then(Value::as_array).is_some_and(|listed| !listed.is_empty());
    Some(match default {
        Value::String(text) if listed && in_property && !text.contains(['\n', '\r']) => format!("default: {text}"),
        Value::String(text) if !listed => format!("default: {}", quoted(text)),
        Value::Number(number) => format!("default: {}", number.to_string().replace("e+", "e")),
        other => format!("default: {other}"),
    })
}

fn examples(schema: &Value, indent: &str) -> String {
    let Some(Value::Array(examples)) = schema.get("examples") else { return String::new() };
    if examples.is_empty() {
        return String::new();
    }
    let lines = examples.iter().filter_map(Value::as_str).map(|text| format!("{indent}// - {}\n", quoted(text)));
    format!("{indent}// Examples:\n") + &lines.collect::<String>()
}

/// A quoted text. It is escaped, as in JSON, only if it has a line break.
fn quoted(text: &str) -> String {
    match text.contains(['\n', '\r']) {
        true => Value::from(text).to_string(),
        false => format!("\"{text}\""),
    }
}

fn text_of<'s>(schema: &'s Value, key: &str) -> Option<&'s str> {
    schema.get(key)?.as_str()
}
