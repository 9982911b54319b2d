//! A client's request, and the events that it receives.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use phase2_forward::{BadRequest, Logprobs, MAX_LOGPROBS};
use phase3_kvcache::SamplingParams;

/// A text to be generated.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<u32>,
    pub sampling: SamplingParams,
    /// Tokens that are generated at most.
    pub max_tokens: usize,
    /// Tokens that end the text.
    pub stop_tokens: Vec<u32>,
    /// How many of the most likely tokens are reported with each token; `None` reports no log probabilities.
    pub logprobs: Option<usize>,
    /// When the text ends, however far it is.
    pub deadline: Option<Instant>,
    /// Whose request it is. Clients take turns.
    pub client: String,
    /// Limits which tokens may be drawn; `None` allows all.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// Decides, token by token, what may be drawn next. As each mask depends on the token before it, a request with a constraint has one
/// step in flight at most.
pub trait Constraint: Debug + Send {
    /// The mask of the next draw, as [`Draw::allowed`](phase2_forward::Draw) has it: `ceil(vocab / 32)` words with at least one bit.
    fn allowed(&self) -> Option<&[u32]>;

    /// Takes the token that was drawn. Not called with the last token of a text.
    ///
    /// # Errors
    /// Why no further token can be drawn. The request fails with it.
    fn push(&mut self, token: u32) -> Result<(), String>;

    fn boxed_clone(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Box<dyn Constraint> {
        (**self).boxed_clone()
    }
}

/// What becomes of a request, in this order: started, tokens, finished.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It runs. So many tokens of its prompt did not have to be computed.
    Started {
        cached_tokens: usize,
    },
    Token {
        id: u32,
        logprobs: Option<Logprobs>,
    },
    /// The last event.
    Finished(Finish),
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// One of the stop tokens was drawn; it has been given out as a token.
    Stop(u32),
    /// The most tokens, or the context, are used up.
    Length,
    Deadline,
    /// The engine failed, its logits for this request are NaN, or its constraint allows no further token.
    Failed(String),
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("too many requests are waiting; try again in {} s", retry_after.as_secs())]
    QueueFull { retry_after: Duration },
    #[error("the prompt has {prompt} tokens; the context holds {context}")]
    PromptTooLong { prompt: usize, context: usize },
    #[error("the prompt is empty; a model needs at least one token to continue")]
    EmptyPrompt,
    /// No new work is taken: the server shuts down, or its engine has failed.
    #[error("no new requests are taken")]
    Draining,
    #[error("{0}")]
    Invalid(String),
}

impl Request {
    /// Whether an engine with this vocabulary and context can fulfil it.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn check(&self, vocab: usize, context: usize) -> Result<(), Refused> {
        let prompt = self.prompt.len();
        if prompt == 0 {
            return Err(Refused::EmptyPrompt);
        }
        if prompt > context {
            return Err(Refused::PromptTooLong { prompt, context });
        }
        if let Some(&token) = self.prompt.iter().find(|&&token| token as usize >= vocab) {
            return Err(Refused::Invalid(BadRequest::TokenOutsideVocabulary { token, vocab }.to_string()));
        }
        if let Some(count) = self.logprobs.filter(|&count| count > MAX_LOGPROBS) {
            return Err(Refused::Invalid(BadRequest::TooManyLogprobs(count).to_string()));
        }
        self.sampling.validate(vocab).map_err(|error| Refused::Invalid(error.to_string()))
    }
}
