//! Compiled grammars, kept for requests that bring the same schema again.
//!
//! Agents send the same tools with every turn, and compiling is most of what a constraint costs.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use llguidance::Matcher;
use serde_json::Value;

/// Grammars kept. Before the first token, their lexers have few of their states yet.
const MOST: usize = 32;
/// Bytes of all schemas kept.
const MOST_BYTES: usize = 1 << 20;

/// What a grammar was compiled from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The schema as JSON, its members in their order: grammars follow it.
    schema: String,
    /// Whether any object was taken in place of a schema that cannot be enforced.
    lenient: bool,
}

impl Key {
    pub fn new(schema: &Value, lenient: bool) -> Key {
        Key { schema: schema.to_string(), lenient }
    }
}

/// The grammars used last, none of which has consumed a token.
#[derive(Default)]
pub(super) struct Cache {
    /// The one used last stands at the back.
    kept: Mutex<VecDeque<(Key, Matcher)>>,
}

impl Cache {
    /// A copy that shares nothing with the one kept.
    pub fn get(&self, key: &Key) -> Option<Matcher> {
        let mut kept = self.lock();
        let at = kept.iter().position(|(known, _)| known == key)?;
        let found = kept.remove(at)?;
        let copy = found.1.deep_clone();
        kept.push_back(found);
        Some(copy)
    }

    /// Keeps a grammar, and drops those that were not used for longest.
    pub fn insert(&self, key: Key, grammar: &Matcher) {
        if key.schema.len() > MOST_BYTES {
            return;
        }
        let mut kept = self.lock();
        kept.retain(|(known, _)| *known != key);
        kept.push_back((key, grammar.deep_clone()));
        let mut bytes: usize = kept.iter().map(|(key, _)| key.schema.len()).sum();
        while kept.len() > MOST || bytes > MOST_BYTES {
            let Some((oldest, _)) = kept.pop_front() else { break };
            bytes -= oldest.schema.len();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Key, Matcher)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn grammar() -> Matcher {
        // What it would match does not matter here.
        Matcher::new(Err(std::io::Error::other("none").into()))
    }

    #[test]
    fn keys_tell_orders_and_leniency_apart() {
        let schema = json!({ "properties": { "a": {}, "b": {} } });
        let turned = json!({ "properties": { "b": {}, "a": {} } });
        assert_eq!(Key::new(&schema, false), Key::new(&schema.clone(), false));
        assert_ne!(Key::new(&schema, false), Key::new(&turned, false));
        assert_ne!(Key::new(&schema, false), Key::new(&schema, true));
    }

    #[test]
    fn those_used_last_are_kept() {
        let cache = Cache::default();
        let key = |n: usize| Key::new(&json!({ "const": n }), false);
        for n in 0..MOST {
            cache.insert(key(n), &grammar());
        }
        assert!(cache.get(&key(0)).is_some());
        cache.insert(key(MOST), &grammar());
        assert!(cache.get(&key(0)).is_some() && cache.get(&key(1)).is_none() && cache.get(&key(MOST)).is_some());
        // The same again takes no second place.
        cache.insert(key(2), &grammar());
        assert!(cache.get(&key(3)).is_some());
        assert_eq!(cache.lock().len(), MOST);
    }

    #[test]
    fn bytes_are_bounded() {
        let cache = Cache::default();
        let key = |text: &str, bytes: usize| Key::new(&json!({ "const": text.repeat(bytes) }), false);
        cache.insert(key("a", MOST_BYTES / 2), &grammar());
        cache.insert(key("b", MOST_BYTES / 2), &grammar());
        assert!(cache.get(&key("a", MOST_BYTES / 2)).is_none() && cache.get(&key("b", MOST_BYTES / 2)).is_some());
        cache.insert(key("c", MOST_BYTES), &grammar());
        assert!(cache.get(&key("c", MOST_BYTES)).is_none() && cache.get(&key("b", MOST_BYTES / 2)).is_some());
    }
}
