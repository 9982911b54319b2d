//! Generation, written once for every engine: prefill the prompt in chunks, then one token at a time.

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
    /// Usually [`Tokenizer::stops`]; empty to run to `max_tokens` whatever the model says.
    pub stop_tokens: Vec<u32>,
    pub stop_strings: Vec<String>,
    /// Prompt tokens that one step takes; at least 1.
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

/// What was generated, and how long it took.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Generated tokens, a final stop token among them.
    pub tokens: Vec<u32>,
    /// Their text, without stop token and stop string.
    pub text: String,
    pub finish: FinishReason,
    /// From the start to the first token.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

impl Generated {
    /// Prompt tokens per second, up to the first generated token.
    pub fn prefill_rate(&self, prompt_tokens: usize) -> f64 {
        prompt_tokens as f64 / self.time_to_first_token.as_secs_f64()
    }

    /// Decode tokens per second, excluding the first; `None` with fewer than two tokens.
    pub fn decode_rate(&self) -> Option<f64> {
        (self.tokens.len() > 1).then(|| (self.tokens.len() - 1) as f64 / self.decode.as_secs_f64())
    }
}

/// Why nothing, or nothing more, was generated.
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

/// One advance of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// That many tokens of the prompt have been fed, or are being fed.
    Prefill { done: usize, of: usize },
    /// A token, and the text that is now sure to belong to the result: often, but not always, the token's own.
    Token { token: u32, text: String },
    /// Text that was held back until the end, since it might have begun a stop string.
    Rest { text: String },
}

/// A text under way. Each call of [`Generation::advance`] is one step of it; between two calls it can be left, resumed or ended.
pub struct Generation<'a> {
    engine: &'a mut dyn Engine,
    tokenizer: &'a Tokenizer,
    sequence: SequenceId,
    params: GenerationParams,
    prompt: Vec<u32>,
    /// Tokens of the prompt that were fed.
    fed: usize,
    sampler: Sampler,
    stop: StopCondition,
    stream: TextStream,
    /// Steps of the prompt that draw nothing and are not collected yet.
    feeding: VecDeque<Ticket>,
    /// Steps whose token is not collected yet.
    in_flight: VecDeque<Ticket>,
    tokens: Vec<u32>,
    text: String,
    finish: Option<FinishReason>,
    /// Whether the text that was held back has been given out.
    rested: bool,
    started: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl<'a> Generation<'a> {
    /// Continues a sequence by `prompt` and then by generated tokens. `history` is what the engine holds of the sequence: penalties
    /// count it too. Nothing is computed yet.
    ///
    /// # Errors
    /// Parameters out of range, or a prompt that is empty or does not fit.
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
            feeding: VecDeque::new(),
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

    /// The next step; `None` when the text has ended.
    ///
    /// # Errors
    /// An engine that refuses, or logits that are NaN.
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

    /// Ends the text where it is. The sequence stays in the engine, without the last generated token.
    ///
    /// # Errors
    /// A device that failed.
    pub fn interrupt(&mut self) -> Result<(), GenerationError> {
        match self.finish {
            Some(_) => Ok(()),
            None => self.end(FinishReason::Interrupted),
        }
    }

    /// What was generated so far. A text that has not ended counts as interrupted.
    pub fn finish(mut self) -> Generated {
        // A device that failed has said so where the text was advanced.
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

    /// Feeds a chunk of the prompt. The last one draws the first token.
    fn prefill(&mut self) -> Result<Step, GenerationError> {
        let chunk = self.params.prefill_chunk.min(self.engine.capacity().tokens_per_step);
        let end = self.prompt.len().min(self.fed + chunk);
        let wants_token = end == self.prompt.len() && self.params.max_tokens > 0;
        let want = if wants_token { Want::Token(self.sampler.next_draw()) } else { Want::Nothing };
        let ticket = self.engine.submit(&[Work::tokens(self.sequence, &self.prompt[self.fed..end], want)])?;
        let steps = if wants_token { &mut self.in_flight } else { &mut self.feeding };
        steps.push_back(ticket);
        // The next chunk is submitted while this one is computed.
        let ahead = if end == self.prompt.len() { 0 } else { steps_ahead(self.engine) };
        collect_all_but(ahead, self.engine, &mut self.feeding)?;
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
                // The token in flight is still given out; without one, the error is.
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

    /// Whether another token may be fed, so that one more is drawn.
    fn has_room(&self) -> bool {
        let drawn = self.tokens.len() + self.in_flight.len();
        drawn < self.params.max_tokens && self.engine.length(self.sequence) < self.engine.config().context_length
    }

    /// Takes back what was computed beyond the last token that counts.
    fn end(&mut self, reason: FinishReason) -> Result<(), GenerationError> {
        self.finish = Some(reason);
        let ahead = match (self.tokens.len(), self.in_flight.len()) {
            // The step in flight drew the first token, which is not fed.
            (0, in_flight) => in_flight.saturating_sub(1),
            (_, in_flight) => in_flight,
        };
        collect_all_but(0, self.engine, &mut self.feeding)?;
        collect_all_but(0, self.engine, &mut self.in_flight)?;
        if ahead > 0 {
            self.engine.truncate(self.sequence, self.engine.length(self.sequence) - ahead)?;
        }
        Ok(())
    }

    /// The text that was held back, unless a stop token or the stop string it might have begun has ended the generation.
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
    /// Leaves no step behind that nobody collects, whatever error ended the text.
    fn drop(&mut self) {
        for ticket in self.feeding.drain(..).chain(self.in_flight.drain(..)) {
            // The text has ended with another error, or nobody wants the rest of it.
            let _ = self.engine.collect(ticket);
        }
    }
}

/// Runs a [`Generation`] to its end. `on_step` is called with every step and may break to end the text.
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
