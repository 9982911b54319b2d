//! Asking a model in harmony and reading its answer.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use harmony::{Delta, DeveloperPrompt, Function, Harmony, Message, ReasoningEffort, SystemPrompt};
use phase1_loading::Tokenizer;
use phase2_forward::Engine;
use phase3_kvcache::{FinishReason, Generated, GenerationParams, Step, StopCondition, generate};

use crate::model::SEQUENCE;

/// A step on the way to an answer.
pub enum Event<'a> {
    /// That many tokens of the prompt have been read.
    Prompt { done: usize, of: usize },
    /// More of the answer.
    Delta(&'a Delta),
    /// A token that adds nothing yet, such as one of a header.
    Silent,
}

/// What the assistant said in one turn.
pub struct Turn {
    pub messages: Vec<Message>,
    /// What was not as the format demands.
    pub warnings: Vec<String>,
    /// Whether the last message was ended, not cut off.
    pub is_complete: bool,
}

impl Turn {
    /// What the user reads of it.
    pub fn content(&self) -> String {
        let visible = self.messages.iter().filter(|message| message.is_visible());
        visible.map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// The call that the turn ends with, if it was not cut off.
    pub fn call(&self) -> Option<&Message> {
        self.messages.last().filter(|message| message.is_call() && self.is_complete)
    }
}

/// A model's tokenizer with harmony's control tokens.
///
/// # Errors
/// A vocabulary without them.
pub fn harmony(tokenizer: &Tokenizer) -> Result<Harmony<'_>> {
    Harmony::new(tokenizer).context("the model cannot be asked; `generate` can continue text")
}

/// The beginning of every conversation: the system message, and the developer's if there is anything to say. `date` is the day that the
/// model is told.
pub fn opening(
    effort: ReasoningEffort,
    date: &str,
    instructions: Option<&str>,
    functions: &[Function],
) -> Vec<Message> {
    let date = Some(date.to_owned());
    let system = SystemPrompt { effort, date, functions: !functions.is_empty(), ..SystemPrompt::default() };
    let developer = DeveloperPrompt {
        instructions: instructions.map(str::to_owned),
        functions: functions.to_vec(),
        ..DeveloperPrompt::default()
    };
    let developer = (!developer.is_empty()).then(|| developer.message());
    [system.message()].into_iter().chain(developer).collect()
}

/// Generates one turn after `prompt` and reads it. `history` is what the engine holds before the prompt. Stop strings end it only in
/// what the user reads. `on_event` is called with every step, and may end the answer by breaking. The engine keeps all of it.
pub fn answer(
    engine: &mut dyn Engine,
    harmony: &Harmony<'_>,
    functions: &[Function],
    history: &[u32],
    prompt: &[u32],
    params: &GenerationParams,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<(Turn, Generated)> {
    // Refuses what it cannot look for, such as an empty string.
    StopCondition::new(Vec::new(), params.stop_strings.clone())?;
    let mut parser = harmony.parser().with_functions(functions).with_stop_strings(params.stop_strings.clone());
    let params = GenerationParams { stop_strings: Vec::new(), ..params.clone() };
    let mut is_complete = true;
    let generated = generate(engine, harmony.tokenizer(), SEQUENCE, history, prompt, &params, &mut |step| match step {
        Step::Prefill { done, of } => on_event(Event::Prompt { done: *done, of: *of }),
        Step::Token { token, .. } => {
            let flow = tell(&parser.push(*token), &mut is_complete, on_event);
            if parser.stop_string().is_some() { ControlFlow::Break(()) } else { flow }
        }
        Step::Rest { .. } => ControlFlow::Continue(()),
    });
    let _ = tell(&parser.finish(), &mut is_complete, on_event);
    let mut generated = generated?;
    if let Some(string) = parser.stop_string() {
        generated.finish = FinishReason::StopString(string.to_owned());
    }
    let (messages, warnings) = (parser.messages().to_vec(), parser.warnings().to_vec());
    Ok((Turn { messages, warnings, is_complete }, generated))
}

fn tell(
    deltas: &[Delta],
    is_complete: &mut bool,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if deltas.is_empty() {
        return on_event(Event::Silent);
    }
    for delta in deltas {
        match delta {
            Delta::Begin(_) => *is_complete = false,
            Delta::End { complete } => *is_complete = *complete,
            Delta::Text(_) | Delta::Warning(_) => {}
        }
    }
    // All are told, also if the first one is enough.
    let flows: Vec<ControlFlow<()>> = deltas.iter().map(|delta| on_event(Event::Delta(delta))).collect();
    flows.into_iter().find(ControlFlow::is_break).unwrap_or(ControlFlow::Continue(()))
}
