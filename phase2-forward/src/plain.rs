//! What engines share that compute a step when it is submitted.

use std::collections::VecDeque;

use burn::tensor::Tensor;

use crate::draw::HostDraw;
use crate::engine::{BadRequest, EngineError, Input, Outcome, SequenceId, Ticket, Want, Work};

/// Outcomes that are not collected yet.
#[derive(Debug, Default)]
pub struct PlainSteps {
    next: u64,
    done: VecDeque<(Ticket, Vec<Outcome>)>,
}

impl PlainSteps {
    /// # Errors
    /// A step that is not collected yet: these engines have one in flight.
    pub fn check_room(&self) -> Result<(), BadRequest> {
        match self.done.len() {
            0 => Ok(()),
            count => Err(BadRequest::TooManySteps(count)),
        }
    }

    pub fn push(&mut self, outcomes: Vec<Outcome>) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.done.push_back((ticket, outcomes));
        ticket
    }

    /// # Errors
    /// A ticket that is not the oldest in flight.
    pub fn take(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, BadRequest> {
        match self.done.pop_front_if(|(oldest, _)| *oldest == ticket) {
            Some((_, outcomes)) => Ok(outcomes),
            None => Err(BadRequest::UnknownTicket(ticket)),
        }
    }
}

/// The tokens that each item feeds, given the one that a sequence drew last.
///
/// # Errors
/// The first sequence that is fed the token it drew and has drawn none.
pub fn tokens_of(work: &[Work<'_>], drawn: impl Fn(SequenceId) -> Option<u32>) -> Result<Vec<Vec<u32>>, BadRequest> {
    let of_item = |item: &Work<'_>| match item.input {
        Input::Tokens(tokens) => Ok(tokens.to_vec()),
        Input::Drawn => Ok(vec![drawn(item.sequence).ok_or(BadRequest::NothingDrawn(item.sequence))?]),
    };
    work.iter().map(of_item).collect()
}

/// What becomes of an item whose sequence now has `length` tokens, from the logits of the rows that it wanted.
pub fn outcome_of(want: &Want<'_>, mut logits: Vec<f32>, length: usize, host: &mut HostDraw) -> Outcome {
    let nan = Outcome::NotANumber { position: length };
    match want {
        Want::Nothing => Outcome::Fed,
        Want::LastLogits | Want::AllLogits if logits.iter().any(|logit| logit.is_nan()) => nan,
        Want::LastLogits | Want::AllLogits => Outcome::Logits(logits),
        Want::Token(draw) => host.draw(&mut logits, length, draw).map_or(nan, Outcome::Token),
    }
}

/// Logits on the host, row by row. Waits for the device that computes them; none for `None`.
///
/// # Errors
/// A device that failed.
pub fn read_back(logits: Option<Tensor<2>>) -> Result<Vec<f32>, EngineError> {
    let Some(logits) = logits else { return Ok(Vec::new()) };
    let failed = |error: String| EngineError::Device(format!("the logits could not be read back: {error}"));
    let data = logits.try_into_data().map_err(|error| failed(error.to_string()))?;
    data.try_to_vec().map_err(|error| failed(format!("{error:?}")))
}

/// Whether a sequence can become its first `length` tokens.
///
/// # Errors
/// An unknown sequence, which has no `length`, or one that is too short or does not reach back.
pub fn check_rewind(
    sequence: SequenceId,
    length: Option<usize>,
    wanted: usize,
    reaches: impl FnOnce() -> bool,
) -> Result<(), BadRequest> {
    let length = length.ok_or(BadRequest::UnknownSequence(sequence))?;
    match wanted == length || (1..length).contains(&wanted) && reaches() {
        true => Ok(()),
        false => Err(BadRequest::CannotGoBack { sequence, length, wanted }),
    }
}
