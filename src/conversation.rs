//! A conversation with a model: its messages, the tokens that the engine holds, and the session file.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail};
use harmony::{Function, Harmony, Message, ReasoningEffort, Role};
use phase1_loading::Checkpoint;
use phase2_forward::Engine;
use phase3_kvcache::{Generated, GenerationParams};

use crate::answer::{self, Event, Turn};
use crate::model::{LoadedModel, SEQUENCE};
use crate::saved::Saved;

pub struct Conversation<'a> {
    harmony: Harmony<'a>,
    effort: ReasoningEffort,
    /// The date in the system message.
    date: String,
    functions: Vec<Function>,
    messages: Vec<Message>,
    /// The tokens that the engine holds.
    held: Vec<u32>,
    saved: Option<Saved>,
}

/// An answer with its statistics.
pub struct Answer {
    pub turn: Turn,
    pub generated: Generated,
    /// Number of prompt tokens that the engine computed for the answer; tokens that the engine held already are not counted.
    pub prompt_tokens: usize,
}

impl<'a> Conversation<'a> {
    /// Begins a conversation without a file.
    pub fn begin(
        harmony: Harmony<'a>,
        effort: ReasoningEffort,
        date: String,
        instructions: Option<&str>,
        functions: Vec<Function>,
    ) -> Conversation<'a> {
        let messages = answer::conversation_start(effort, &date, instructions, &functions);
        Conversation { harmony, effort, date, functions, messages, held: Vec::new(), saved: None }
    }

    /// Continues the conversation in `file`, which has its own effort, instructions and functions; or begins a new one in that file.
    ///
    /// # Errors
    /// As [`Saved::open`]; or the file holds plain text; or `new` has instructions or functions, and those in the file differ.
    pub fn in_file(
        file: &Path,
        checkpoint: &Checkpoint,
        loaded: &mut LoadedModel,
        new: Conversation<'a>,
    ) -> Result<Conversation<'a>> {
        let (saved, tokens) = Saved::open(file, checkpoint, loaded)?;
        if tokens.is_empty() {
            return Ok(Conversation { saved: Some(saved), ..new });
        }
        let Ok(messages) = new.harmony.parse_conversation(&tokens) else {
            bail!(
                "{} holds text and no conversation; continue it with `gptoss generate MODEL PROMPT --session`",
                file.display()
            );
        };
        let asked = developer(&new.messages);
        if asked.is_some() && asked != developer(&messages) {
            bail!("{} already has instructions; they cannot be changed with --system or --tools", file.display());
        }
        let held = tokens[..loaded.engine.length(SEQUENCE)].to_vec();
        Ok(Conversation { messages, held, saved: Some(saved), ..new })
    }

    /// Removes the messages of the user, the assistant and tools. `instructions` replace the old ones (an empty text removes them); `None`
    /// keeps the old ones.
    pub fn reset(&mut self, instructions: Option<&str>) {
        match instructions {
            Some(text) => {
                let text = Some(text).filter(|text| !text.is_empty());
                self.messages = answer::conversation_start(self.effort, &self.date, text, &self.functions);
            }
            None => self.messages.retain(|message| matches!(message.role, Role::System | Role::Developer)),
        }
    }

    /// Sends a user's message, or the result of the assistant's call, and adds the assistant's answer to the conversation. `on_event` is
    /// called as the prompt is computed and for every new token, and can break to end the answer. If the engine can go back to where the
    /// prompt differs from the tokens that it holds (for example where earlier reasoning is left out), only the rest is fed.
    ///
    /// # Errors
    /// The message does not fit or the engine failed, and the message was removed again; or the file cannot be written.
    pub fn send(
        &mut self,
        message: Message,
        engine: &mut dyn Engine,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer> {
        self.messages.push(message);
        let asked = self.ask(engine, params, on_event);
        if asked.is_err() {
            self.messages.pop();
            self.held.clear();
            engine.release(SEQUENCE);
        }
        let (prompt, answer) = asked?;
        self.messages.extend(answer.turn.messages.iter().cloned());
        let whole = self.settle(prompt, &answer, engine);
        self.held = whole[..engine.length(SEQUENCE)].to_vec();
        if let Some(saved) = &self.saved {
            saved.write(&whole, engine).context("the conversation could not be saved")?;
        }
        Ok(answer)
    }

    /// Generates an answer; returns the tokens of its prompt, and the answer.
    fn ask(
        &mut self,
        engine: &mut dyn Engine,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(Vec<u32>, Answer)> {
        let prompt = self.harmony.render_prompt(&self.messages);
        // At least one token must be fed.
        let shared = common_length(&self.held, &prompt).min(prompt.len() - 1);
        if !go_back(engine, shared) {
            engine.release(SEQUENCE);
        }
        self.held.truncate(engine.length(SEQUENCE));
        let new = &prompt[self.held.len()..];
        let prompt_tokens = new.len();
        let (turn, generated) =
            answer::answer(engine, &self.harmony, &self.functions, &self.held, new, params, on_event)?;
        Ok((prompt, Answer { turn, generated, prompt_tokens }))
    }

    /// The tokens of the conversation so far: those of the rendered messages. They differ from the generated tokens where the model was cut
    /// off, was ended by a stop string or deviated from the format; the engine's sequence is then shortened to the common tokens. If the
    /// engine cannot do that, the generated tokens are kept.
    fn settle(&self, prompt: Vec<u32>, answer: &Answer, engine: &mut dyn Engine) -> Vec<u32> {
        let mut rendered = prompt[..prompt.len() - self.harmony.generation_prompt().len()].to_vec();
        for message in &answer.turn.messages {
            rendered.extend(self.harmony.render(message));
        }
        let written = [prompt, answer.generated.tokens.clone()].concat();
        let shared = common_length(&rendered, &written[..engine.length(SEQUENCE)]);
        if go_back(engine, shared) { rendered } else { written }
    }
}

/// Shortens the engine's sequence to its first `length` tokens. Returns `false`, with nothing changed, if the engine cannot.
fn go_back(engine: &mut dyn Engine, length: usize) -> bool {
    engine.length(SEQUENCE) == length || length > 0 && engine.truncate(SEQUENCE, length).is_ok()
}

fn common_length(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn developer(messages: &[Message]) -> Option<&Message> {
    messages.iter().find(|message| message.role == Role::Developer)
}
