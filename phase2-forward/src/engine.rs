//! The interface between an engine and its callers: work is submitted with [`Engine::submit`], and outcomes are collected with
//! [`Engine::collect`].
//!
//! A work item names a sequence, its input, and the requested result: nothing, logits, or a token drawn from them. The sequences of a step
//! may be in different states: the last chunk of one prompt draws its first token in the same pass in which other sequences decode. Several
//! steps may be in flight, and a sequence may be fed the token that it drew in a step that is not collected yet, so that a device never
//! waits for its host.

use bytes::Bytes;
use phase1_loading::GptOssConfig;

use crate::draw::{Draw, DrawnToken};
use crate::probe::Probe;

/// A sequence whose state an engine keeps between steps. The caller chooses the numbers.
pub type SequenceId = u64;

/// The work on one sequence in a step. A sequence appears at most once in a step.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    pub sequence: SequenceId,
    pub input: Input<'a>,
    pub want: Want<'a>,
}

impl<'a> Work<'a> {
    /// Work that feeds tokens.
    pub fn tokens(sequence: SequenceId, tokens: &'a [u32], want: Want<'a>) -> Work<'a> {
        Work { sequence, input: Input::Tokens(tokens), want }
    }

    /// Work that feeds the token drawn last and draws the next one.
    pub fn decode(sequence: SequenceId, draw: Draw<'a>) -> Work<'a> {
        Work { sequence, input: Input::Drawn, want: Want::Token(draw) }
    }
}

/// The input of a sequence.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// At least one token. They continue the sequence; a sequence that does not exist is created.
    Tokens(&'a [u32]),
    /// The token that the sequence drew in its last step.
    Drawn,
}

/// The requested result. The product with the output matrix `[vocab, hidden]` is computed only for the rows that need it.
#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    Nothing,
    /// The logits after the last token fed, `[vocab]`.
    LastLogits,
    /// The logits after every token fed, `[tokens, vocab]`.
    AllLogits,
    /// A token drawn from the logits after the last token fed.
    Token(Draw<'a>),
}

impl Want<'_> {
    /// Number of rows of logits that an input of `tokens` tokens needs: those of its last tokens.
    pub fn rows(&self, tokens: usize) -> usize {
        match self {
            Want::Nothing => 0,
            Want::LastLogits | Want::Token(_) => 1,
            Want::AllLogits => tokens,
        }
    }
}

/// Identifies a submitted step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// The result of a work item.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The tokens were fed; no other result was requested.
    Fed,
    /// `[rows, vocab]`
    Logits(Vec<f32>),
    Token(DrawnToken),
    /// The logits of this item are NaN. The sequence cannot continue and should be released; the other sequences of the step are not
    /// affected.
    NotANumber {
        /// Length of the sequence in tokens.
        position: usize,
    },
}

impl Outcome {
    /// The logits, if they were requested.
    ///
    /// # Errors
    /// The logits are NaN, or were not requested.
    pub fn logits(self) -> Result<Vec<f32>, EngineError> {
        match self {
            Outcome::Logits(logits) => Ok(logits),
            Outcome::NotANumber { position } => Err(EngineError::NotANumber { position }),
            Outcome::Fed | Outcome::Token(_) => Err(EngineError::Unsupported("no logits were requested".into())),
        }
    }

    /// The token, if one was drawn.
    pub fn drawn_id(&self) -> Option<u32> {
        match self {
            Outcome::Token(token) => Some(token.id),
            _ => None,
        }
    }

    /// The drawn token, if one was requested.
    ///
    /// # Errors
    /// The logits are NaN, or no token was requested.
    pub fn token(self) -> Result<DrawnToken, EngineError> {
        match self {
            Outcome::Token(token) => Ok(token),
            Outcome::NotANumber { position } => Err(EngineError::NotANumber { position }),
            Outcome::Fed | Outcome::Logits(_) => Err(EngineError::Unsupported("no token was requested".into())),
        }
    }
}

/// The limits of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens in one step, over all its items.
    pub tokens_per_step: usize,
    /// Steps that may be submitted before the first of them is collected.
    pub steps_in_flight: usize,
    /// Pages of the cache. A sequence of n tokens takes n / `positions_per_page` of them, rounded up, and a few more for sliding layers.
    pub pages_total: usize,
    pub pages_free: usize,
    pub positions_per_page: usize,
    /// The number of tokens by which [`Engine::truncate`] and [`Engine::fork`] can always shorten a sequence, counted from the greatest
    /// length that it, or the sequence that it was forked from, has had. Beyond that, sliding layers may have dropped positions that the
    /// next token attends to.
    pub rewind: usize,
}

