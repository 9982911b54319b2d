//! Random turns under a constraint: whatever tokens a model prefers, the turn has the requested form.

mod schema;

use std::path::Path;

use gptoss_reference::Random;
use harmony::{Function, Harmony, Message};
use phase1_loading::{Checkpoint, Tokenizer};
use schema::fits;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use serving::grammar::{Content, GrammarError, Grammars, TurnRules};
use serving::request::Constraint;

/// After `STEER_AFTER` tokens a turn is steered to its end, which it must reach within `MOST` tokens.
const STEER_AFTER: usize = 150;
const MOST: usize = 20_000;

fn tokenizer() -> Tokenizer {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/gptoss-tiny.gguf");
    Checkpoint::open(&file).expect("opens").tokenizer().expect("builds")
}

fn bits(mask: &[u32]) -> Vec<u32> {
    (0..mask.len() as u32 * 32).filter(|&token| mask[token as usize / 32] >> (token % 32) & 1 == 1).collect()
}

fn is_allowed(constraint: &dyn Constraint, token: u32) -> bool {
    constraint.allowed().is_none_or(|mask| mask[token as usize / 32] >> (token % 32) & 1 == 1)
}

/// Tokens that end messages and parts of JSON, in the order in which they are tried to end JSON: where a value is expected this gives `""`,
/// and after a value, closing tokens come before separators.
fn closers(tokenizer: &Tokenizer) -> Vec<u32> {
    let ends = ["<|end|>", "<|return|>", "<|call|>"].map(|name| tokenizer.control(name).expect("a control token"));
    let parts = ["\"", "}", "]", ",", ":"].map(|text| tokenizer.encode(text)[0]);
    [&ends[..], &parts].concat()
}

/// A random turn. About every fourth token closes something, so that turns differ in structure and not only in words.
fn draw(tokenizer: &Tokenizer, mut constraint: Box<dyn Constraint>, random: &mut Random) -> Vec<u32> {
    let closers = closers(tokenizer);
    let mut tokens = Vec::new();
    while let Some(mask) = constraint.allowed() {
        let allowed = bits(mask);
        let closing: Vec<u32> = closers.iter().copied().filter(|token| allowed.contains(token)).collect();
        let token = match closing.first() {
            Some(&first) if tokens.len() >= STEER_AFTER => first,
            Some(_) if random.below(4) == 0 => random.of(&closing),
            _ => random.of(&allowed),
        };
        tokens.push(token);
        constraint.push(token).expect("a token that was allowed");
        assert!(tokens.len() < MOST, "the turn does not end: {}", tokenizer.decode(&tokens));
    }
    tokens
}

/// The last message of a turn, which must be well-formed.
fn last_message(tokenizer: &Tokenizer, tokens: &[u32], functions: &[&str]) -> Message {
    let functions = functions.iter().map(|&name| Function { name: name.into(), description: None, parameters: None });
    let functions: Vec<Function> = functions.collect();
    let harmony = Harmony::new(tokenizer).expect("harmony's control tokens");
    let mut parser = harmony.parser().with_functions(&functions);
    tokens.iter().for_each(|&token| drop(parser.push(token)));
    parser.finish();
    let text = tokenizer.decode(tokens);
    assert!(parser.has_ended(), "{text}");
    assert_eq!(parser.warnings(), [""; 0], "{text}");
    let (last, others) = parser.messages().split_last().expect("a message");
    for other in others {
        assert!(other.recipient.is_none() && other.channel.as_deref() != Some("final"), "{text}");
    }
    last.clone()
}

