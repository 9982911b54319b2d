//! The accepted JSON schemas: within limits, and without keywords that cannot be enforced.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// The largest depth of nested schemas.
const MAX_DEPTH: usize = 48;
/// The largest total number of schemas and values.
const MAX_NODES: usize = 10_000;
/// The largest total size of names and texts, in bytes.
const MAX_BYTES: usize = 256 << 10;
/// The largest number of different `$ref` targets. Together with the depth this bounds the recursion of the grammar
/// compiler.
const MAX_REFERENCES: usize = 128;

/// Keywords that constrain values in ways that the grammar cannot express.
const UNSUPPORTED: [&str; 18] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
];

const FORMATS: [&str; 11] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"];

/// A path in the schema, and the problem there.
type Fault = (String, String);

/// Checks that a schema is an object that can be enforced. Other errors are found by the grammar compiler.
pub(super) fn check(schema: &Value) -> Result<(), Fault> {
    if !schema.is_object() {
        return fault("#", "a schema must be an object");
    }
    let mut checker = SchemaChecker { root: schema, nodes: 0, bytes: 0, references: BTreeSet::new() };
    checker.schema(schema, "#", 0)
}

fn fault<T>(path: &str, problem: impl Into<String>) -> Result<T, Fault> {
    Err((path.to_owned(), problem.into()))
}

struct SchemaChecker<'a> {
    root: &'a Value,
    nodes: usize,
    bytes: usize,
    references: BTreeSet<&'a str>,
}

impl<'a> SchemaChecker<'a> {
    /// Counts a schema or a value, and checks the limits.
    fn count(&mut self, value: &Value, path: &str, depth: usize) -> Result<(), Fault> {
        self.nodes += 1;
        self.bytes += match value {
            Value::String(text) => text.len(),
            Value::Object(members) => members.keys().map(String::len).sum(),
            _ => 0,
        };
        if depth > MAX_DEPTH {
            return fault(path, format!("a schema may be nested at most {MAX_DEPTH} deep"));
        }
        if self.nodes > MAX_NODES || self.bytes > MAX_BYTES {
            let most = format!("a schema may have at most {MAX_NODES} parts and {MAX_BYTES} bytes of names and texts");
            return fault(path, most);
        }
        Ok(())
    }

    fn schema(&mut self, schema: &'a Value, path: &str, depth: usize) -> Result<(), Fault> {
        self.count(schema, path, depth)?;
        let Value::Object(members) = schema else { return Ok(()) };
        for (keyword, value) in members {
            let at = format!("{path}/{keyword}");
            match keyword.as_str() {
                "properties" | "patternProperties" | "$defs" | "definitions" => {
                    for (name, schema) in value.as_object().into_iter().flatten() {
                        self.schema(schema, &format!("{at}/{name}"), depth + 1)?;
                    }
                }
                "anyOf" | "oneOf" | "allOf" | "prefixItems" | "items" | "additionalItems" | "additionalProperties" => {
                    match value {
                        Value::Array(schemas) => {
                            for (index, schema) in schemas.iter().enumerate() {
                                self.schema(schema, &format!("{at}/{index}"), depth + 1)?;
                            }
                        }
                        schema => self.schema(schema, &at, depth + 1)?,
                    }
                }
                "enum" | "const" => self.value(value, &at, depth + 1)?,
                "$ref" => self.reference(value, &at)?,
                "format" => check_format(members, value, &at)?,
                _ if UNSUPPORTED.contains(&keyword.as_str()) => {
                    return fault(&at, format!("`{keyword}` is not supported"));
                }
                // The compiler checks and enforces `type`, `required`, limits and patterns. Annotations and unknown keywords do not
                // constrain a value.
                _ => self.count(value, &at, depth + 1)?,
            }
        }
        Ok(())
    }

