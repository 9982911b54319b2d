//! Messages of a conversation.

use std::fmt;

/// The author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    /// A function or a built-in tool, named by the message's name.
    Tool,
}

impl Role {
    pub const ALL: [Role; 5] = [Role::System, Role::Developer, Role::User, Role::Assistant, Role::Tool];

    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    /// Name of a tool, such as `functions.get_weather`, or of a person.
    pub name: Option<String>,
    /// The recipient: `functions.get_weather`, `python` or `browser.search` for a call, `assistant` for its result.
    pub recipient: Option<String>,
    /// `analysis`, `commentary` or `final`; only assistants and tools have one.
    pub channel: Option<String>,
    /// Content type, such as `json`. A leading `<|constrain|>` stands for the control token.
    pub content_type: Option<String>,
    pub content: String,
}

impl Message {
    /// A message with only a role and content.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, name: None, recipient: None, channel: None, content_type: None, content: content.into() }
    }

    pub fn user(content: impl Into<String>) -> Message {
        Self::new(Role::User, content)
    }

    /// A message of the assistant in a channel.
    pub fn assistant(channel: impl Into<String>, content: impl Into<String>) -> Message {
        Message { channel: Some(channel.into()), ..Self::new(Role::Assistant, content) }
    }

    /// A call of a function by the assistant, with JSON arguments.
    pub fn call(function: &str, arguments: impl Into<String>) -> Message {
        Message {
            recipient: Some(format!("functions.{function}")),
            content_type: Some("json".into()),
            ..Self::assistant("commentary", arguments)
        }
    }

    /// The result of a function.
    pub fn tool_result(function: &str, content: impl Into<String>) -> Message {
        Message {
            name: Some(format!("functions.{function}")),
            recipient: Some("assistant".into()),
            channel: Some("commentary".into()),
            ..Self::new(Role::Tool, content)
        }
    }

    /// The result of `call`. Built-in tools answer in the channel of their call.
    pub fn result_of(call: &Message, content: impl Into<String>) -> Message {
        if let Some(function) = call.function() {
            return Self::tool_result(function, content);
        }
        Message {
            name: call.recipient.clone(),
            recipient: Some("assistant".into()),
            channel: call.channel.clone(),
            ..Self::new(Role::Tool, content)
        }
    }

    /// Whether this is a call by the assistant.
    pub fn is_call(&self) -> bool {
        self.role == Role::Assistant && self.recipient.is_some()
    }

    /// The name of the function that the assistant calls; `None` for anything else, including calls of built-in tools.
    pub fn function(&self) -> Option<&str> {
        let recipient = self.recipient.as_deref().filter(|_| self.role == Role::Assistant);
        recipient?.strip_prefix("functions.")
    }

    pub(crate) fn is_final(&self) -> bool {
        self.role == Role::Assistant && self.channel.as_deref() == Some("final")
    }
}

/// How long the model thinks before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningEffort {
    Low,
    #[default]
    Medium,
    High,
}

impl ReasoningEffort {
    pub const ALL: [ReasoningEffort; 3] = [ReasoningEffort::Low, ReasoningEffort::Medium, ReasoningEffort::High];

    pub fn name(self) -> &'static str {
        match self {
            ReasoningEffort::Low => "low",
            ReasoningEffort::Medium => "medium",
            ReasoningEffort::High => "high",
        }
    }
}

impl fmt::Display for ReasoningEffort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
