//! The constraint of one turn: the current position in harmony's format, and the mask of the tokens that are allowed there.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;

use super::headers::{Body, Form};
use super::vocabulary::{Vocabulary, allow};
use crate::request::Constraint;

/// The constraint of one turn, beginning after `<|start|>assistant`.
pub(super) struct TurnConstraint {
    vocabulary: Arc<Vocabulary>,
    forms: Arc<[Form]>,
    /// Indexed by the numbers in `forms`. A body with a grammar ends the turn, so that each grammar is used at most once.
    grammars: Vec<Matcher>,
    state: State,
    allowed: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Between messages: the number of tokens of `<|start|>assistant` written so far.
    Start(usize),
    /// The tokens of a header so far.
    Header(Vec<u32>),
    Body(Body),
    /// The turn has ended; any token is allowed.
    Ended,
}

impl TurnConstraint {
    pub fn new(vocabulary: Arc<Vocabulary>, forms: Arc<[Form]>, grammars: Vec<Matcher>) -> Result<Self, String> {
        let allowed = vec![0; vocabulary.text.len()];
        let state = State::Header(Vec::new());
        let mut constraint = TurnConstraint { vocabulary, forms, grammars, state, allowed };
        constraint.renew_mask()?;
        Ok(constraint)
    }

    /// The state after a token.
    fn after(&mut self, token: u32) -> Result<State, String> {
        let unexpected = || Err(format!("token {token} was drawn where it is not allowed"));
        let generation_prompt = &self.vocabulary.generation_prompt;
        match &mut self.state {
            State::Start(written) if generation_prompt[*written] != token => unexpected(),
            State::Start(written) if *written + 1 < generation_prompt.len() => Ok(State::Start(*written + 1)),
            State::Start(_) => Ok(State::Header(Vec::new())),
            State::Header(written) => {
                written.push(token);
                let written = std::mem::take(written);
                match self.forms.iter().find(|form| form.tokens.starts_with(&written)) {
                    Some(form) if form.tokens.len() == written.len() => Ok(State::Body(form.body)),
                    Some(_) => Ok(State::Header(written)),
                    None => unexpected(),
                }
            }
            State::Body(body) if token == body.end => match token == self.vocabulary.control.end {
                true => Ok(State::Start(0)),
                false => Ok(State::Ended),
            },
            State::Body(body) => {
                if let Some(grammar) = body.grammar {
                    self.grammars[grammar].consume_token(token).map_err(|error| error.to_string())?;
                }
                Ok(State::Body(*body))
            }
            State::Ended => Ok(State::Ended),
        }
    }

    /// Computes the mask of the state.
    fn renew_mask(&mut self) -> Result<(), String> {
        let allowed = &mut self.allowed;
        match &self.state {
            State::Start(written) => {
                allowed.fill(0);
                allow(allowed, self.vocabulary.generation_prompt[*written]);
            }
            State::Header(written) => {
                allowed.fill(0);
                for form in self.forms.iter().filter(|form| form.tokens.starts_with(written)) {
                    allow(allowed, form.tokens[written.len()]);
                }
            }
            State::Body(Body { grammar: None, end }) => {
                allowed.copy_from_slice(&self.vocabulary.text);
                allow(allowed, *end);
            }
            State::Body(Body { grammar: Some(grammar), end }) => {
                let mask = self.grammars[*grammar].compute_mask_or_eos().map_err(|error| error.to_string())?;
                allowed.fill(0);
                // The matcher's mask has one bit more than this one, and so possibly one word more.
                for (word, found) in allowed.iter_mut().zip(mask.as_slice()) {
                    *word = *found;
                }
                let returns = self.vocabulary.control.returns;
                let (word, bit) = (returns as usize / 32, 1u32 << (returns % 32));
                let is_complete = allowed[word] & bit != 0;
                allowed[word] &= !bit;
                if is_complete {
                    allow(allowed, *end);
                }
            }
            State::Ended => {}
        }
        Ok(())
    }
}

impl Constraint for TurnConstraint {
    fn allowed(&self) -> Option<&[u32]> {
        (self.state != State::Ended).then_some(&self.allowed[..])
    }

    fn push(&mut self, token: u32) -> Result<(), String> {
        self.state = self.after(token)?;
        self.renew_mask()
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(TurnConstraint {
            vocabulary: self.vocabulary.clone(),
            forms: self.forms.clone(),
            grammars: self.grammars.iter().map(Matcher::deep_clone).collect(),
            state: self.state.clone(),
            allowed: self.allowed.clone(),
        })
    }
}

impl fmt::Debug for TurnConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TurnConstraint").field("state", &self.state).finish_non_exhaustive()
    }
}
