//! A conversation's tokens back to its messages.

use phase1_loading::Tokenizer;

use crate::message::{Message, Role};
use crate::parse::Parser;

/// Reads what [`render_for_completion`](crate::render_for_completion) wrote and a model continued. Turns of the assistant are read
/// as [`Parser`] reads them, the last one as far as it goes.
///
/// `None` if the tokens do not begin with a message, or the vocabulary lacks a control token of harmony.
pub fn parse_conversation(tokens: &[u32], tokenizer: &Tokenizer) -> Option<Vec<Message>> {
    let [start, channel, message, end] =
        ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"].map(|name| tokenizer.control(name));
    let (start, channel, message, end) = (start?, channel?, message?, end?);
    let (first, rest) = tokens.split_first()?;
    if *first != start {
        return None;
    }
    let mut messages = Vec::new();
    let mut turn: Option<Parser<'_>> = None;
    for segment in rest.split(|&token| token == start) {
        let header = segment.iter().take_while(|&&token| token != channel && token != message).count();
        let role = tokenizer.decode(&segment[..header]);
        let role = match role.as_str() {
            "system" => Role::System,
            "developer" => Role::Developer,
            "user" => Role::User,
            role => match role.strip_suffix(" to=assistant") {
                Some(name) => Role::Tool(name.into()),
                None => {
                    // A turn begins behind its first role, and says the later ones.
                    match &mut turn {
                        Some(turn) => [start].iter().chain(segment).for_each(|&token| _ = turn.push(token)),
                        None => {
                            let turn = turn.insert(Parser::new(tokenizer));
                            segment[header..].iter().for_each(|&token| _ = turn.push(token));
                        }
                    }
                    continue;
                }
            },
        };
        messages.extend(turn.take().into_iter().flat_map(|turn| turn.finish().messages()));
        let content = segment.iter().skip_while(|&&token| token != message).skip(1);
        let content: Vec<u32> = content.take_while(|&&token| token != end).copied().collect();
        messages.push(Message::new(role, tokenizer.decode(&content)));
    }
    messages.extend(turn.into_iter().flat_map(|turn| turn.finish().messages()));
    Some(messages)
}