impl Capacity {
    /// The capacity of an engine that computes a step when it is submitted and allocates memory as needed.
    pub const UNBOUNDED: Capacity = Capacity {
        tokens_per_step: usize::MAX,
        steps_in_flight: 1,
        pages_total: usize::MAX,
        pages_free: usize::MAX,
        positions_per_page: 1,
        rewind: 0,
    };
}

/// Why a call of an engine failed. The sequences are unchanged, unless the device failed ([`Engine::collect`]) or logits are NaN
/// ([`Outcome::NotANumber`]).
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "the cache is full: {needed} pages are needed and {free} are free; finish or release sequences, or give the cache more memory"
    )]
    Full { needed: usize, free: usize },
    #[error("the device was lost ({0}): its driver was reset, or it was removed; restart to load the model again")]
    Lost(String),
    #[error("{0}")]
    Unsupported(String),
    #[error(transparent)]
    BadRequest(#[from] BadRequest),
    #[error(
        "the logits after {position} tokens are NaN; the weights may be damaged: `gptoss inspect --check` names the tensor"
    )]
    NotANumber { position: usize },
    /// The device failed. The text gives the reason, for example the limit that was exceeded, and a remedy if there is one.
    #[error("{0}")]
    Device(String),
}

/// An invalid call, which is a bug in the caller.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum BadRequest {
    #[error("the step has no work items")]
    NoWork,
    #[error("sequence {0} is given no tokens")]
    NoTokens(SequenceId),
    #[error("token {token} is outside the vocabulary of {vocab}")]
    TokenOutsideVocabulary { token: u32, vocab: usize },
    #[error("sequence {sequence} would reach {length} tokens; the model's context holds {context}")]
    ContextExceeded { sequence: SequenceId, length: usize, context: usize },
    #[error("sequence {0} appears twice in one step")]
    SequenceTwice(SequenceId),
    #[error("sequence {0} is unknown")]
    UnknownSequence(SequenceId),
    #[error("sequence {0} exists already")]
    SequenceExists(SequenceId),
    #[error("sequence {0} has no drawn token to feed: its last step did not draw one")]
    NothingDrawn(SequenceId),
    #[error("the step has {tokens} tokens; this engine takes at most {most}")]
    StepTooLong { tokens: usize, most: usize },
    #[error("{0} steps are in flight already; collect one first")]
    TooManySteps(usize),
    #[error("step {0:?} is not in flight")]
    UnknownTicket(Ticket),
    #[error("sequence {sequence} has {length} tokens and cannot go back to {wanted}")]
    CannotGoBack { sequence: SequenceId, length: usize, wanted: usize },
    #[error("the mask has {words} words; a vocabulary of {vocab} tokens needs {expected}")]
    MaskLength { words: usize, vocab: usize, expected: usize },
    #[error("the mask of sequence {0} allows no token")]
    NothingAllowed(SequenceId),
    #[error("{0} log probabilities are requested; at most {most} are available", most = crate::draw::MAX_LOGPROBS)]
    TooManyLogprobs(usize),
    #[error("a sequence saved by {found} cannot be restored by {expected}")]
    OtherEngine { found: String, expected: &'static str },
    #[error("the saved sequence does not fit this model's cache: {0}")]
    WrongSnapshot(String),
}

/// Turns tokens into logits, and draws tokens from them: phase 2 by recomputation, phase 3 with a cache, phase 5 with fused kernels.
pub trait Engine: Send {
    fn config(&self) -> &GptOssConfig;

    fn capacity(&self) -> Capacity;

    /// Length of a sequence in tokens, including those of steps in flight; 0 if it does not exist.
    fn length(&self, sequence: SequenceId) -> usize;

    /// Starts a step. First reserves the memory for the whole step; if there is not enough, reserves none.
    ///
    /// # Errors
    /// The step cannot be computed. Nothing has changed, unless the engine computes the step in this call and the device failed.
    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError>;

