//! A conversation's tokens back to its messages.

use crate::control::{Control, Harmony};
use crate::message::Message;
use crate::parse::Parser;

/// Tokens that are no conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tokens do not begin with <|start|>, as a message does")]
pub struct NotAConversation;

impl Harmony<'_> {
    /// Reads what was rendered and what a model wrote after it, the last message as far as it goes.
    ///
    /// # Errors
    /// Tokens that do not begin with a message.
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
