//! The state of a request: its tokens, how many of them the engine was fed, and how many were drawn in steps that are still in flight.

use std::collections::VecDeque;
use std::time::Instant;

use phase2_forward::{Draw, Input, SequenceId, Want, Work};
use phase3_kvcache::{Sampler, SamplingError};

use crate::prefix::Hit;
use crate::request::{Constraint, Finish, Request};

/// Identifies a request; increases with the order of arrival.
pub type RequestId = u64;

/// The state of one request.
///
/// At first, steps feed the tokens that the engine does not have: of the prompt and, after a preemption, also of the generated text. The
/// step that feeds the last of them draws a token. Each later step feeds the token drawn before. Such a step may be submitted before that
/// token is known: `drawing` counts tokens that are drawn but not yet known.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: RequestId,
    /// Its sequence number in the engine; a new one each time it is admitted.
    pub in_engine: SequenceId,
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    max_tokens: usize,
    stop_tokens: Vec<u32>,
    logprobs: Option<usize>,
    pub deadline: Option<Instant>,
    /// The prompt and the generated tokens.
    pub tokens: Vec<u32>,
    pub prompt: usize,
    /// Number of tokens that the engine has been fed, including steps in flight.
    pub fed: usize,
    /// The part of `fed` that came from a fork.
    pub cached: usize,
    /// Number of steps in flight that feed this sequence, and of those that also draw a token for it.
    pub in_flight: usize,
    drawing: usize,
    /// Whether the last submitted step draws a token, which the next step can feed.
    drawn: bool,
    /// Lengths at which the prefix cache gets a fork, the next one first, and the forks that were made.
    pub anchors: VecDeque<usize>,
    pub made: Vec<SequenceId>,
    /// The cached entry that this sequence was forked from, until this sequence has added an entry itself.
    pub begun: Option<Hit>,
    /// Whether the disk was searched for a file to start from. It is searched only once.
    pub was_sought: bool,
    pub arrived: Instant,
    pub started: bool,
    pub last_token: Option<Instant>,
}

impl Sequence {
    pub fn new(id: RequestId, request: Request, vocab: usize, arrived: Instant) -> Result<Sequence, SamplingError> {
        let Request { prompt, sampling, max_tokens, stop_tokens, logprobs, deadline, client: _, constraint } = request;
        let mut sampler = Sampler::new(sampling, vocab)?;
        sampler.observe_prompt(&prompt);
        Ok(Sequence {
            id,
            in_engine: 0,
            sampler,
            constraint,
            max_tokens,
            stop_tokens,
            logprobs,
            deadline,
            prompt: prompt.len(),
            tokens: prompt,
            fed: 0,
            cached: 0,
            in_flight: 0,
            drawing: 0,
            drawn: false,
            anchors: VecDeque::new(),
            made: Vec::new(),
            begun: None,
            was_sought: false,
            arrived,
            started: false,
            last_token: None,
        })
    }

    /// Starts it in the engine as `in_engine`, whose first `cached` tokens are cached.
    pub fn enter(&mut self, in_engine: SequenceId, cached: usize) {
        (self.in_engine, self.fed, self.cached, self.drawn) = (in_engine, cached, cached, false);
    }

    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Number of tokens that it can be fed now. A drawn token that is not known yet is fed only if the next draw needs no knowledge of it.
    pub fn due(&self, context: usize) -> usize {
        let drawn = self.generated() + self.drawing;
        match self.drawing {
            0 => self.tokens.len() - self.fed,
            _ if self.needs_last_token() || drawn >= self.max_tokens || self.fed >= context => 0,
            _ => 1,
        }
    }

    /// Whether a draw depends on the token before it.
    fn needs_last_token(&self) -> bool {
        self.sampler.depends_on_tokens() || self.constraint.is_some()
    }

    /// Whether its next step feeds a single token and draws the next one.
    pub fn is_decoding(&self) -> bool {
        self.drawing > 0 || self.fed + 1 == self.tokens.len()
    }

    /// Number of tokens up to the next anchor.
    pub fn tokens_to_anchor(&self) -> usize {
        self.anchors.front().map_or(usize::MAX, |anchor| anchor - self.fed)
    }

    /// Adds an anchor at a length that is not reached yet.
    pub fn add_anchor(&mut self, length: usize) {
        let place = self.anchors.partition_point(|&anchor| anchor < length);
        if self.anchors.get(place) != Some(&length) {
            self.anchors.insert(place, length);
        }
    }

    /// The work item that feeds `count` of the due tokens.
    pub fn work(&mut self, count: usize) -> Work<'_> {
        let draws = self.draws_with(count);
        let input = match self.drawing > 0 || self.drawn && count == 1 {
            true => Input::Drawn,
            false => Input::Tokens(&self.tokens[self.fed..self.fed + count]),
        };
        let allowed = self.constraint.as_deref().and_then(|constraint| constraint.allowed());
        let want = match draws {
            true => Want::Token(Draw { logprobs: self.logprobs, allowed, ..self.sampler.next_draw() }),
            false => Want::Nothing,
        };
        Work { sequence: self.in_engine, input, want }
    }

    /// Records that [`Sequence::work`] was submitted; returns whether it draws.
    pub fn submitted(&mut self, count: usize) -> bool {
        self.drawn = self.draws_with(count);
        self.drawing += usize::from(self.drawn);
        self.fed += count;
        self.in_flight += 1;
        self.drawn
    }

    fn draws_with(&self, count: usize) -> bool {
        self.drawing > 0 || self.fed + count == self.tokens.len()
    }

    /// Records that a step was collected.
    pub fn collected(&mut self, drew: bool) {
        self.in_flight -= 1;
        self.drawing -= usize::from(drew);
    }

    /// Adds the next token of the text; returns the reason if the text ends with it.
    pub fn accept(&mut self, token: u32, context: usize) -> Option<Finish> {
        self.sampler.accept(token);
        self.tokens.push(token);
        if self.stop_tokens.contains(&token) {
            return Some(Finish::Stop(token));
        }
        // A token beyond the context cannot be fed, so that no token follows it.
        if self.generated() >= self.max_tokens || self.tokens.len() > context {
            return Some(Finish::Length);
        }
        let pushed = self.constraint.as_mut().map(|constraint| constraint.push(token));
        pushed.and_then(Result::err).map(Finish::Failed)
    }
}
