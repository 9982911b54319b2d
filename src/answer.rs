//! Asking a model in harmony and reading its answer.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use harmony::{Effort, Message, Parser, Piece, Role, SystemPrompt, Turn, render_for_completion};
use phase1_loading::Tokenizer;
use phase2_forward::Engine;
use phase3_kvcache::{Generated, GenerationParams, Step, generate};

use crate::session::SEQUENCE;

/// A step on the way to an answer.
pub enum Event<'a> {
    /// That many tokens of the prompt have been read.
    Prompt { done: usize, of: usize },
    /// More of the answer.
    Piece(&'a Piece),
    /// A token that adds nothing to show, such as one of a header.
    Silent,
}

/// The beginning of every conversation: the system message, and instructions if there are any.
pub fn opening(effort: Effort, instructions: Option<&str>) -> Vec<Message> {
    let date = time::OffsetDateTime::now_utc().date().to_string();
    let system = SystemPrompt { effort, date, functions: false }.message();
    let developer = instructions.map(|text| Message::new(Role::Developer, format!("# Instructions\n\n{text}")));
    [system].into_iter().chain(developer).collect()
}

/// Tokens that make the assistant speak next.
pub fn prompt(messages: &[Message], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    render_for_completion(messages, tokenizer).context(
        "the model's vocabulary lacks harmony's control tokens, so it cannot be asked; `generate` can continue text",
    )
}

/// Generates one turn after `prompt` and reads it. `history` is what the engine holds before the prompt. `on_event` hears of every
/// step, and may end the answer by breaking. The engine goes on holding all of it.
pub fn answer(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    history: &[u32],
    prompt: &[u32],
    params: &GenerationParams,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<(Turn, Generated)> {
    let mut parser = Parser::new(tokenizer);
    let generated = generate(engine, tokenizer, SEQUENCE, history, prompt, params, &mut |step| match step {
        Step::Prefill { done, of } => on_event(Event::Prompt { done: *done, of: *of }),
        Step::Token { token, .. } => match parser.push(*token) {
            Some(piece) => on_event(Event::Piece(&piece)),
            None => on_event(Event::Silent),
        },
        Step::Rest { .. } => ControlFlow::Continue(()),
    });
    Ok((parser.finish(), generated?))
}