fn schemas() -> Vec<Value> {
    vec![
        json!({
            "type": "object",
            "properties": {
                "person": {
                    "type": "object",
                    "properties": {
                        "name": { "type": "string", "minLength": 1, "maxLength": 8 },
                        "age": { "type": "integer", "minimum": 0, "maximum": 150 },
                    },
                    "required": ["name", "age"],
                    "additionalProperties": false,
                },
                "tags": { "type": "array", "items": { "type": "string", "maxLength": 6 }, "minItems": 2, "maxItems": 4 },
            },
            "required": ["person"],
            "additionalProperties": false,
        }),
        json!({
            "type": "object",
            "properties": { "color": { "enum": ["red", "green", 3, null] }, "kind": { "const": "a \"b\" é\n" } },
            "required": ["color", "kind"],
            "additionalProperties": false,
        }),
        json!({
            "type": "object",
            "properties": {
                "share": { "type": "number", "minimum": -0.5, "maximum": 1.25 },
                "steps": { "type": "integer", "minimum": -20, "maximum": 7 },
            },
            "required": ["share", "steps"],
            "additionalProperties": false,
        }),
        json!({
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "anyOf": [
                    { "type": "boolean" },
                    { "type": "null" },
                    {
                        "type": "object",
                        "properties": { "x": { "type": "integer", "minimum": 1, "maximum": 9 } },
                        "required": ["x"],
                        "additionalProperties": false,
                    },
                ],
            },
        }),
        json!({
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "value": { "type": "integer", "minimum": 0, "maximum": 99 },
                        "children": { "type": "array", "items": { "$ref": "#/$defs/node" }, "maxItems": 2 },
                    },
                    "required": ["value", "children"],
                    "additionalProperties": false,
                },
            },
        }),
        json!({
            "type": "object",
            "properties": {
                "id": { "type": "string", "pattern": "^[a-z]{2,4}-[0-9]{3}$" },
                "path": { "type": "string", "pattern": "^(/[a-z]+)+$" },
            },
            "required": ["id", "path"],
            "additionalProperties": false,
        }),
    ]
}

fn strict(schema: Value) -> Content {
    Content::Json { schema, lenient: false }
}

struct Bench {
    tokenizer: Tokenizer,
    grammars: Grammars,
}

impl Bench {
    fn new() -> Bench {
        Bench { tokenizer: tokenizer(), grammars: Grammars::default() }
    }

    fn try_constraint(&self, rules: &TurnRules) -> Result<Box<dyn Constraint>, GrammarError> {
        self.grammars.constraint(&self.tokenizer, self.tokenizer.vocab(), rules)
    }

    fn constraint(&self, rules: &TurnRules) -> Box<dyn Constraint> {
        self.try_constraint(rules).expect("a constraint")
    }

    /// Pushes a text that may contain control tokens, and asserts that each token is allowed.
    fn write(&self, constraint: &mut dyn Constraint, text: &str) {
        for token in self.tokenizer.encode_with_control(text) {
            assert!(is_allowed(constraint, token), "{:?} in {text}", self.tokenizer.decode(&[token]));
            constraint.push(token).expect("a token that is allowed");
        }
    }

    fn control(&self, name: &str) -> u32 {
        self.tokenizer.control(name).expect("a control token")
    }
}

fn answer_of(schema: Value) -> TurnRules {
    TurnRules { answer: Some(strict(schema)), calls: Vec::new() }
}

#[test]
fn every_answer_matches_its_schema() {
    let bench = Bench::new();
    for schema in schemas() {
        let constraint = bench.constraint(&answer_of(schema.clone()));
        for seed in 0..4 {
            let tokens = draw(&bench.tokenizer, constraint.clone(), &mut Random::new(seed));
            let message = last_message(&bench.tokenizer, &tokens, &[]);
            assert_eq!(message.channel.as_deref(), Some("final"), "seed {seed} of {schema}");
            let value: Value = serde_json::from_str(&message.content).expect("JSON");
            assert!(fits(&schema, &value), "seed {seed} of {schema}: {value}");
        }
    }
}

/// Compiled grammars are cached, and a turn does not affect the next turn with the same grammar.
#[test]
fn cached_grammar_gives_the_same_tokens() {
    let (bench, other) = (Bench::new(), Bench::new());
    for schema in schemas() {
        let rules = answer_of(schema.clone());
        let drawn = |constraint| draw(&bench.tokenizer, constraint, &mut Random::new(7));
        let tokens = drawn(bench.constraint(&rules));
        assert_eq!(drawn(bench.constraint(&rules)), tokens, "{schema}");
        assert_eq!(drawn(other.constraint(&rules)), tokens, "{schema}");
    }
}

