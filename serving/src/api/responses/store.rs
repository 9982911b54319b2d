//! Stores responses that later requests may continue. The store is in memory and has a limited size: the oldest responses are dropped
//! first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::history::History;

/// A response and its inputs.
pub struct Stored {
    pub id: String,
    /// Only requests of this owner find the response.
    pub owner: String,
    pub response: Value,
    /// The items of its request.
    pub input: Vec<Value>,
    /// The conversation including this response.
    pub history: History,
}

impl Stored {
    /// Approximate size in bytes.
    fn bytes(&self) -> usize {
        let values: usize = self.input.iter().chain([&self.response]).map(size).sum();
        let message_bytes: usize = self.history.messages.iter().map(|message| message.content.len() + 128).sum();
        values + message_bytes
    }
}

fn size(value: &Value) -> usize {
    let children: usize = match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(size).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + size(value)).sum(),
        _ => 0,
    };
    32 + children
}

pub struct Store {
    most: usize,
    most_bytes: usize,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_id: HashMap<String, (Arc<Stored>, usize)>,
    /// Ids, the oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

impl Entries {
    fn remove(&mut self, id: &str) -> bool {
        let Some((_, bytes)) = self.by_id.remove(id) else { return false };
        self.bytes -= bytes;
        true
    }
}

impl Store {
    /// A store for at most `most` responses of at most `most_bytes` bytes in total.
    pub fn new(most: usize, most_bytes: usize) -> Store {
        Store { most, most_bytes, entries: Mutex::default() }
    }

    pub fn insert(&self, stored: Stored) {
        let bytes = stored.bytes();
        if bytes > self.most_bytes || self.most == 0 {
            return;
        }
        let mut entries = self.lock();
        entries.order.push_back(stored.id.clone());
        entries.bytes += bytes;
        entries.by_id.insert(stored.id.clone(), (Arc::new(stored), bytes));
        while entries.by_id.len() > self.most || entries.bytes > self.most_bytes {
            let Some(oldest) = entries.order.pop_front() else { break };
            entries.remove(&oldest);
        }
    }

    pub fn get(&self, id: &str, owner: &str) -> Option<Arc<Stored>> {
        let entries = self.lock();
        entries.by_id.get(id).map(|(stored, _)| stored).filter(|stored| stored.owner == owner).cloned()
    }

    /// Removes a response; false if this owner has none with this id.
    pub fn remove(&self, id: &str, owner: &str) -> bool {
        let mut entries = self.lock();
        let is_there = entries.by_id.get(id).is_some_and(|(stored, _)| stored.owner == owner);
        if is_there {
            entries.order.retain(|known| known != id);
        }
        is_there && entries.remove(id)
    }

    /// The item with this id in the input or output of any response of this owner.
    pub fn item(&self, id: &str, owner: &str) -> Option<Value> {
        let entries = self.lock();
        let mut responses = entries.by_id.values().filter(|(stored, _)| stored.owner == owner);
        responses.find_map(|(stored, _)| {
            let output = stored.response["output"].as_array().into_iter().flatten();
            stored.input.iter().chain(output).find(|item| item["id"] == id).cloned()
        })
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(id: &str, text: &str) -> Stored {
        let response = json!({ "output": [{ "id": format!("msg_{id}"), "text": text }] });
        Stored { id: id.into(), owner: "ada".into(), response, input: Vec::new(), history: History::default() }
    }

    #[test]
    fn oldest_responses_are_deleted() {
        let store = Store::new(2, 10_000);
        for id in ["a", "b", "c"] {
            store.insert(stored(id, "x"));
        }
        assert!(store.get("a", "ada").is_none() && store.get("b", "ada").is_some() && store.get("c", "ada").is_some());
        assert!(store.get("c", "eve").is_none() && !store.remove("c", "eve"));
        assert!(store.item("msg_b", "ada").is_some() && store.item("msg_b", "eve").is_none());
        assert!(store.remove("c", "ada") && !store.remove("c", "ada"));
        store.insert(stored("d", &"x".repeat(9_700)));
        assert!(store.get("b", "ada").is_none() && store.get("d", "ada").is_some());
        store.insert(stored("e", &"x".repeat(20_000)));
        assert!(store.get("e", "ada").is_none() && store.get("d", "ada").is_some());
    }
}
