//! Validates a value against a JSON schema: the keywords that tests use, implemented from the specification,
//! except that `enum` and `const` distinguish 1 from 1.0.

use serde_json::{Value, json};

pub fn fits(schema: &Value, value: &Value) -> bool {
    fits_in(schema, schema, value)
}

fn fits_in(root: &Value, schema: &Value, value: &Value) -> bool {
    let Value::Object(keywords) = schema else { return *schema == json!(true) };
    let number = |of: &Value, holds: fn(f64, f64) -> bool| {
        value.as_f64().is_none_or(|value| holds(value, of.as_f64().expect("a number")))
    };
    let items = value.as_array();
    let members = value.as_object();
    let characters = value.as_str().map(|text| text.chars().count());
    let size = |of: &Value| of.as_u64().expect("a size") as usize;
    let schemas = |of: &Value| of.as_array().expect("schemas").clone();
    keywords.iter().all(|(keyword, of)| match keyword.as_str() {
        "type" => match of {
            Value::Array(kinds) => kinds.iter().any(|kind| is_kind(kind, value)),
            kind => is_kind(kind, value),
        },
        "enum" => of.as_array().expect("values").contains(value),
        "const" => of == value,
        "anyOf" => schemas(of).iter().any(|schema| fits_in(root, schema, value)),
        "oneOf" => schemas(of).iter().filter(|schema| fits_in(root, schema, value)).count() == 1,
        "allOf" => schemas(of).iter().all(|schema| fits_in(root, schema, value)),
        "$ref" => {
            let pointer = of.as_str().expect("a reference").trim_start_matches('#');
            fits_in(root, root.pointer(pointer).expect("the reference resolves"), value)
        }
        "properties" => {
            let of = of.as_object().expect("schemas");
            of.iter().all(|(name, schema)| value.get(name).is_none_or(|value| fits_in(root, schema, value)))
        }
        "required" => {
            let names = of.as_array().expect("names");
            members.is_none_or(|members| names.iter().all(|name| members.contains_key(name.as_str().expect("a name"))))
        }
        "additionalProperties" => members.is_none_or(|members| {
            let others = members.iter().filter(|(name, _)| schema["properties"].get(name).is_none());
            others.map(|(_, value)| value).all(|value| fits_in(root, of, value))
        }),
        "items" => items.is_none_or(|items| items.iter().all(|item| fits_in(root, of, item))),
        "minItems" => items.is_none_or(|items| items.len() >= size(of)),
        "maxItems" => items.is_none_or(|items| items.len() <= size(of)),
        "minLength" => characters.is_none_or(|characters| characters >= size(of)),
        "maxLength" => characters.is_none_or(|characters| characters <= size(of)),
        "minimum" => number(of, |value, of| value >= of),
        "maximum" => number(of, |value, of| value <= of),
        "pattern" => {
            let pattern = regex::Regex::new(of.as_str().expect("a pattern")).expect("a regular expression");
            value.as_str().is_none_or(|text| pattern.is_match(text))
        }
        "$defs" | "title" | "description" | "default" => true,
        other => panic!("the keyword `{other}` is not implemented here"),
    })
}

fn is_kind(kind: &Value, value: &Value) -> bool {
    match kind.as_str().expect("a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        // According to the specification, -0 and 1.0 are integers too.
        "integer" => value.as_f64().is_some_and(|value| value.fract() == 0.0),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{other} is no type"),
    }
}