#[test]
fn any_object_is_json() {
    let bench = Bench::new();
    let constraint = bench.constraint(&TurnRules { answer: Some(Content::object()), calls: Vec::new() });
    for seed in 0..8 {
        let tokens = draw(&bench.tokenizer, constraint.clone(), &mut Random::new(seed));
        let content = last_message(&bench.tokenizer, &tokens, &[]).content;
        // Numbers may be larger than any numeric type allows.
        assert!(serde_json::from_str::<IgnoredAny>(&content).is_ok(), "seed {seed}: {content}");
        assert!(content.starts_with('{'), "seed {seed}: {content}");
    }
}

#[test]
fn forced_call_is_generated() {
    let bench = Bench::new();
    let schema = schemas().swap_remove(0);
    let cannot = json!({ "type": "object", "properties": { "a": { "not": {} } } });
    let calls = vec![
        ("get_weather".to_owned(), strict(schema.clone())),
        ("loose-one".to_owned(), Content::Json { schema: cannot, lenient: true }),
    ];
    let constraint = bench.constraint(&TurnRules { answer: None, calls });
    for seed in 0..12 {
        let tokens = draw(&bench.tokenizer, constraint.clone(), &mut Random::new(seed));
        let message = last_message(&bench.tokenizer, &tokens, &["get_weather", "loose-one"]);
        let content = &message.content;
        match message.recipient.as_deref() {
            Some("functions.get_weather") => {
                let value: Value = serde_json::from_str(content).expect("JSON");
                assert!(fits(&schema, &value), "seed {seed}: {value}");
            }
            Some("functions.loose-one") => {
                let parsed = serde_json::from_str::<IgnoredAny>(content);
                assert!(parsed.is_ok() && content.starts_with('{'), "seed {seed}: {content}");
            }
            other => panic!("seed {seed}: the recipient is {other:?}"),
        }
    }
}

#[test]
fn strict_function_does_not_constrain_other_text() {
    let bench = Bench::new();
    let schema = schemas().swap_remove(3);
    let calls = vec![("f".to_owned(), strict(schema.clone())), ("g".to_owned(), Content::Text)];
    let constraint = bench.constraint(&TurnRules { answer: Some(Content::Text), calls });
    for seed in 0..12 {
        let tokens = draw(&bench.tokenizer, constraint.clone(), &mut Random::new(seed));
        let message = last_message(&bench.tokenizer, &tokens, &["f", "g"]);
        match (message.recipient.as_deref(), message.channel.as_deref()) {
            (Some("functions.f"), _) => {
                let value: Value = serde_json::from_str(&message.content).expect("JSON");
                assert!(fits(&schema, &value), "seed {seed}: {value}");
            }
            (Some("functions.g"), _) | (None, Some("final")) => {}
            other => panic!("seed {seed}: the turn ends with {other:?}"),
        }
    }
    for text in [
        "<|channel|>final<|message|>No JSON.<|return|>",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.g<|channel|>commentary\
         <|message|>?<|call|>",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>[true, null]<|call|>",
    ] {
        let mut constraint = constraint.clone();
        bench.write(constraint.as_mut(), text);
        assert!(constraint.allowed().is_none(), "{text}");
    }
}

#[test]
fn reasoning_is_not_constrained() {
    let bench = Bench::new();
    let mut constraint = bench.constraint(&answer_of(json!({ "enum": [1] })));
    bench.write(constraint.as_mut(), "<|channel|>analysis<|message|>");
    let is_control = |&token: &u32| bench.tokenizer.control(&bench.tokenizer.decode(&[token])) == Some(token);
    let (control, text): (Vec<u32>, Vec<u32>) = (0..bench.tokenizer.vocab() as u32).partition(is_control);
    let expected = |also: &str| {
        let mut tokens = [&text[..], &[bench.control(also)]].concat();
        tokens.sort_unstable();
        tokens
    };
    assert!(control.len() > 7, "{control:?}");
    assert_eq!(bits(constraint.allowed().expect("a mask")), expected("<|end|>"));
    bench.write(constraint.as_mut(), "It is \"{\" or <|end|>");
    // The text ends the message; then only the beginning of the next message is allowed.
    assert_eq!(bits(constraint.allowed().expect("a mask")), [bench.control("<|start|>")]);
    bench.write(constraint.as_mut(), "<|start|>assistant<|channel|>");
    let first = |name: &str| bench.tokenizer.encode(name)[0];
    let mut channels = vec![first("analysis"), first("final")];
    channels.sort_unstable();
    channels.dedup();
    assert_eq!(bits(constraint.allowed().expect("a mask")), channels);
}

