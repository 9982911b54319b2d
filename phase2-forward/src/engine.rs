//! The seam between the model and everything that uses it.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use bytes::Bytes;
use phase1_loading::GptOssConfig;

use crate::probe::Probe;

/// A sequence that an engine remembers between steps. The caller chooses the numbers.
pub type SequenceId = u64;

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    pub sequence: SequenceId,
    /// At least one. They continue the sequence where its last chunk ended; an unknown sequence begins with them.
    pub tokens: &'a [u32],
    pub logits: LogitsFor,
}

/// How an engine chooses a token from its logits, in this order: temperature, top-k, top-p, min-p and a draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// 0 takes the first of the likeliest tokens.
    pub temperature: f32,
    /// The likeliest tokens that are kept; 0 keeps all.
    pub top_k: usize,
    /// The share of their probability that the fewest tokens must hold; 1 keeps all.
    pub top_p: f32,
    /// The least probability of a token, in shares of the likeliest one's; 0 keeps all.
    pub min_p: f32,
}

impl Choice {
    /// The likeliest token.
    pub const LIKELIEST: Choice = Choice { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
}

/// A sequence that an engine goes on with by itself.
pub struct Continuation<'a> {
    pub sequence: SequenceId,
    /// The token to feed first; the last one heard, when the engine is done.
    pub token: u32,
    pub choice: Choice,
    /// Numbers from [0, 1): one a token, and more are taken than tokens are heard. The first token in the order of the
    /// vocabulary whose probability, added to that of the tokens before, exceeds the number is the one drawn.
    pub draws: &'a mut dyn FnMut() -> f64,
}

/// What an engine remembers of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The kind of engine that it is of: no other reads its items.
    pub form: String,
    /// Tokens that it has seen.
    pub length: usize,
    /// In an order and format that only this kind of engine knows.
    pub items: Vec<Bytes>,
}

impl Snapshot {
    /// What a cache checks before it takes a snapshot: the form, a length that the context holds, and the bytes of each item.
    ///
    /// # Errors
    /// The first that is not so.
    pub fn check(
        &self,
        form: &'static str,
        context: usize,
        item_bytes: impl FnOnce(usize) -> Vec<usize>,
    ) -> Result<(), EngineError> {
        if self.form != form {
            return Err(EngineError::OtherForm { found: self.form.clone(), expected: form });
        }
        if !(1..=context).contains(&self.length) {
            let sentence = format!("{} tokens, where the context holds 1 to {context}", self.length);
            return Err(EngineError::WrongSnapshot(sentence));
        }
        let expected = item_bytes(self.length);
        let found: Vec<usize> = self.items.iter().map(Bytes::len).collect();
        if found != expected {
            let (found, expected): (usize, usize) = (found.iter().sum(), expected.iter().sum());
            let sentence = format!("{found} bytes of keys and values for {} tokens, expected {expected}", self.length);
            return Err(EngineError::WrongSnapshot(sentence));
        }
        Ok(())
    }
}

/// The positions of a chunk whose logits are wanted: the vocabulary product is computed for no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    Nothing,
    LastToken,
    EveryToken,
}

/// Why a step was refused. The engine's sequences are as they were before it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("a chunk of sequence {0} holds no tokens")]
    EmptyChunk(SequenceId),
    #[error("token {token} is outside the vocabulary of {vocab}")]
    TokenOutsideVocabulary { token: u32, vocab: usize },
    #[error("sequence {sequence} would reach {length} tokens; the model's context holds {context}")]
    ContextExceeded { sequence: SequenceId, length: usize, context: usize },
    #[error("sequence {0} stands twice in one batch")]
    SequenceTwice(SequenceId),
    #[error("this engine cannot restore a saved sequence; phases 3 and 5 can")]
    CannotRestore,
    #[error("a sequence saved by {found} cannot be restored by {expected}")]
    OtherForm { found: String, expected: &'static str },
    #[error("the saved sequence is not what this model's cache holds: {0}")]
    WrongSnapshot(String),
    #[error(
        "the logits after {position} tokens are not numbers; the weights may be damaged: `gptoss inspect --check` names the tensor"
    )]
    NotANumber { position: usize },
    /// The device cannot do it, or is no more; the sentence says which limit and what helps.
    #[error("{0}")]
    Device(String),
}

