//! A request for generated text, and the events that its client receives.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use phase2_forward::{BadRequest, Logprobs, MAX_LOGPROBS};
use phase3_kvcache::SamplingParams;

/// A request to generate a text.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<u32>,
    pub sampling: SamplingParams,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end the text.
    pub stop_tokens: Vec<u32>,
    /// Number of most likely tokens reported with each token; `None` reports no log probabilities.
    pub logprobs: Option<usize>,
    /// The latest time at which the text ends.
    pub deadline: Option<Instant>,
    /// The client's name. Waiting requests of different clients are started in turn.
    pub client: String,
    /// Restricts which tokens may be drawn; `None` allows all.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// Decides before each token which tokens are allowed. Each mask depends on the token before it, so that a request with a constraint has at
/// most one step in flight.
pub trait Constraint: Debug + Send {
    /// The mask of the next draw, in the format of [`Draw::allowed`](phase2_forward::Draw): `ceil(vocab / 32)` words with at least one bit
    /// set. `None` allows all tokens.
    fn allowed(&self) -> Option<&[u32]>;

    /// Adds a drawn token. Not called for the last token of a text.
    ///
    /// # Errors
    /// Why no further token can be drawn. The request then fails.
    fn push(&mut self, token: u32) -> Result<(), String>;

    fn boxed_clone(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Box<dyn Constraint> {
        (**self).boxed_clone()
    }
}

/// The events of a request, in this order: started, tokens, finished. A request that ends before it starts has only the last one.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The request is running; `cached_tokens` tokens of its prompt did not have to be computed.
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
    /// A stop token was drawn; it was also reported as a token.
    Stop(u32),
    /// The token limit, or the context, is exhausted.
    Length,
    Deadline,
    /// The engine failed or has no room for the request, the request's logits are NaN, or its constraint allows no further token.
    Failed(String),
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("too many requests are waiting; try again in {} s", retry_after.as_secs())]
    QueueFull { retry_after: Duration },
    #[error("the prompt has {prompt} tokens; the context holds {context}")]
    PromptTooLong { prompt: usize, context: usize },
    #[error("the prompt is empty; a model needs at least one token to continue")]
    EmptyPrompt,
    /// No new work is accepted: the server is shutting down, or its engine has failed.
    #[error("no new requests are taken")]
    Draining,
    #[error("{0}")]
    Invalid(String),
}

impl Request {
    /// Checks whether an engine with this vocabulary and context can fulfil the request.
    ///
    /// # Errors
    /// The first problem of the request.
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
