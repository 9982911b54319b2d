//! Compiles schemas to grammars.

use std::thread;

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::cache::{Cache, Key};
use super::error::GrammarError;
use super::schema::check;
use super::vocabulary::Vocabulary;

/// White space between two parts of JSON: enough for a deeply indented line, but limited, because a model may repeat it endlessly.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";
/// Stack size in bytes of the thread that compiles. Compilation is recursive; `check` limits the depth, which needs far less than this.
/// Unused pages of the stack take no memory.
const STACK: usize = 256 << 20;

/// The function that a schema belongs to, the schema, and whether any JSON object is accepted if the schema is not supported.
pub(super) type Wanted = (Option<String>, Value, bool);

/// The grammars of schemas, in the same order. Those not in the cache are compiled.
pub(super) fn compile_all(
    vocabulary: &Vocabulary,
    cache: &Cache,
    schemas: Vec<Wanted>,
) -> Result<Vec<Matcher>, GrammarError> {
    let keys: Vec<Key> = schemas.iter().map(|(_, schema, lenient)| Key::new(schema, *lenient)).collect();
    let mut grammars: Vec<Option<Matcher>> = keys.iter().map(|key| cache.get(key)).collect();
    let (places, missing): (Vec<usize>, Vec<Wanted>) =
        schemas.into_iter().enumerate().filter(|(place, _)| grammars[*place].is_none()).unzip();
    for (place, grammar) in places.into_iter().zip(compile_each(vocabulary, missing)?) {
        cache.insert(keys[place].clone(), &grammar);
        grammars[place] = Some(grammar);
    }
    Ok(grammars.into_iter().flatten().collect())
}

/// Compiles schemas on a thread with a large stack.
fn compile_each(vocabulary: &Vocabulary, schemas: Vec<Wanted>) -> Result<Vec<Matcher>, GrammarError> {
    if schemas.is_empty() {
        return Ok(Vec::new());
    }
    let compile = || {
        schemas
            .into_iter()
            .map(|schema| compile_or_relax(vocabulary, schema))
            .collect::<Result<Vec<Matcher>, GrammarError>>()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("grammar".into()).stack_size(STACK).spawn_scoped(scope, compile);
        let thread = thread.map_err(|error| GrammarError::Vocabulary(format!("no thread for grammars: {error}")))?;
        let failed = |_| Err(GrammarError::Vocabulary("a grammar could not be compiled".into()));
        thread.join().unwrap_or_else(failed)
    })
}

fn compile_or_relax(vocabulary: &Vocabulary, (function, schema, lenient): Wanted) -> Result<Matcher, GrammarError> {
    let compiled = check(&schema).and_then(|()| {
        let whole = |problem| ("#".to_owned(), problem);
        compile(vocabulary, schema).map_err(whole)
    });
    match compiled {
        Ok(matcher) => Ok(matcher),
        Err(_) if lenient => compile(vocabulary, json!({ "type": "object" })).map_err(GrammarError::Vocabulary),
        Err((path, problem)) => Err(GrammarError::Schema { function, path, problem }),
    }
}

/// Compiles a schema that was checked and is an object.
fn compile(vocabulary: &Vocabulary, mut schema: Value) -> Result<Matcher, String> {
    // Options of the grammar engine. They replace those of the client, which could turn checks off.
    schema["x-guidance"] = json!({ "whitespace_pattern": WHITE_SPACE });
    let parser = vocabulary.factory.create_parser(TopLevelGrammar::from_json_schema(schema));
    let mut matcher = Matcher::new(Ok(parser.map_err(|error| plain(&error.to_string()))?));
    // A grammar that allows no first token matches no text.
    matcher.compute_mask_or_eos().map_err(|error| plain(&error.to_string()))?;
    Ok(matcher)
}

/// An error of the grammar engine, without its internal state.
fn plain(message: &str) -> String {
    let mut lines = message.lines().filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    if first.is_empty() || first.starts_with("panic") {
        return "it cannot be compiled".into();
    }
    if first.starts_with("oneOf") {
        return "`oneOf` is only supported if no value fits two of its schemas".into();
    }
    // Errors in patterns consist of a drawing of the position, and the reason in the last line.
    let reason = if first.ends_with(':') { lines.next_back().unwrap_or(first) } else { first };
    reason.chars().take(300).collect()
}