#[test]
fn end_is_allowed_only_after_complete_json() {
    let bench = Bench::new();
    let schema = json!({
        "type": "object",
        "properties": { "a": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["a"],
        "additionalProperties": false,
    });
    let end = bench.control("<|return|>");
    for header in ["<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>"] {
        let mut constraint = bench.constraint(&answer_of(schema.clone()));
        bench.write(constraint.as_mut(), header);
        for token in bench.tokenizer.encode("{\"a\": 1}") {
            assert!(!is_allowed(&*constraint, end));
            assert!(is_allowed(&*constraint, token), "{:?}", bench.tokenizer.decode(&[token]));
            constraint.push(token).expect("a token that is allowed");
        }
        // A clone of the constraint continues independently.
        let mut other = constraint.clone();
        for constraint in [&mut constraint, &mut other] {
            assert!(is_allowed(&**constraint, end));
            for name in ["<|end|>", "<|call|>", "<|endoftext|>"] {
                assert!(!is_allowed(&**constraint, bench.control(name)), "{name}");
            }
            constraint.push(end).expect("the end");
            assert!(constraint.allowed().is_none());
        }
    }
}

#[test]
fn masks_have_a_bit_for_each_logit() {
    let bench = Bench::new();
    let vocab = bench.tokenizer.vocab();
    let rules = answer_of(json!({ "enum": [1] }));
    for logits in [vocab, vocab + 1, vocab + 100] {
        let mut constraint = Grammars::default().constraint(&bench.tokenizer, logits, &rules).expect("a constraint");
        assert_eq!(constraint.allowed().map(<[u32]>::len), Some(logits.div_ceil(32)));
        bench.write(constraint.as_mut(), "<|channel|>final<|message|>");
        assert_eq!(constraint.allowed().map(<[u32]>::len), Some(logits.div_ceil(32)));
        assert!(bits(constraint.allowed().expect("a mask")).iter().all(|&token| (token as usize) < vocab));
    }
    assert!(Grammars::default().constraint(&bench.tokenizer, vocab - 1, &rules).is_err());
}

#[test]
fn unenforceable_schemas_are_refused() {
    let bench = Bench::new();
    let refusal = |rules: TurnRules| match bench.try_constraint(&rules) {
        Err(GrammarError::Schema { function, path, problem }) => (function, path, problem),
        other => panic!("{other:?}"),
    };
    let not = json!({ "type": "object", "properties": { "a": { "not": {} } } });
    let (function, path, problem) = refusal(answer_of(not.clone()));
    assert_eq!((function, path.as_str()), (None, "#/properties/a/not"));
    assert!(problem.contains("`not`"), "{problem}");
    let calls = vec![("f".to_owned(), strict(not))];
    let (function, path, _) = refusal(TurnRules { answer: Some(Content::Text), calls });
    assert_eq!((function.as_deref(), path.as_str()), (Some("f"), "#/properties/a/not"));

    let mut deep = json!({ "type": "string" });
    for _ in 0..1000 {
        deep = json!({ "type": "array", "items": deep });
    }
    assert!(refusal(answer_of(deep)).2.contains("deep"));
    // Errors that only the grammar compiler detects.
    for schema in [
        json!({ "type": "string", "pattern": "(?=a)b" }),
        json!({ "type": "integer", "minimum": 5, "maximum": 4 }),
        json!({ "type": "strange" }),
        json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }),
    ] {
        let (_, _, problem) = refusal(answer_of(schema.clone()));
        assert!(!problem.is_empty() && !problem.contains("backtrace"), "{schema}: {problem}");
    }
    // Options for the grammar engine inside a client's schema are ignored.
    let lenient = json!({ "x-guidance": { "lenient": true }, "type": "object", "properties": { "a": { "not": {} } } });
    assert_eq!(refusal(answer_of(lenient)).1, "#/properties/a/not");
    let many: Vec<(String, Content)> = (0..200).map(|n| (format!("f{n}"), Content::object())).collect();
    let rules = TurnRules { answer: None, calls: many };
    assert_eq!(bench.try_constraint(&rules).err(), Some(GrammarError::TooMany));
}
