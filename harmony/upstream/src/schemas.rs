//! Random JSON schemas of function parameters.
//!
//! They have no parts that OpenAI's crate loses and that `harmony` therefore writes differently on purpose: see
//! `harmony::DeveloperPrompt`.

use rand::{Rng, RngExt};
use serde_json::{Map, Value, json};

use crate::text::{line, maybe, name, one_of};

/// The schema of a function's parameters: usually an object, sometimes any other schema.
pub fn parameters(rng: &mut impl Rng) -> Value {
    match rng.random_range(0..12) {
        0 => json!({}),
        1 => schema(rng, 2),
        2 => json!({"type": "object", "properties": {}}),
        _ => {
            let mut object = object(rng, 3);
            decorate(rng, &mut object);
            Value::Object(object)
        }
    }
}

/// Any schema, with at most `depth` levels of nesting.
pub fn schema(rng: &mut impl Rng, depth: usize) -> Value {
    let mut schema = match rng.random_range(0..if depth > 0 { 16 } else { 9 }) {
        0..3 => string(rng),
        3 => of_type("number"),
        4 => of_type("integer"),
        5 => of_type("boolean"),
        6 => several_types(rng),
        7 => of_type("array"),
        8 => one_of(rng, &[Map::new(), of_type("date"), keyed("const", json!(1)), keyed("allOf", json!([]))]),
        9..11 => keyed_more(of_type("array"), "items", self::schema(rng, depth - 1)),
        11..14 => object(rng, depth - 1),
        _ => {
            let count = rng.random_range(0..4);
            keyed("oneOf", (0..count).map(|_| self::schema(rng, depth - 1)).collect())
        }
    };
    decorate(rng, &mut schema);
    Value::Object(schema)
}

fn keyed(key: &str, value: Value) -> Map<String, Value> {
    keyed_more(Map::new(), key, value)
}

fn keyed_more(mut schema: Map<String, Value>, key: &str, value: Value) -> Map<String, Value> {
    schema.insert(key.into(), value);
    schema
}

fn of_type(name: &str) -> Map<String, Value> {
    keyed("type", name.into())
}

fn string(rng: &mut impl Rng) -> Map<String, Value> {
    let mut schema = of_type("string");
    if rng.random_bool(0.4) {
        let count = rng.random_range(0..4);
        let mut values: Vec<Value> = (0..count).map(|_| line(rng).into()).collect();
        values.extend(maybe(rng, 0.1, |rng| one_of(rng, &[json!(null), json!(3)])));
        schema.insert("enum".into(), values.into());
    }
    schema
}

fn several_types(rng: &mut impl Rng) -> Map<String, Value> {
    let names = ["string", "number", "integer", "boolean", "null", "object", "array"];
    let count = rng.random_range(0..4);
    keyed("type", (0..count).map(|_| one_of(rng, &names)).collect())
}

fn object(rng: &mut impl Rng, depth: usize) -> Map<String, Value> {
    let mut schema = of_type("object");
    if rng.random_bool(0.9) {
        let count = rng.random_range(0..5);
        let properties: Map<String, Value> = (0..count).map(|_| (name(rng), self::schema(rng, depth))).collect();
        if rng.random_bool(0.7) {
            let mut required: Vec<Value> = properties.keys().map(|name| name.as_str().into()).collect();
            required.retain(|_| rng.random_bool(0.5));
            required.extend(maybe(rng, 0.1, |_| "missing".into()));
            schema.insert("required".into(), required.into());
        }
        schema.insert("properties".into(), properties.into());
    }
    schema
}

/// Adds keys that any schema may have.
fn decorate(rng: &mut impl Rng, schema: &mut Map<String, Value>) {
    let default = match schema.get("enum").and_then(Value::as_array).filter(|values| !values.is_empty()) {
        Some(values) if rng.random_bool(0.7) => one_of(rng, values),
        _ => value(rng, 2),
    };
    if let Some(Value::Array(variants)) = schema.get("oneOf") {
        // OpenAI's crate loses a description that the first variant repeats.
        let first = variants.first().and_then(|variant| variant.get("description"));
        let of_all = maybe(rng, 0.4, line).filter(|text| first.is_none_or(|first| first != text.as_str()));
        schema.extend(of_all.map(|text| ("description".to_owned(), text.into())));
    } else {
        schema.extend(maybe(rng, 0.4, line).map(|text| ("description".to_owned(), text.into())));
    }
    // OpenAI's crate also loses `nullable` if the word "null" occurs anywhere in the values of these keys.
    let type_keys = ["enum", "items", "properties", "oneOf", "description"];
    let mentions_null =
        type_keys.iter().filter_map(|key| schema.get(*key)).any(|value| value.to_string().contains("null"));
    let nullable = maybe(rng, 0.15, |rng| rng.random::<bool>()).filter(|&nullable| !(nullable && mentions_null));
    let extras = [
        ("title", maybe(rng, 0.15, |rng| line(rng).into())),
        ("examples", maybe(rng, 0.15, |rng| (0..rng.random_range(0..3)).map(|_| value(rng, 1)).collect())),
        ("default", Some(default).filter(|_| rng.random_bool(0.3))),
        ("nullable", nullable.map(Value::from)),
        // Neither implementation writes these keys.
        ("additionalProperties", maybe(rng, 0.1, |rng| rng.random::<bool>().into())),
        ("minimum", maybe(rng, 0.05, |_| 3.into())),
        ("pattern", maybe(rng, 0.05, |rng| line(rng).into())),
    ];
    schema.extend(extras.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
}

/// A JSON value without line breaks. Numbers have no exponent, because its format depends on the version of `serde_json`.
fn value(rng: &mut impl Rng, depth: usize) -> Value {
    match rng.random_range(0..if depth > 0 { 8 } else { 6 }) {
        0 => Value::Null,
        1 => rng.random::<bool>().into(),
        2 => rng.random_range(-1_000_000_000_000i64..1_000_000_000_000).into(),
        3 => (f64::from(rng.random_range(-100_000..100_000)) / 64.0).into(),
        4 | 5 => line(rng).into(),
        6 => (0..rng.random_range(0..3)).map(|_| value(rng, depth - 1)).collect(),
        _ => (0..rng.random_range(0..3)).map(|_| (name(rng), value(rng, depth - 1))).collect(),
    }
}
