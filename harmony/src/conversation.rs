//! Parses the tokens of a conversation back to its messages.

use crate::control::{Control, Harmony};
use crate::message::Message;
use crate::parse::Parser;

/// The tokens are not a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tokens are not a conversation: they do not begin with <|start|>")]
pub struct NotAConversation;

impl Harmony<'_> {
    /// Parses a rendered conversation and the model's continuation. The last message may be incomplete.
    ///
    /// # Errors
    /// The tokens do not begin with `<|start|>`.
    pub fn parse_conversation(&self, tokens: &[u32]) -> Result<Vec<Message>, NotAConversation> {
        let rest = tokens.strip_prefix(&[self.control.id(Control::Start)]).ok_or(NotAConversation)?;
        let mut parser = Parser::of_conversation(*self);
        for &token in rest {
            parser.push(token);
        }
        parser.finish();
        Ok(parser.messages().to_vec())
    }
}
