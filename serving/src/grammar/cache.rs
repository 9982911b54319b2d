//! A cache of compiled grammars for requests that repeat a schema.
//!
//! Agents send the same tools in every request, and compilation is most of the cost of a constraint.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use llguidance::Matcher;
use serde_json::Value;

/// The largest number of grammars. Each takes little memory, because its lexer has computed only its first states.
const MOST: usize = 32;
/// The largest total size of their schemas, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// The source of a grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The schema as JSON. The order of its members matters, because grammars keep it.
    schema: String,
    /// Whether any object is accepted if the schema cannot be enforced.
    lenient: bool,
}

impl Key {
    pub fn new(schema: &Value, lenient: bool) -> Key {
        Key { schema: schema.to_string(), lenient }
    }
}

/// The most recently used grammars, in their initial state.
#[derive(Default)]
pub(super) struct Cache {
    /// The most recently used is at the back.
    grammars: Mutex<VecDeque<(Key, Matcher)>>,
}

impl Cache {
    /// A copy that shares no state with the cached grammar.
    pub fn get(&self, key: &Key) -> Option<Matcher> {
        let mut grammars = self.lock();
        let at = grammars.iter().position(|(known, _)| known == key)?;
        let found = grammars.remove(at)?;
        let copy = found.1.deep_clone();
        grammars.push_back(found);
        Some(copy)
    }

    /// Stores a grammar, unless its schema alone exceeds [`MAX_BYTES`]. If there are then too many, drops the least recently used ones.
    pub fn insert(&self, key: Key, grammar: &Matcher) {
        if key.schema.len() > MAX_BYTES {
            return;
        }
        let mut grammars = self.lock();
        grammars.retain(|(known, _)| *known != key);
        grammars.push_back((key, grammar.deep_clone()));
        let mut bytes: usize = grammars.iter().map(|(key, _)| key.schema.len()).sum();
        while grammars.len() > MOST || bytes > MAX_BYTES {
            let Some((oldest, _)) = grammars.pop_front() else { break };
            bytes -= oldest.schema.len();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Key, Matcher)>> {
        self.grammars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn grammar() -> Matcher {
        // The language of the grammar does not matter here.
        Matcher::new(Err(std::io::Error::other("none").into()))
    }

    #[test]
    fn keys_depend_on_property_order_and_leniency() {
        let schema = json!({ "properties": { "a": {}, "b": {} } });
        let turned = json!({ "properties": { "b": {}, "a": {} } });
        assert_eq!(Key::new(&schema, false), Key::new(&schema.clone(), false));
        assert_ne!(Key::new(&schema, false), Key::new(&turned, false));
        assert_ne!(Key::new(&schema, false), Key::new(&schema, true));
    }

    #[test]
    fn most_recently_used_are_kept() {
        let cache = Cache::default();
        let key = |n: usize| Key::new(&json!({ "const": n }), false);
        for n in 0..MOST {
            cache.insert(key(n), &grammar());
        }
        assert!(cache.get(&key(0)).is_some());
        cache.insert(key(MOST), &grammar());
        assert!(cache.get(&key(0)).is_some() && cache.get(&key(1)).is_none() && cache.get(&key(MOST)).is_some());
        // Inserting the same key again adds no second entry.
        cache.insert(key(2), &grammar());
        assert!(cache.get(&key(3)).is_some());
        assert_eq!(cache.lock().len(), MOST);
    }

    #[test]
    fn total_bytes_are_bounded() {
        let cache = Cache::default();
        let key = |text: &str, bytes: usize| Key::new(&json!({ "const": text.repeat(bytes) }), false);
        cache.insert(key("a", MAX_BYTES / 2), &grammar());
        cache.insert(key("b", MAX_BYTES / 2), &grammar());
        assert!(cache.get(&key("a", MAX_BYTES / 2)).is_none() && cache.get(&key("b", MAX_BYTES / 2)).is_some());
        cache.insert(key("c", MAX_BYTES), &grammar());
        assert!(cache.get(&key("c", MAX_BYTES)).is_none() && cache.get(&key("b", MAX_BYTES / 2)).is_some());
    }
}
