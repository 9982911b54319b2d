//! Generation, written once for every engine: prefill the prompt in chunks, then one token at a time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use phase1_loading::{TextStream, Tokenizer};
use phase2_forward::{Chunk, Continuation, Engine, EngineError, LogitsFor, NoProbe, SequenceId};

use crate::sampling::{Sampler, SamplingError, SamplingParams};
use crate::stopping::{EmptyStopString, FinishReason, StopCondition};

/// Prompt tokens per step by default. It bounds the memory of attention scores.
pub const PREFILL_CHUNK: usize = 512;

/// What to generate and when to stop.
#[derive(Clone, Debug)]
pub struct GenerationParams {
    pub sampling: SamplingParams,
    pub max_tokens: usize,
    /// Usually [`Tokenizer::stops`]; empty to run to `max_tokens` whatever the model says.
    pub stop_tokens: Vec<u32>,
    pub stop_strings: Vec<String>,
    /// Prompt tokens that one step takes: bounds the memory of a long prompt's attention scores.
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
pub struct Generation {
    /// Generated tokens, a final stop token among them.
    pub tokens: Vec<u32>,
    /// Their text, without stop token and stop string.
    pub text: String,
    pub finish: FinishReason,
    /// From the start to the first token chosen.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

impl Generation {
    /// Prompt tokens a second until the first token was chosen.
    pub fn prefill_rate(&self, prompt_tokens: usize) -> f64 {
        prompt_tokens as f64 / self.time_to_first_token.as_secs_f64()
    }

    /// Tokens a second after the first; `None` if there was no second.
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
    #[error(
        "the logits after {position} tokens are not numbers; the weights may be damaged: `gptoss inspect --check` names the tensor"
    )]
    NotANumber { position: usize },
    #[error("the logits could not be read back from the device: {0}")]
    Readback(String),
}

/// What a listener hears while text is generated.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The token just chosen; `None` for text that was held back until the end.
    pub token: Option<u32>,
    /// The text that is now sure to belong to the result: often, but not always, the token's.
    pub text: &'a str,
}

/// Continues a sequence by `prompt` and then by generated tokens.
///
/// `on_step` hears of every token, and may end generation by breaking. The sequence stays in the engine, without the last generated token, until the
/// caller releases it.
///
/// # Errors
/// Parameters out of range, a prompt that does not fit, or logits that are not numbers.
pub fn generate(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    sequence: SequenceId,
    prompt: &[u32],
    params: &GenerationParams,
    on_step: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<Generation, GenerationError> {
    let mut sampler = Sampler::new(params.sampling.clone(), engine.config().vocab)?;
    let mut stop = StopCondition::new(params.stop_tokens.clone(), params.stop_strings.clone())?;
    let mut stream = TextStream::default();
    let (length, context) = (engine.length(sequence), engine.config().context_length);
    if prompt.is_empty() {
        return Err(GenerationError::EmptyPrompt);
    }
    if length + prompt.len() > context {
        return Err(GenerationError::PromptTooLong { prompt: prompt.len(), length, context });
    }

    let start = Instant::now();
    let (body, last_chunk) = prompt.split_at((prompt.len() - 1) / params.prefill_chunk * params.prefill_chunk);
    for tokens in body.chunks(params.prefill_chunk) {
        engine.step(&[Chunk { sequence, tokens, logits: LogitsFor::Nothing }], &mut NoProbe)?;
    }
    let mut logits = last_logits(engine, sequence, last_chunk)?;
    sampler.observe_prompt(prompt);

    let mut tokens = Vec::new();
    let mut text = String::new();
    let mut first_token_at = None;
    let mut accept = |token: u32| {
        tokens.push(token);
        first_token_at.get_or_insert_with(Instant::now);
        let (shown, finish) = stop.push(token, &stream.push(tokenizer, token));
        text.push_str(&shown);
        let wish = on_step(Step { token: Some(token), text: &shown });
        match finish {
            Some(finish) => Some(finish),
            None if wish.is_break() => Some(FinishReason::Interrupted),
            None if tokens.len() == params.max_tokens => Some(FinishReason::Length),
            None => None,
        }
    };
    let finish = loop {
        if params.max_tokens == 0 {
            break FinishReason::Length;
        }
        let token = sampler.sample(&mut logits);
        if let Some(finish) = accept(token) {
            break finish;
        }
        if engine.length(sequence) == context {
            break FinishReason::Length;
        }
        if let Some(choice) = params.sampling.choice() {
            let mut finish = FinishReason::Length;
            let on_tokens = &mut |tokens: &[u32]| match accept(tokens[0]) {
                Some(reason) => {
                    finish = reason;
                    ControlFlow::Break(())
                }
                None => ControlFlow::Continue(()),
            };
            let draws = &mut sampler.draws();
            let mut batch = [Continuation { sequence, token, choice, draws }];
            if let Some(outcome) = engine.decode(&mut batch, params.max_tokens - 1, on_tokens) {
                outcome?;
                break finish;
            }
        }
        logits = last_logits(engine, sequence, &[token])?;
    };
    let end = Instant::now();
    let first_token_at = first_token_at.unwrap_or(end);
    if !matches!(finish, FinishReason::Stop | FinishReason::StopString(_)) {
        let rest = stop.finish() + &stream.finish();
        let _ = on_step(Step { token: None, text: &rest });
        text.push_str(&rest);
    }
    Ok(Generation { tokens, text, finish, time_to_first_token: first_token_at - start, decode: end - first_token_at })
}

/// Advances the sequence and reads back the logits of its last token.
fn last_logits(engine: &mut dyn Engine, sequence: SequenceId, tokens: &[u32]) -> Result<Vec<f32>, GenerationError> {
    let chunk = Chunk { sequence, tokens, logits: LogitsFor::LastToken };
    let logits = engine.step(&[chunk], &mut NoProbe)?.pop().flatten().expect("logits were asked for");
    let data = logits.try_into_data().map_err(|error| GenerationError::Readback(format!("{error:?}")))?;
    let logits: Vec<f32> = data.try_to_vec().map_err(|error| GenerationError::Readback(format!("{error:?}")))?;
    if logits.iter().any(|logit| logit.is_nan()) {
        return Err(GenerationError::NotANumber { position: engine.length(sequence) });
    }
    Ok(logits)
}
