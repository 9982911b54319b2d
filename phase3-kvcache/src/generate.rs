//! Generation for any engine: feeds the prompt in chunks, then decodes one token at a time.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use phase1_loading::{TextStream, Tokenizer};
use phase2_forward::{BadRequest, Engine, EngineError, SequenceId, Ticket, Want, Work};

use crate::prefill::{PREFILL_CHUNK, collect_all_but, steps_ahead};
use crate::sampling::{Sampler, SamplingError, SamplingParams};
use crate::stopping::{EmptyStopString, FinishReason, StopCondition};

/// What to generate and when to stop.
#[derive(Clone, Debug)]
pub struct GenerationParams {
    pub sampling: SamplingParams,
    pub max_tokens: usize,
    /// Usually [`Tokenizer::stops`]; if empty, no token ends the generation.
    pub stop_tokens: Vec<u32>,
    pub stop_strings: Vec<String>,
    /// The most prompt tokens per step, at least 1. The engine's capacity may limit them further.
    pub prefill_chunk: usize,
}

impl Default for GenerationParams {
    fn default() -> Self {
        GenerationParams {
            sampling: SamplingParams::default(),
            max_tokens: 128,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            prefill_chunk: PREFILL_CHUNK,
        }
    }
}

/// The generated text, and how long it took.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Generated tokens, including a final stop token.
    pub tokens: Vec<u32>,
    /// Their text, without the stop token and the stop string.
    pub text: String,
    pub finish: FinishReason,
    /// Time from the start to the first token, or to the end if there is none.
    pub time_to_first_token: Duration,
    /// Time from the first token to the last.
    pub decode: Duration,
}

impl Generated {
    /// Prompt tokens per second of the time until the first generated token.
    pub fn prefill_rate(&self, prompt_tokens: usize) -> f64 {
        prompt_tokens as f64 / self.time_to_first_token.as_secs_f64()
    }

    /// Generated tokens per second after the first token; `None` with fewer than two tokens.
    pub fn decode_rate(&self) -> Option<f64> {
        (self.tokens.len() > 1).then(|| (self.tokens.len() - 1) as f64 / self.decode.as_secs_f64())
    }
}

/// Why generation failed.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    #[error(transparent)]
    StopString(#[from] EmptyStopString),
    #[error("the prompt is empty; a model needs at least one token to continue")]
    EmptyPrompt,
    #[error("the prompt has {prompt} tokens; after {length} earlier ones the model's context of {context} has room for {}", context - length)]
    PromptTooLong { prompt: usize, length: usize, context: usize },
    #[error("the prefill chunk is 0 tokens; it must be at least 1")]
    EmptyChunk,
}

/// The result of one [`Generation::advance`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `done` of the prompt's `of` tokens have been submitted.
    Prefill { done: usize, of: usize },
    /// A token, and the text that became final with it. That is usually the token's own text; it differs if a character is incomplete or
    /// text is held back because it may begin a stop string.
    Token { token: u32, text: String },
    /// The end of the text, which was held back because it might have begun a stop string or ends with an incomplete character. May be
    /// empty.
    Rest { text: String },
}

