//! Asking a model in harmony and reading its answer.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use harmony::{Effort, Message, Parser, Piece, Role, SystemPrompt, Turn, render_for_completion};
use phase1_loading::Tokenizer;
use phase2_forward::Engine;
use phase3_kvcache::{Generation, GenerationParams, generate};

use crate::session::SEQUENCE;

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

/// Generates one turn after `prompt` and reads it. `on_piece` hears it as it comes, and may end it by breaking. The engine goes on
/// holding both.
pub fn answer(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    params: &GenerationParams,
    on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
) -> Result<(Turn, Generation)> {
    let mut parser = Parser::new(tokenizer);
    let generation = generate(engine, tokenizer, SEQUENCE, prompt, params, &mut |step| match step
        .token
        .and_then(|token| parser.push(token))
    {
        Some(piece) => on_piece(&piece),
        None => ControlFlow::Continue(()),
    });
    Ok((parser.finish(), generation?))
}