    /// Waits for a step and returns one outcome per item, in their order. Steps must be collected in the order of submission.
    ///
    /// # Errors
    /// `ticket` is not that of the oldest step in flight; or the device failed, and the contents of its sequences are then undefined.
    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError>;

    /// Creates `to`, which must not exist, as a copy of the first `length` tokens of `from`. In a cache of pages both share them; only a
    /// partial last page is copied.
    ///
    /// # Errors
    /// `from` is unknown or shorter than `length`, `to` exists, `length` is 0 or further back than the engine can go (at least
    /// [`Capacity::rewind`]), or the cache is full.
    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), EngineError>;

    /// Removes all but the first `length` tokens of a sequence. No step in flight may feed it.
    ///
    /// # Errors
    /// As [`Engine::fork`].
    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError>;

    /// Removes a sequence and frees its memory. An unknown sequence is ignored. Outcomes of steps in flight must still be collected.
    fn release(&mut self, sequence: SequenceId);

    /// Submits a step and waits for it.
    ///
    /// # Errors
    /// As [`Engine::submit`] and [`Engine::collect`].
    fn step(&mut self, work: &[Work<'_>]) -> Result<Vec<Outcome>, EngineError> {
        let ticket = self.submit(work)?;
        self.collect(ticket)
    }

    /// The logits after the last token fed, `[vocab]`.
    ///
    /// # Errors
    /// As [`Engine::step`]; or the logits are NaN.
    fn last_logits(&mut self, sequence: SequenceId, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.step(&[Work::tokens(sequence, tokens, Want::LastLogits)])?.remove(0).logits()
    }

    /// The logits after every token fed, `[tokens, vocab]`.
    ///
    /// # Errors
    /// As [`Engine::last_logits`].
    fn all_logits(&mut self, sequence: SequenceId, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.step(&[Work::tokens(sequence, tokens, Want::AllLogits)])?.remove(0).logits()
    }

    /// Access to saving and restoring sequences, if the engine supports it.
    fn snapshots(&mut self) -> Option<&mut dyn Snapshots> {
        None
    }
}

/// An engine that exposes the intermediate results of a step.
pub trait Inspect: Engine {
    /// Computes a step before returning, and calls `probe` with each intermediate result and at the end of each operation.
    ///
    /// # Errors
    /// As [`Engine::step`].
    fn inspect(&mut self, work: &[Work<'_>], probe: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError>;
}

/// The saved state of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The kind of engine that wrote it. Other kinds cannot read its items.
    pub engine: String,
    /// Length of the sequence in tokens.
    pub length: usize,
    /// The data of the sequence. Each kind of engine has its own order and format.
    pub items: Vec<Bytes>,
}

impl Snapshot {
    /// Checks a snapshot before it is restored: the engine, a length within the context, and the size of each item.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn check(
        &self,
        engine: &'static str,
        context: usize,
        item_bytes: impl FnOnce(usize) -> Vec<usize>,
    ) -> Result<(), BadRequest> {
        if self.engine != engine {
            return Err(BadRequest::OtherEngine { found: self.engine.clone(), expected: engine });
        }
        if !(1..=context).contains(&self.length) {
            let sentence = format!("it has {} tokens; the context allows 1 to {context}", self.length);
            return Err(BadRequest::WrongSnapshot(sentence));
        }
        let expected = item_bytes(self.length);
        let found: Vec<usize> = self.items.iter().map(Bytes::len).collect();
        if found != expected {
            let (found, expected): (usize, usize) = (found.iter().sum(), expected.iter().sum());
            let sentence = format!("{found} bytes of keys and values for {} tokens, expected {expected}", self.length);
            return Err(BadRequest::WrongSnapshot(sentence));
        }
        Ok(())
    }
}

/// Saves sequences as bytes and restores them.
pub trait Snapshots {
    /// The name of this kind of engine, which its snapshots contain as [`Snapshot::engine`].
    fn kind(&self) -> &'static str;

    /// # Errors
    /// The sequence is unknown, or the device was lost.
    fn save(&mut self, sequence: SequenceId) -> Result<Snapshot, EngineError>;

    /// Replaces `sequence` by a snapshot that the same kind of engine made with this model and these settings.
    ///
    /// # Errors
    /// The snapshot has another shape or is of another engine, or the cache is full; nothing has changed.
    fn restore(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError>;
}