    fn value(&mut self, value: &Value, path: &str, depth: usize) -> Result<(), Fault> {
        self.count(value, path, depth)?;
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.value(item, path, depth + 1)),
            Value::Object(members) => members.values().try_for_each(|member| self.value(member, path, depth + 1)),
            _ => Ok(()),
        }
    }

    /// Checks that a reference names a part of the same schema, and that a chain of references ends. The target is checked where it is
    /// defined, unless that is below a keyword whose parts [`SchemaChecker::schema`] does not check.
    fn reference(&mut self, value: &'a Value, path: &str) -> Result<(), Fault> {
        let Some(mut reference) = value.as_str() else { return fault(path, "`$ref` must be a string") };
        self.references.insert(reference);
        if self.references.len() > MAX_REFERENCES {
            return fault(path, format!("a schema may refer to at most {MAX_REFERENCES} places"));
        }
        let mut passed = BTreeSet::new();
        loop {
            if !reference.starts_with('#') {
                return fault(path, "`$ref` may only name a part of the same schema, such as `#/$defs/name`");
            }
            if !passed.insert(reference) {
                return fault(path, "`$ref` leads only to itself");
            }
            let Some(named) = self.find(reference) else {
                let shown: String = reference.chars().take(100).collect();
                return fault(path, format!("`$ref` names `{shown}`, which the schema does not have"));
            };
            match named.get("$ref").and_then(Value::as_str) {
                Some(next) => reference = next,
                None => return Ok(()),
            }
        }
    }

    /// The target of a reference, resolved as by the compiler.
    fn find(&self, reference: &str) -> Option<&'a Value> {
        let pointer = reference.strip_prefix('#')?;
        if pointer.is_empty() || pointer == "/" {
            return Some(self.root);
        }
        pointer.strip_prefix('/')?.split('/').try_fold(self.root, |value, segment| match value {
            Value::Array(items) => items.get(segment.parse::<usize>().ok()?),
            value => value.get(segment),
        })
    }
}

/// Checks a `format`, which constrains only strings.
fn check_format(members: &Map<String, Value>, format: &Value, path: &str) -> Result<(), Fault> {
    let is_string = |kind: &Value| kind == "string";
    let concerns_strings = match members.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(is_string),
        Some(kind) => is_string(kind),
    };
    match format.as_str() {
        Some(name) if concerns_strings && !FORMATS.contains(&name) => {
            let shown: String = name.chars().take(100).collect();
            fault(path, format!("the `format` `{shown}` is not supported"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path_of_fault(schema: Value) -> Option<String> {
        check(&schema).err().map(|(path, _)| path)
    }

    #[test]
    fn unenforceable_keywords_are_refused_with_their_path() {
        let within = |inner: Value| json!({ "type": "object", "properties": { "a": { "items": inner } } });
        for keyword in UNSUPPORTED {
            let fault = check(&within(json!({ keyword: true }))).expect_err("refused");
            assert_eq!(fault.0, format!("#/properties/a/items/{keyword}"));
            assert!(fault.1.contains(keyword), "{}", fault.1);
        }
        let cases = [
            (json!(true), "#"),
            (within(json!({ "$ref": "https://example.com/a.json" })), "#/properties/a/items/$ref"),
            (within(json!({ "$ref": "#/$defs/missing" })), "#/properties/a/items/$ref"),
            (json!({ "$ref": "#" }), "#/$ref"),
            (json!({ "anyOf": [{}, { "type": "string", "format": "iri" }] }), "#/anyOf/1/format"),
            (json!({ "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }), "#/$defs/a/$ref"),
        ];
        for (schema, path) in cases {
            assert_eq!(path_of_fault(schema.clone()).as_deref(), Some(path), "{schema}");
        }
    }

    #[test]
    fn property_names_are_not_keywords() {
        let schema = json!({
            "type": "object",
            "title": "a title",
            "properties": { "not": { "type": "integer", "format": "int32" }, "$ref": { "$ref": "#/$defs/x" } },
            "$defs": { "x": { "anyOf": [{ "type": "null" }, { "$ref": "#" }] } },
            "nullable": true,
        });
        assert_eq!(check(&schema), Ok(()));
    }

    #[test]
    fn size_and_depth_have_limits() {
        let mut deep = json!({});
        for _ in 0..1000 {
            deep = json!({ "items": deep });
        }
        assert!(path_of_fault(deep).is_some_and(|path| path.starts_with("#/items/items")));
        let mut deep = json!(0);
        for _ in 0..1000 {
            deep = json!([deep]);
        }
        assert_eq!(path_of_fault(json!({ "const": deep })).as_deref(), Some("#/const"));
        let many: Vec<usize> = (0..MAX_NODES).collect();
        assert_eq!(path_of_fault(json!({ "enum": many })).as_deref(), Some("#/enum"));
        assert!(check(&json!({ "enum": (0..MAX_NODES - 10).collect::<Vec<usize>>() })).is_ok());
        assert_eq!(path_of_fault(json!({ "const": "x".repeat(MAX_BYTES + 1) })).as_deref(), Some("#/const"));
        let names: Vec<Value> = (0..=MAX_REFERENCES).map(|n| json!({ "$ref": format!("#/$defs/{n}") })).collect();
        let defs: Map<String, Value> = (0..=MAX_REFERENCES).map(|n| (n.to_string(), json!({}))).collect();
        let last = format!("#/anyOf/{MAX_REFERENCES}/$ref");
        assert_eq!(path_of_fault(json!({ "anyOf": names, "$defs": defs })), Some(last));
    }
}
