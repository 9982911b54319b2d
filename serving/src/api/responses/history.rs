//! A conversation as it is stored between requests.

use harmony::Message;

use crate::api::chat::Calls;

/// A conversation to which items are added.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub messages: Vec<Message>,
    pub calls: Calls,
}
