//! Messages to tokens.

use phase1_loading::Tokenizer;

use crate::message::{Message, Role};

/// Renders a conversation. Only the structure becomes control tokens: content that looks like one stays text.
///
/// `None` if the vocabulary lacks a control token of harmony.
pub fn render(messages: &[Message], tokenizer: &Tokenizer) -> Option<Vec<u32>> {
    let mut out = Renderer { tokenizer, tokens: Vec::new() };
    for message in messages {
        out.message(message)?;
    }
    Some(out.tokens)
}

/// Renders a conversation up to where the assistant speaks next. Its reasoning is left out as far as a final answer
/// followed it, as in training: the model does not see what it once thought.
///
/// `None` as for [`render`].
pub fn render_for_completion(messages: &[Message], tokenizer: &Tokenizer) -> Option<Vec<u32>> {
    let is =
        |message: &Message, channel| message.role == Role::Assistant && message.channel.as_deref() == Some(channel);
    let last_final = messages.iter().rposition(|message| is(message, "final"));
    let kept: Vec<Message> = messages
        .iter()
        .enumerate()
        .filter(|(index, message)| !(is(message, "analysis") && Some(*index) < last_final))
        .map(|(_, message)| message.clone())
        .collect();
    let mut tokens = render(&kept, tokenizer)?;
    tokens.push(tokenizer.control("<|start|>")?);
    tokens.extend(tokenizer.encode("assistant"));
    Some(tokens)
}

struct Renderer<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
}

impl Renderer<'_> {
    fn control(&mut self, name: &str) -> Option<()> {
        self.tokens.push(self.tokenizer.control(name)?);
        Some(())
    }

    fn text(&mut self, text: &str) {
        self.tokens.extend(self.tokenizer.encode(text));
    }

    fn message(&mut self, message: &Message) -> Option<()> {
        let role = match &message.role {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool(name) => &format!("{name} to=assistant"),
        };
        self.control("<|start|>")?;
        self.text(role);
        if let Some(channel) = &message.channel {
            self.control("<|channel|>")?;
            match &message.recipient {
                Some(recipient) => {
                    self.text(&format!("{channel} to={recipient} "));
                    self.control("<|constrain|>")?;
                    self.text("json");
                }
                None => self.text(channel),
            }
        }
        self.control("<|message|>")?;
        self.text(&message.content);
        self.control(if message.recipient.is_some() { "<|call|>" } else { "<|end|>" })
    }
}
