//! A conversation with a model: what was said, what of it the engine holds, and the file that keeps it.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail};
use harmony::{Effort, Message, Role, Turn, parse_conversation};
use phase1_loading::{Checkpoint, Tokenizer};
use phase2_forward::Engine;
use phase3_kvcache::{Generated, GenerationParams};

use crate::answer::{self, Event};
use crate::saved::Saved;
use crate::session::{SEQUENCE, Session};

pub struct Conversation<'a> {
    tokenizer: &'a Tokenizer,
    effort: Effort,
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
    pub fn begin(tokenizer: &'a Tokenizer, effort: Effort, instructions: Option<&str>) -> Conversation<'a> {
        let messages = answer::opening(effort, instructions);
        Conversation { tokenizer, effort, messages, held: Vec::new(), saved: None }
    }

    /// Goes on with the conversation in `file`, which keeps its own effort and instructions; or begins one there.
    ///
    /// # Errors
    /// As [`Saved::open`], a file that holds other text, or instructions for a conversation that is under way.
    pub fn in_file(
        file: &Path,
        checkpoint: &Checkpoint,
        session: &mut Session,
        new: Conversation<'a>,
    ) -> Result<Conversation<'a>> {
        let (saved, tokens) = Saved::open(file, checkpoint, session)?;
        if tokens.is_empty() {
            return Ok(Conversation { saved: Some(saved), ..new });
        }
        if new.messages.iter().any(|message| message.role == Role::Developer) {
            bail!("{} holds a conversation that has its instructions; it cannot go on under --system", file.display());
        }
        let Some(messages) = parse_conversation(&tokens, new.tokenizer) else {
            bail!(
                "{} holds text that is no conversation; `gptoss generate MODEL PROMPT --session` goes on with it",
                file.display()
            );
        };
        let held = tokens[..session.engine.length(SEQUENCE)].to_vec();
        Ok(Conversation { messages, held, saved: Some(saved), ..new })
    }

    /// Forgets what was said. Without new instructions the old ones stay.
    pub fn reset(&mut self, instructions: Option<&str>) {
        match instructions {
            Some(text) => self.messages = answer::opening(self.effort, Some(text).filter(|text| !text.is_empty())),
            None => self.messages.retain(|message| matches!(message.role, Role::System | Role::Developer)),
        }
    }

    /// Asks and remembers the answer; `on_event` hears of every step, and may end it by breaking. Only what the engine does not hold
    /// is fed to it; it begins anew where the prompt is another text, as it is when earlier reasoning is left out.
    ///
    /// # Errors
    /// A question that does not fit, which is forgotten then; or a file that cannot be written.
    pub fn say(
        &mut self,
        text: &str,
        engine: &mut dyn Engine,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer> {
        self.messages.push(Message::new(Role::User, text));
        let asked = self.ask(engine, params, on_event);
        if asked.is_err() {
            self.messages.pop();
            self.held.clear();
            engine.release(SEQUENCE);
        }
        let (whole, answer) = asked?;
        self.messages.extend(answer.turn.messages());
        self.held = whole[..engine.length(SEQUENCE)].to_vec();
        if let Some(saved) = &self.saved {
            saved.write(&whole, engine).context("the conversation was not kept")?;
        }
        Ok(answer)
    }

    /// The tokens of the conversation so far, and the answer at their end.
    fn ask(
        &self,
        engine: &mut dyn Engine,
        params: &GenerationParams,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(Vec<u32>, Answer)> {
        let mut whole = answer::prompt(&self.messages, self.tokenizer)?;
        let (held, new) = match whole.strip_prefix(&self.held[..]) {
            Some(new) if !new.is_empty() => (&self.held[..], new),
            _ => {
                engine.release(SEQUENCE);
                (&[] as &[u32], &whole[..])
            }
        };
        let prompt_tokens = new.len();
        let (turn, generated) = answer::answer(engine, self.tokenizer, held, new, params, on_event)?;
        whole.extend(&generated.tokens);
        Ok((whole, Answer { turn, generated, prompt_tokens }))
    }
}
