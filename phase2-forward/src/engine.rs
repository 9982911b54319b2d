//! The seam between a model and everything that uses it: work goes in with [`Engine::submit`], outcomes come out with
//! [`Engine::collect`].
//!
//! A work item names a sequence, what the sequence is fed, and what is wanted back: nothing, logits, or a token drawn from them.
//! Items of one step may belong to sequences in different states: the last chunk of a prompt draws its first token in the same pass
//! in which other sequences decode. An engine may have several steps in flight, and a sequence can be fed the token that it drew in
//! a step that is not collected yet, so that a device never waits for its host.

use bytes::Bytes;
use phase1_loading::GptOssConfig;

use crate::draw::{Draw, DrawnToken};
use crate::probe::Probe;

/// A sequence that an engine remembers between steps. The caller chooses the numbers.
pub type SequenceId = u64;

/// What one sequence does in a step. A sequence appears in a step at most once.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    pub sequence: SequenceId,
    pub input: Input<'a>,
    pub want: Want<'a>,
}

impl<'a> Work<'a> {
    /// Feeds tokens.
    pub fn tokens(sequence: SequenceId, tokens: &'a [u32], want: Want<'a>) -> Work<'a> {
        Work { sequence, input: Input::Tokens(tokens), want }
    }

    /// Feeds the token drawn last and draws the next one.
    pub fn decode(sequence: SequenceId, draw: Draw<'a>) -> Work<'a> {
        Work { sequence, input: Input::Drawn, want: Want::Token(draw) }
    }
}

/// What a sequence is fed.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// At least one token. They continue the sequence; an unknown sequence begins with them.
    Tokens(&'a [u32]),
    /// The token that the sequence drew in its last step.
    Drawn,
}

/// What is wanted of the tokens fed. The vocabulary product is computed for the rows that need it and no others.
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
    /// How many of `tokens` tokens, counted from the last, need logits.
    pub fn rows(&self, tokens: usize) -> usize {
        match self {
            Want::Nothing => 0,
            Want::LastLogits | Want::Token(_) => 1,
            Want::AllLogits => tokens,
        }
    }
}

/// A step that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What became of a work item.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The tokens were fed; nothing else was wanted.
    Fed,
    /// `[rows, vocab]`
    Logits(Vec<f32>),
    Token(DrawnToken),
    /// Logits of this item are NaN. The sequence is of no further use and should be released; the others of the step are unharmed.
    NotANumber {
        /// Tokens of the sequence when it happened.
        position: usize,
    },
}

impl Outcome {
    /// The logits of an item that wanted them.
    ///
    /// # Errors
    /// Logits that are NaN.
    pub fn logits(self) -> Result<Vec<f32>, EngineError> {
        match self {
            Outcome::Logits(logits) => Ok(logits),
            Outcome::NotANumber { position } => Err(EngineError::NotANumber { position }),
            Outcome::Fed | Outcome::Token(_) => Err(EngineError::Unsupported("no logits were wanted".into())),
        }
    }

    /// The token, if one was drawn.
    pub fn drawn_id(&self) -> Option<u32> {
        match self {
            Outcome::Token(token) => Some(token.id),
            _ => None,
        }
    }

    /// The token of an item that wanted one.
    ///
    /// # Errors
    /// Logits that are NaN.
    pub fn token(self) -> Result<DrawnToken, EngineError> {
        match self {
            Outcome::Token(token) => Ok(token),
            Outcome::NotANumber { position } => Err(EngineError::NotANumber { position }),
            Outcome::Fed | Outcome::Logits(_) => Err(EngineError::Unsupported("no token was wanted".into())),
        }
    }
}

/// What an engine has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens that one step takes, over all its items.
    pub tokens_per_step: usize,
    /// Steps that may be submitted before the first of them is collected.
    pub steps_in_flight: usize,
    /// Pages of the cache. A sequence of n tokens takes n / `positions_per_page` of them, rounded up, and at most a few more for
    /// sliding layers.
    pub pages_total: usize,
    pub pages_free: usize,
    pub positions_per_page: usize,
    /// Tokens that [`Engine::truncate`] and [`Engine::fork`] can always go back by, counted from the longest that the sequence, or the
    /// one that it was forked from, has been. Further back, sliding layers may have let go of positions that a next token would see.
    pub rewind: usize,
}

impl Capacity {
    /// Of an engine that computes a step when it is submitted and allocates as it goes.
    pub const UNBOUNDED: Capacity = Capacity {
        tokens_per_step: usize::MAX,
        steps_in_flight: 1,
        pages_total: usize::MAX,
        pages_free: usize::MAX,
        positions_per_page: 1,
        rewind: 0,
    };
}

