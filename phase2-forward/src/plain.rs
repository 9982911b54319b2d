//! Code shared by the engines that compute a step when it is submitted.

use std::collections::VecDeque;

use burn::tensor::Tensor;

use crate::draw::HostDraw;
use crate::engine::{BadRequest, EngineError, Input, Outcome, SequenceId, Ticket, Want, Work};

/// Outcomes that have not been collected yet.
#[derive(Debug, Default)]
pub struct PlainSteps {
    next: u64,
    done: VecDeque<(Ticket, Vec<Outcome>)>,
}

impl PlainSteps {
    /// # Errors
    /// A step has not been collected yet: these engines allow one step in flight.
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
    /// The ticket is not that of the oldest step in flight.
    pub fn take(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, BadRequest> {
        match self.done.pop_front_if(|(oldest, _)| *oldest == ticket) {
            Some((_, outcomes)) => Ok(outcomes),
            None => Err(BadRequest::UnknownTicket(ticket)),
        }
    }
}

/// The tokens that each item feeds. `drawn` gives the token that a sequence drew last.
///
/// # Errors
/// An item feeds the drawn token of a sequence that has not drawn one.
pub fn tokens_of(work: &[Work<'_>], drawn: impl Fn(SequenceId) -> Option<u32>) -> Result<Vec<Vec<u32>>, BadRequest> {
    let of_item = |item: &Work<'_>| match item.input {
        Input::Tokens(tokens) => Ok(tokens.to_vec()),
        Input::Drawn => Ok(vec![drawn(item.sequence).ok_or(BadRequest::NothingDrawn(item.sequence))?]),
    };
    work.iter().map(of_item).collect()
}

/// The outcome of an item, from the logits of the rows that it requested. Its sequence now has `length` tokens.
pub fn outcome_of(want: &Want<'_>, mut logits: Vec<f32>, length: usize, host: &mut HostDraw) -> Outcome {
    let nan = Outcome::NotANumber { position: length };
    match want {
        Want::Nothing => Outcome::Fed,
        Want::LastLogits | Want::AllLogits if logits.iter().any(|logit| logit.is_nan()) => nan,
        Want::LastLogits | Want::AllLogits => Outcome::Logits(logits),
        Want::Token(draw) => host.draw(&mut logits, length, draw).map_or(nan, Outcome::Token),
    }
}

/// Waits for the device and copies logits to the host, in row-major order; empty for `None`.
///
/// # Errors
/// The device failed.
pub fn read_back(logits: Option<Tensor<2>>) -> Result<Vec<f32>, EngineError> {
    let Some(logits) = logits else { return Ok(Vec::new()) };
    let failed = |error: String| EngineError::Device(format!("the logits could not be read back: {error}"));
    let data = logits.try_into_data().map_err(|error| failed(error.to_string()))?;
    data.try_to_vec().map_err(|error| failed(format!("{error:?}")))
}

/// Checks whether a sequence of `length` tokens can be shortened to its first `wanted` tokens. `reaches` says whether the engine still has
/// what it needs to continue from there; it is called only if needed.
///
/// # Errors
/// The sequence is unknown (no `length`), `wanted` is 0 or more than `length`, or the engine cannot go back that far.
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
