//! Renders messages as tokens.

use crate::control::{Control, Harmony};
use crate::message::{Message, Role};

impl Harmony<'_> {
    /// Renders one message. Only the structure becomes control tokens: content that looks like a control token is encoded as text.
    pub fn render(&self, message: &Message) -> Vec<u32> {
        let mut tokens = Vec::new();
        self.write(message, &mut tokens);
        tokens
    }

    /// Renders a conversation as the model should see it: without the messages of the analysis channel before its last final answer, that
    /// is, without reasoning and without the calls and results of built-in tools.
    ///
    /// `openai-harmony` 0.0.8 drops only what precedes the first final answer, and only if the assistant's last message is final. The
    /// documentation of the format describes the behavior of this function.
    pub fn render_conversation(&self, messages: &[Message]) -> Vec<u32> {
        let mut tokens = Vec::new();
        remembered(messages).for_each(|message| self.write(message, &mut tokens));
        tokens
    }

    /// Renders a conversation up to the point where the assistant continues.
    pub fn render_prompt(&self, messages: &[Message]) -> Vec<u32> {
        let mut tokens = self.render_conversation(messages);
        tokens.extend(self.generation_prompt());
        tokens
    }

    /// A lower bound of the number of tokens of [`Harmony::render_prompt`], found without encoding the messages, so that a server can
    /// refuse conversations that are too long for the context.
    pub fn least_prompt_tokens(&self, messages: &[Message]) -> usize {
        let least = |message: &Message| {
            let recipient = message.recipient.as_deref().filter(|&recipient| recipient != "all");
            let texts = [Some(&*message.content), message.name.as_deref(), recipient];
            let texts: usize = texts.into_iter().flatten().map(|text| self.tokenizer().least_tokens(text)).sum();
            // `<|start|>`, `<|message|>`, and the token that ends the message.
            texts + 3
        };
        remembered(messages).map(least).sum()
    }

    /// `<|start|>assistant`, after which the assistant continues.
    pub fn generation_prompt(&self) -> Vec<u32> {
        let mut tokens = vec![self.control.id(Control::Start)];
        tokens.extend(self.tokenizer().encode(Role::Assistant.name()));
        tokens
    }

    /// `<|start|>AUTHOR to=RECIPIENT<|channel|>CHANNEL TYPE<|message|>CONTENT<|end|>`, or `<|call|>` at the end if the assistant calls a
    /// tool. The parts are encoded one by one, as OpenAI's renderer does.
    fn write(&self, message: &Message, tokens: &mut Vec<u32>) {
        let control = |control| self.control.id(control);
        let encode = |text: &str| self.tokenizer().encode(text);
        let recipient = message.recipient.as_deref().filter(|&recipient| recipient != "all");
        tokens.push(control(Control::Start));
        tokens.extend(encode(&author(message)));
        if let Some(recipient) = recipient {
            tokens.extend(encode(&format!(" to={recipient}")));
        }
        if let Some(channel) = &message.channel {
            tokens.push(control(Control::Channel));
            tokens.extend(encode(channel));
        }
        match message.content_type.as_deref().map(|kind| (kind, kind.strip_prefix(Control::Constrain.name()))) {
            Some((_, Some(constrained))) => {
                tokens.extend(encode(" "));
                tokens.push(control(Control::Constrain));
                tokens.extend(encode(constrained));
            }
            Some((kind, None)) => tokens.extend(encode(&format!(" {kind}"))),
            None => {}
        }
        tokens.push(control(Control::Message));
        tokens.extend(encode(&message.content));
        let is_call = message.role == Role::Assistant && recipient.is_some();
        tokens.push(control(if is_call { Control::Call } else { Control::End }));
    }
}

/// The messages that stay in the prompt.
fn remembered(messages: &[Message]) -> impl Iterator<Item = &Message> {
    let last_final = messages.iter().rposition(Message::is_final);
    let seen = messages
        .iter()
        .enumerate()
        .filter(move |&(index, message)| message.channel.as_deref() != Some("analysis") || Some(index) > last_final);
    seen.map(|(_, message)| message)
}

/// A tool is written as its name; other authors as their role and name.
fn author(message: &Message) -> String {
    match (message.role, &message.name) {
        (Role::Tool, Some(name)) => name.clone(),
        (role, Some(name)) => format!("{}:{name}", role.name()),
        (role, None) => role.name().into(),
    }
}