/// Why an engine refused. Its sequences are then as they were before the call.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "the cache is full: {needed} pages are needed and {free} are free; finish or release sequences, or give the cache more memory"
    )]
    Full { needed: usize, free: usize },
    #[error("the device was lost ({0}): its driver was reset, or it is gone; start again to load the model anew")]
    Lost(String),
    #[error("{0}")]
    Unsupported(String),
    #[error(transparent)]
    BadRequest(#[from] BadRequest),
    #[error(
        "the logits after {position} tokens are NaN; the weights may be damaged: `gptoss inspect --check` names the tensor"
    )]
    NotANumber { position: usize },
    /// The device failed; the sentence says which limit was met and what helps.
    #[error("{0}")]
    Device(String),
}

/// A call that makes no sense. The caller is at fault.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum BadRequest {
    #[error("a step without work")]
    NoWork,
    #[error("sequence {0} is fed no tokens")]
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
    #[error("sequence {0} has drawn no token that it could be fed")]
    NothingDrawn(SequenceId),
    #[error("a step of {tokens} tokens; this engine takes at most {most}")]
    StepTooLong { tokens: usize, most: usize },
    #[error("{0} steps are in flight already; collect one first")]
    TooManySteps(usize),
    #[error("step {0:?} is not in flight")]
    UnknownTicket(Ticket),
    #[error("sequence {sequence} has {length} tokens and cannot go back to {wanted}")]
    CannotGoBack { sequence: SequenceId, length: usize, wanted: usize },
    #[error("a mask of {words} words; {vocab} tokens take {expected}")]
    MaskLength { words: usize, vocab: usize, expected: usize },
    #[error("the mask of sequence {0} allows no token")]
    NothingAllowed(SequenceId),
    #[error("{0} log probabilities are wanted; at most {most} are given", most = crate::draw::MAX_LOGPROBS)]
    TooManyLogprobs(usize),
    #[error("a sequence saved by {found} cannot be restored by {expected}")]
    OtherEngine { found: String, expected: &'static str },
    #[error("the saved sequence does not fit this model's cache: {0}")]
    WrongSnapshot(String),
}

/// Something that turns tokens into logits and logits into tokens: phase 2 by recomputing, phase 3 from a cache, phase 5 with fused
/// kernels.
pub trait Engine: Send {
    fn config(&self) -> &GptOssConfig;

    fn capacity(&self) -> Capacity;

    /// Tokens of a sequence, those of submitted steps among them; 0 if it is unknown.
    fn length(&self, sequence: SequenceId) -> usize;

    /// Begins a step. Room for all of it is made first, or for nothing.
    ///
    /// # Errors
    /// A step that cannot be computed; nothing has changed then.
    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError>;

    /// Waits for a step and returns an outcome for each of its items, in their order. Steps are collected in the order in which they
    /// were submitted.
    ///
    /// # Errors
    /// A device that failed. What its sequences hold is then unknown.
    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError>;

    /// Makes `to`, which must be unknown, a copy of the first `length` tokens of `from`. Pages are shared; only a partial last page
    /// is copied.
    ///
    /// # Errors
    /// A length that `from` does not have or that is further back than [`Capacity::rewind`] allows, or a full cache.
    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), EngineError>;

    /// Forgets all but the first `length` tokens of a sequence. Steps in flight must not feed it.
    ///
    /// # Errors
    /// As [`Engine::fork`].
    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError>;

    /// Forgets a sequence and frees what it holds. Unknown sequences are ignored. Outcomes of steps in flight are still collected.
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
    /// As [`Engine::step`], and logits that are NaN.
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

    /// Saves and restores sequences, if the engine can.
    fn snapshots(&mut self) -> Option<&mut dyn Snapshots> {
        None
    }
}

/// An engine that shows what it computes on the way.
pub trait Inspect: Engine {
    /// Computes a step at once and shows its intermediate results and its operations as they end.
    ///
    /// # Errors
    /// As [`Engine::step`].
    fn inspect(&mut self, work: &[Work<'_>], probe: &mut dyn Probe) -> Result<Vec<Outcome>, EngineError>;
}

/// What an engine remembers of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The kind of engine that wrote it: no other reads its items.
    pub engine: String,
    /// Tokens of the sequence.
    pub length: usize,
    /// In an order and format that only this kind of engine knows.
    pub items: Vec<Bytes>,
}

impl Snapshot {
    /// What a cache checks before it takes a snapshot: the engine, a length that the context holds, and the bytes of each item.
    ///
    /// # Errors
    /// The first that differs.
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
            let sentence = format!("{} tokens, where the context holds 1 to {context}", self.length);
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

/// Saves sequences as bytes, and restores them.
pub trait Snapshots {
    /// The kind of engine that its snapshots name: [`Snapshot::engine`].
    fn kind(&self) -> &'static str;

    /// # Errors
    /// An unknown sequence, or a device that was lost.
    fn save(&mut self, sequence: SequenceId) -> Result<Snapshot, EngineError>;

    /// Replaces `sequence` by a snapshot that this kind of engine made with this model and settings.
    ///
    /// # Errors
    /// A snapshot of another shape or engine, or a full cache; nothing has changed then.
    fn restore(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError>;
}
