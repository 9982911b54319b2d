//! Asks a model in harmony and reads its answer.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use harmony::{Delta, DeveloperPrompt, Function, Harmony, Message, ReasoningEffort, SystemPrompt};
use phase1_loading::Tokenizer;
use phase2_forward::Engine;
use phase3_kvcache::{FinishReason, Generated, GenerationParams, Step, StopCondition, generate};

use crate::model::SEQUENCE;

/// Progress of an answer.
pub enum Event<'a> {
    /// The engine has computed `done` of the prompt's `of` tokens.
    Prompt { done: usize, of: usize },
    /// More of the answer.
    Delta(&'a Delta),
    /// A token that adds nothing to a message, such as one of a header.
    Silent,
}

/// The assistant's messages in one turn.
pub struct Turn {
    pub messages: Vec<Message>,
    /// Deviations from the format.
    pub warnings: Vec<String>,
    /// Whether the last message is complete, not cut off.
    pub is_complete: bool,
}

impl Turn {
    /// The text that is visible to the user.
    pub fn content(&self) -> String {
        let visible = self.messages.iter().filter(|message| message.is_visible());
        visible.map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// The call at the end of the turn, unless it was cut off.
    pub fn call(&self) -> Option<&Message> {
        self.messages.last().filter(|message| message.is_call() && self.is_complete)
    }
}

/// The tokenizer of a model, with harmony's control tokens.
///
/// # Errors
/// The vocabulary lacks harmony's control tokens.
pub fn harmony(tokenizer: &Tokenizer) -> Result<Harmony<'_>> {
    Harmony::new(tokenizer).context("the model cannot answer questions; `generate` can continue text")
}

/// The beginning of every conversation: the system message, and the developer message if it is not empty. `date` is the date in the system
/// message.
pub fn conversation_start(
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

/// Generates one turn after `prompt` and parses it. `history` is the tokens that the engine holds before the prompt. Stop strings apply
/// only to visible text. `on_event` is called at least once for every chunk of the prompt and every generated token, and can break to end
/// the answer. All tokens but the last generated one stay in the engine.
pub fn answer(
    engine: &mut dyn Engine,
    harmony: &Harmony<'_>,
    functions: &[Function],
    history: &[u32],
    prompt: &[u32],
    params: &GenerationParams,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<(Turn, Generated)> {
    // Refuses invalid stop strings, such as an empty one.
    StopCondition::new(Vec::new(), params.stop_strings.clone())?;
    let mut parser = harmony.parser().with_functions(functions).with_stop_strings(params.stop_strings.clone());
    let params = GenerationParams { stop_strings: Vec::new(), ..params.clone() };
    let mut is_complete = true;
    let generated = generate(engine, harmony.tokenizer(), SEQUENCE, history, prompt, &params, &mut |step| match step {
        Step::Prefill { done, of } => on_event(Event::Prompt { done: *done, of: *of }),
        Step::Token { token, .. } => {
            let flow = report_deltas(&parser.push(*token), &mut is_complete, on_event);
            if parser.stop_string().is_some() { ControlFlow::Break(()) } else { flow }
        }
        Step::Rest { .. } => ControlFlow::Continue(()),
    });
    let _ = report_deltas(&parser.finish(), &mut is_complete, on_event);
    let mut generated = generated?;
    if let Some(string) = parser.stop_string() {
        generated.finish = FinishReason::StopString(string.to_owned());
    }
    let (messages, warnings) = (parser.messages().to_vec(), parser.warnings().to_vec());
    Ok((Turn { messages, warnings, is_complete }, generated))
}

fn report_deltas(
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
    // All events are reported, even if the first one breaks.
    let flows: Vec<ControlFlow<()>> = deltas.iter().map(|delta| on_event(Event::Delta(delta))).collect();
    flows.into_iter().find(ControlFlow::is_break).unwrap_or(ControlFlow::Continue(()))
}
