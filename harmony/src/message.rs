//! Conversations.

use std::fmt;
use std::str::FromStr;

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    /// A function that was called, such as `functions.get_weather`; it answers the assistant.
    Tool(String),
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    /// `analysis`, `commentary` or `final`; only assistants and tools have one.
    pub channel: Option<String>,
    /// The function that an assistant's message calls, such as `functions.get_weather`.
    pub recipient: Option<String>,
    pub content: String,
}

impl Message {
    /// A message from outside the model.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        let channel = matches!(role, Role::Tool(_)).then(|| "commentary".to_owned());
        Message { role, channel, recipient: None, content: content.into() }
    }

    /// What the assistant said in a channel.
    pub fn assistant(channel: &str, content: impl Into<String>) -> Message {
        Message { role: Role::Assistant, channel: Some(channel.into()), recipient: None, content: content.into() }
    }

    /// The assistant's call of a function, with its arguments as JSON.
    pub fn call(function: &str, arguments: impl Into<String>) -> Message {
        Message { recipient: Some(format!("functions.{function}")), ..Self::assistant("commentary", arguments) }
    }
}

/// How long the model thinks before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    Low,
    #[default]
    Medium,
    High,
}

impl Effort {
    pub const ALL: [Effort; 3] = [Effort::Low, Effort::Medium, Effort::High];

    pub fn name(self) -> &'static str {
        match self {
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
        }
    }
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Effort {
    type Err = String;

    fn from_str(name: &str) -> Result<Effort, String> {
        let found = Effort::ALL.into_iter().find(|effort| effort.name() == name);
        found.ok_or_else(|| format!("expected one of {}", Effort::ALL.map(Effort::name).join(", ")))
    }
}

/// The system message that GPT-OSS was trained with.
#[derive(Clone, Debug)]
pub struct SystemPrompt {
    pub effort: Effort,
    /// `YYYY-MM-DD`. Keep it through a conversation, or its beginning changes at midnight.
    pub date: String,
    /// Whether a developer message declares functions.
    pub functions: bool,
}

impl SystemPrompt {
    pub fn message(&self) -> Message {
        let SystemPrompt { effort, date, functions } = self;
        let mut content = format!(
            "You are ChatGPT, a large language model trained by OpenAI.\n\
             Knowledge cutoff: 2024-06\n\
             Current date: {date}\n\n\
             Reasoning: {effort}\n\n\
             # Valid channels: analysis, commentary, final. Channel must be included for every message."
        );
        if *functions {
            content.push_str("\nCalls to these tools must go to the commentary channel: 'functions'.");
        }
        Message::new(Role::System, content)
    }
}
