//! A conversation with a model: what was said, what of it the engine holds, and the file that keeps it.

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
    /// The day that the model is told.
    date: String,
    functions: Vec<Function>,
    messages: Vec<Message>,
    /// Tokens that the engine holds.
    held: Vec<u32>,
    saved: Option<Saved>,
}

/// An answer, and how it came about.
pub struct Answer {
    pub turn: Turn,
    pub generated: Generated,
    /// Tokens that the engine read before it.
    pub prompt_tokens: usize,
}

impl<'a> Conversation<'a> {
    /// A conversation of which no file knows.
    pub fn begin(
        harmony: Harmony<'a>,
        effort: ReasoningEffort,
        date: String,
        instructions: Option<&str>,
        functions: Vec<Function>,
    ) -> Conversation<'a> {
        let messages = answer::opening(effort, &date, instructions, &functions);
        Conversation { harmony, effort, date, functions, messages, held: Vec::new(), saved: None }
    }

    /// Goes on with the conversation in `file`, which keeps its own effort, instructions and functions; or begins one there.
    ///
    /// # Errors
    /// As [`Saved::open`], a file that holds other text, or other instructions or functions for a conversation that is under way.
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
                "{} holds text that is no conversation; `gptoss generate MODEL PROMPT --session` goes on with it",
                file.display()
            );
        };
        let asked = developer(&new.messages);
        if asked.is_some() && asked != developer(&messages) {
            bail!(
                "{} holds a conversation that has its instructions; it cannot go on under other --system or --tools",
                file.display()
            );
        }
        let held = tokens[..loaded.engine.length(SEQUENCE)].to_vec();
        Ok(Conversation { messages, held, saved: Some(saved), ..new })
    }

    /// Forgets what was said. Without new instructions the old ones stay.
    pub fn reset(&mut self, instructions: Option<&str>) {
        match instructions {
            Some(text) => {
                let text = Some(text).filter(|text| !text.is_empty());
                self.messages = answer::opening(self.effort, &self.date, text, &self.functions);
            }
            None => self.messages.retain(|message| matches!(message.role, Role::System | Role::Developer)),
        }
    }

    /// Says something to the assistant, or gives it the result of its call, and remembers what it says. `on_event` is called with
    /// every step, and may end the answer by breaking. The engine is fed only what it does not hold, if it can go back to where the
    /// prompt differs from that, as it does when earlier reasoning is left out.
    ///
    /// # Errors
    /// A message that does not fit, which is forgotten then; or a file that cannot be written.
    pub fn say(
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
            saved.write(&whole, engine).context("the conversation was not kept")?;
        }
        Ok(answer)
    }

    /// The tokens that lead to an answer, and the answer.
    fn ask(
        &mut self,
        engine: &mut dyn Engine,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(Vec<u32>, Answer)> {
        let prompt = self.harmony.render_prompt(&self.messages);
        // At least one token has to be fed.
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

    /// The tokens of the conversation so far. They are those of the messages, which differ from what the model wrote where it was
    /// cut off, ended by a stop string or made mistakes; the engine goes back to where they differ. If it cannot, they stay what the
    /// model wrote.
    fn settle(&self, prompt: Vec<u32>, answer: &Answer, engine: &mut dyn Engine) -> Vec<u32> {
        let mut said = prompt[..prompt.len() - self.harmony.opening().len()].to_vec();
        for message in &answer.turn.messages {
            said.extend(self.harmony.render(message));
        }
        let written = [prompt, answer.generated.tokens.clone()].concat();
        let shared = common_length(&said, &written[..engine.length(SEQUENCE)]);
        if go_back(engine, shared) { said } else { written }
    }
}

/// Has the engine forget all but the first `length` tokens. `false`, and nothing has changed, if it cannot.
fn go_back(engine: &mut dyn Engine, length: usize) -> bool {
    engine.length(SEQUENCE) == length || length > 0 && engine.truncate(SEQUENCE, length).is_ok()
}

fn common_length(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn developer(messages: &[Message]) -> Option<&Message> {
    messages.iter().find(|message| message.role == Role::Developer)
}
