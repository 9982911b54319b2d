//! The control tokens that structure a conversation, and a tokenizer that has them.

use phase1_loading::Tokenizer;

/// The vocabulary lacks a control token of harmony.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the vocabulary lacks the control token {name} of harmony")]
pub struct MissingControlToken {
    pub name: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Begins a message; the role follows.
    Start,
    /// In a header; the channel follows.
    Channel,
    /// In a header; the content type follows.
    Constrain,
    /// Ends a header; the content follows.
    Message,
    /// Ends a message.
    End,
    /// Ends a message and the turn.
    Return,
    /// Ends a call and the turn.
    Call,
}

impl Control {
    const ALL: [Control; 7] = [
        Control::Start,
        Control::Channel,
        Control::Constrain,
        Control::Message,
        Control::End,
        Control::Return,
        Control::Call,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Control::Start => "<|start|>",
            Control::Channel => "<|channel|>",
            Control::Constrain => "<|constrain|>",
            Control::Message => "<|message|>",
            Control::End => "<|end|>",
            Control::Return => "<|return|>",
            Control::Call => "<|call|>",
        }
    }
}

/// The ids of the control tokens in a vocabulary.
#[derive(Clone, Copy)]
pub(crate) struct ControlTokens([u32; Control::ALL.len()]);

impl ControlTokens {
    pub fn new(tokenizer: &Tokenizer) -> Result<ControlTokens, MissingControlToken> {
        let mut ids = [0; Control::ALL.len()];
        for control in Control::ALL {
            let name = control.name();
            ids[control as usize] = tokenizer.control(name).ok_or(MissingControlToken { name })?;
        }
        Ok(ControlTokens(ids))
    }

    pub fn id(&self, control: Control) -> u32 {
        self.0[control as usize]
    }

    pub fn find(&self, token: u32) -> Option<Control> {
        Control::ALL.into_iter().find(|&control| self.id(control) == token)
    }
}

/// A tokenizer with harmony's control tokens.
#[derive(Clone, Copy)]
pub struct Harmony<'a> {
    tokenizer: &'a Tokenizer,
    pub(crate) control: ControlTokens,
}

impl<'a> Harmony<'a> {
    /// # Errors
    /// The vocabulary lacks a control token of harmony.
    pub fn new(tokenizer: &'a Tokenizer) -> Result<Harmony<'a>, MissingControlToken> {
        Ok(Harmony { tokenizer, control: ControlTokens::new(tokenizer)? })
    }

    pub fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// Tokens that end the assistant's turn: `<|return|>` and `<|call|>`.
    pub fn stops(&self) -> [u32; 2] {
        [Control::Return, Control::Call].map(|control| self.control.id(control))
    }
}
