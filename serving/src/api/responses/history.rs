//! A conversation as it is kept between requests.

use harmony::Message;

use crate::api::chat::Calls;

/// A conversation that items add to.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub messages: Vec<Message>,
    pub calls: Calls,
}
