//! Which messages the user sees.

use crate::header::Header;
use crate::message::{Message, Role};

impl Header {
    /// Whether the user sees messages with this header: those of the assistant (final answers and preambles), except reasoning (the
    /// channel `analysis`) and calls (messages with a recipient).
    pub fn is_visible(&self) -> bool {
        is_visible(self.role, self.recipient.as_deref(), self.channel.as_deref())
    }
}

impl Message {
    /// As [`Header::is_visible`].
    pub fn is_visible(&self) -> bool {
        is_visible(self.role, self.recipient.as_deref(), self.channel.as_deref())
    }
}

fn is_visible(role: Role, recipient: Option<&str>, channel: Option<&str>) -> bool {
    role == Role::Assistant && recipient.is_none() && channel != Some("analysis")
}