/// A generation in progress. Each call of [`Generation::advance`] does one step. Between two calls it can be paused or ended.
pub struct Generation<'a> {
    engine: &'a mut dyn Engine,
    tokenizer: &'a Tokenizer,
    sequence: SequenceId,
    params: GenerationParams,
    prompt: Vec<u32>,
    /// Number of prompt tokens that have been fed.
    fed: usize,
    sampler: Sampler,
    stop: StopCondition,
    stream: TextStream,
    /// Steps of the prompt that draw nothing and have not been collected yet.
    prompt_steps: VecDeque<Ticket>,
    /// Steps whose token has not been collected yet.
    in_flight: VecDeque<Ticket>,
    tokens: Vec<u32>,
    text: String,
    finish: Option<FinishReason>,
    /// Whether the held-back text has been returned.
    rested: bool,
    started: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl<'a> Generation<'a> {
    /// Continues a sequence with `prompt` and then with generated tokens. `history` is the tokens that the engine already holds of the
    /// sequence; penalties count them. Computes nothing yet.
    ///
    /// # Errors
    /// A parameter is out of range, the prompt is empty or does not fit, or a token is outside the vocabulary.
    pub fn new(
        engine: &'a mut dyn Engine,
        tokenizer: &'a Tokenizer,
        sequence: SequenceId,
        history: &[u32],
        prompt: &[u32],
        params: GenerationParams,
    ) -> Result<Generation<'a>, GenerationError> {
        let vocab = engine.config().vocab;
        let mut sampler = Sampler::new(params.sampling.clone(), vocab)?;
        let stop = StopCondition::new(params.stop_tokens.clone(), params.stop_strings.clone())?;
        let (length, context) = (engine.length(sequence), engine.config().context_length);
        if prompt.is_empty() {
            return Err(GenerationError::EmptyPrompt);
        }
        if params.prefill_chunk == 0 {
            return Err(GenerationError::EmptyChunk);
        }
        if length + prompt.len() > context {
            return Err(GenerationError::PromptTooLong { prompt: prompt.len(), length, context });
        }
        if let Some(&token) = history.iter().chain(prompt).find(|&&token| token as usize >= vocab) {
            return Err(EngineError::from(BadRequest::TokenOutsideVocabulary { token, vocab }).into());
        }
        sampler.observe_prompt(history);
        sampler.observe_prompt(prompt);
        Ok(Generation {
            engine,
            tokenizer,
            sequence,
            params,
            prompt: prompt.to_vec(),
            fed: 0,
            sampler,
            stop,
            stream: TextStream::default(),
            prompt_steps: VecDeque::new(),
            in_flight: VecDeque::new(),
            tokens: Vec::new(),
            text: String::new(),
            finish: None,
            rested: false,
            started: Instant::now(),
            first_token: None,
            last_token: None,
        })
    }

    /// Does the next step; `None` when the text has ended.
    ///
    /// # Errors
    /// The engine refuses a step or fails, or logits are NaN.
    pub fn advance(&mut self) -> Result<Option<Step>, GenerationError> {
        if self.finish.is_some() {
            return Ok(self.rest());
        }
        if self.fed < self.prompt.len() {
            return self.prefill().map(Some);
        }
        if self.params.max_tokens == 0 {
            self.end(FinishReason::Length)?;
            return Ok(self.rest());
        }
        self.next_token().map(Some)
    }

    /// Ends the generation. The sequence stays in the engine, without the last generated token.
    ///
    /// # Errors
    /// The device failed.
    pub fn interrupt(&mut self) -> Result<(), GenerationError> {
        match self.finish {
            Some(_) => Ok(()),
            None => self.end(FinishReason::Interrupted),
        }
    }

    /// Ends the generation and returns the result so far. If it had not ended before, the finish reason is `Interrupted`.
    pub fn finish(mut self) -> Generated {
        // A failure of the device was already reported by `advance`.
        let _ = self.interrupt();
        let end = self.last_token.unwrap_or_else(Instant::now);
        let first = self.first_token.unwrap_or(end);
        Generated {
            tokens: std::mem::take(&mut self.tokens),
            text: std::mem::take(&mut self.text),
            finish: self.finish.take().unwrap_or(FinishReason::Interrupted),
            time_to_first_token: first - self.started,
            decode: end - first,
        }
    }

    /// Feeds a chunk of the prompt. The last chunk draws the first token, unless `max_tokens` is 0.
    fn prefill(&mut self) -> Result<Step, GenerationError> {
        let chunk = self.params.prefill_chunk.min(self.engine.capacity().tokens_per_step);
        let end = self.prompt.len().min(self.fed + chunk);
        let wants_token = end == self.prompt.len() && self.params.max_tokens > 0;
        let want = if wants_token { Want::Token(self.sampler.next_draw()) } else { Want::Nothing };
        let ticket = self.engine.submit(&[Work::tokens(self.sequence, &self.prompt[self.fed..end], want)])?;
        let steps = if wants_token { &mut self.in_flight } else { &mut self.prompt_steps };
        steps.push_back(ticket);
        // The next chunk is submitted while this one is computed.
        let ahead = if end == self.prompt.len() { 0 } else { steps_ahead(self.engine) };
        collect_all_but(ahead, self.engine, &mut self.prompt_steps)?;
        self.fed = end;
        Ok(Step::Prefill { done: end, of: self.prompt.len() })
    }

    fn next_token(&mut self) -> Result<Step, GenerationError> {
        let ahead = match self.sampler.depends_on_tokens() {
            true => 1,
            false => self.engine.capacity().steps_in_flight,
        };
        while self.in_flight.len() < ahead && self.has_room() {
            let work = Work::decode(self.sequence, self.sampler.next_draw());
            match self.engine.submit(&[work]) {
                Ok(ticket) => self.in_flight.push_back(ticket),
                // The token in flight is returned first; the next call tries again.
                Err(EngineError::Full { .. }) if !self.in_flight.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
        }
        let Some(ticket) = self.in_flight.pop_front() else {
            self.end(FinishReason::Length)?;
            return Ok(Step::Rest { text: String::new() });
        };
        let token = self.engine.collect(ticket)?.remove(0).token()?.id;
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.sampler.accept(token);
        self.tokens.push(token);
        let (text, finish) = self.stop.push(token, &self.stream.push(self.tokenizer, token));
        self.text.push_str(&text);
        let full = self.tokens.len() == self.params.max_tokens || !self.has_room() && self.in_flight.is_empty();
        if let Some(reason) = finish.or(full.then_some(FinishReason::Length)) {
            self.end(reason)?;
        }
        Ok(Step::Token { token, text })
    }

    /// Whether another token can be fed to draw one more.
    fn has_room(&self) -> bool {
        let drawn = self.tokens.len() + self.in_flight.len();
        drawn < self.params.max_tokens && self.engine.length(self.sequence) < self.engine.config().context_length
    }

    /// Sets the finish reason, collects all steps in flight, and removes the generated tokens that those steps fed.
    fn end(&mut self, reason: FinishReason) -> Result<(), GenerationError> {
        self.finish = Some(reason);
        let ahead = match (self.tokens.len(), self.in_flight.len()) {
            // The oldest step in flight feeds the end of the prompt. Only the later ones feed generated tokens.
            (0, in_flight) => in_flight.saturating_sub(1),
            (_, in_flight) => in_flight,
        };
        collect_all_but(0, self.engine, &mut self.prompt_steps)?;
        collect_all_but(0, self.engine, &mut self.in_flight)?;
        if ahead > 0 {
            self.engine.truncate(self.sequence, self.engine.length(self.sequence) - ahead)?;
        }
        Ok(())
    }

    /// The held-back text, unless a stop token or the stop string that it began has ended the generation.
    fn rest(&mut self) -> Option<Step> {
        let stopped = matches!(self.finish, Some(FinishReason::Stop | FinishReason::StopString(_)));
        if stopped || std::mem::replace(&mut self.rested, true) {
            return None;
        }
        let text = self.stop.finish() + &std::mem::take(&mut self.stream).finish();
        self.text.push_str(&text);
        Some(Step::Rest { text })
    }
}

impl Drop for Generation<'_> {
    /// Collects steps that are still in flight, for example after an error.
    fn drop(&mut self) {
        for ticket in self.prompt_steps.drain(..).chain(self.in_flight.drain(..)) {
            // Errors are ignored: an earlier error was already returned, or the caller has dropped the generation.
            let _ = self.engine.collect(ticket);
        }
    }
}

/// Runs a [`Generation`] to its end. `on_step` is called with every step and can break to end the text.
///
/// # Errors
/// As [`Generation::new`] and [`Generation::advance`].
pub fn generate(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    sequence: SequenceId,
    history: &[u32],
    prompt: &[u32],
    params: &GenerationParams,
    on_step: &mut dyn FnMut(&Step) -> ControlFlow<()>,
) -> Result<Generated, GenerationError> {
    let mut generation = Generation::new(engine, tokenizer, sequence, history, prompt, params.clone())?;
    while let Some(step) = generation.advance()? {
        if on_step(&step).is_break() {
            generation.interrupt()?;
        }
    }
    Ok(generation.finish())
}