/// Something that turns tokens into logits: phase 2 by recomputing, phase 3 from a cache, phase 5 fused and batched.
pub trait Engine {
    fn config(&self) -> &GptOssConfig;

    /// Tokens of a sequence so far; 0 if it is unknown.
    fn length(&self, sequence: SequenceId) -> usize;

    /// Advances every sequence of the batch by its chunk.
    ///
    /// Returns for each chunk the logits asked for, `[positions, vocab]` on the engine's device, or `None` for
    /// [`LogitsFor::Nothing`]. `probe` sees the intermediate results of the positions computed.
    ///
    /// # Errors
    /// A batch that cannot be computed; nothing has changed then.
    fn step(&mut self, batch: &[Chunk<'_>], probe: &mut dyn Probe) -> Result<Vec<Option<Tensor<2>>>, EngineError>;

    /// What the engine remembers of a sequence, to go on from it later; `None` if the sequence is unknown or the engine saves
    /// nothing.
    fn save(&self, _: SequenceId) -> Option<Snapshot> {
        None
    }

    /// Goes on from a snapshot that this kind of engine made with this model and settings, in place of what `sequence` was.
    ///
    /// # Errors
    /// An engine that does not restore, or a snapshot of another shape; nothing has changed then.
    fn restore(&mut self, _: SequenceId, _: &Snapshot) -> Result<(), EngineError> {
        Err(EngineError::CannotRestore)
    }

    /// Goes on with every sequence of the batch by itself, all in step, without logits passing through the host: for `count`
    /// tokens each, until `on_tokens` breaks or a context ends. `on_tokens` hears one token of each sequence at a time, in the
    /// batch's order. A sequence then holds the token that it was given and every one heard but the last. `None` from an
    /// engine that only steps.
    ///
    /// # Errors
    /// As [`Engine::step`], and logits that are not numbers.
    fn decode(
        &mut self,
        _batch: &mut [Continuation<'_>],
        _count: usize,
        _on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Option<Result<(), EngineError>> {
        None
    }

    /// Forgets a sequence and frees what it holds. Unknown sequences are ignored.
    fn release(&mut self, sequence: SequenceId);
}

/// Logits on the host, row by row. A tensor's data may be a promise that is only kept when someone looks: here someone does, so
/// that whoever measures has waited for the device.
///
/// # Errors
/// A device that failed while it computed them.
pub fn read_back(logits: Tensor<2>) -> Result<Vec<f32>, EngineError> {
    let failed = |error: String| EngineError::Device(format!("the logits could not be read back: {error}"));
    let data = logits.try_into_data().map_err(|error| failed(error.to_string()))?;
    data.try_to_vec().map_err(|error| failed(format!("{error:?}")))
}

/// The checks that every engine makes before it computes anything.
///
/// # Errors
/// The first thing wrong with the batch.
pub fn check_batch(engine: &dyn Engine, batch: &[Chunk<'_>]) -> Result<(), EngineError> {
    let GptOssConfig { vocab, context_length: context, .. } = *engine.config();
    for (index, &Chunk { sequence, tokens, .. }) in batch.iter().enumerate() {
        if tokens.is_empty() {
            return Err(EngineError::EmptyChunk(sequence));
        }
        if batch[..index].iter().any(|earlier| earlier.sequence == sequence) {
            return Err(EngineError::SequenceTwice(sequence));
        }
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(EngineError::TokenOutsideVocabulary { token, vocab });
        }
        let length = engine.length(sequence) + tokens.len();
        if length > context {
            return Err(EngineError::ContextExceeded { sequence, length, context });
        }
    }
    Ok(())
}
