//! Decides when generation ends, and which part of its text can be shown so far.

use phase1_loading::StopStrings;
use thiserror::Error;

/// Why generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose a stop token.
    Stop,
    /// The text reached this stop string.
    StopString(String),
    /// The maximum number of tokens or the context length is reached.
    Length,
    /// The caller asked to stop.
    Interrupted,
}

/// A stop string is empty, so it would match before any text.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("stop string {index} is empty, but must hold at least one character")]
pub struct EmptyStopString {
    /// Its index in the list of stop strings.
    pub index: usize,
}

/// Checks a generated sequence for stop tokens and [`StopStrings`].
#[derive(Clone, Debug)]
pub struct StopCondition {
    stop_tokens: Vec<u32>,
    stop_strings: StopStrings,
}

impl StopCondition {
    /// A condition with `stop_tokens` and `stop_strings`; either may be empty.
    ///
    /// # Errors
    /// A stop string is empty.
    pub fn new(stop_tokens: Vec<u32>, stop_strings: Vec<String>) -> Result<Self, EmptyStopString> {
        if let Some(index) = stop_strings.iter().position(String::is_empty) {
            return Err(EmptyStopString { index });
        }
        Ok(Self { stop_tokens, stop_strings: StopStrings::new(stop_strings) })
    }

    /// Adds the next token and its text, which may be empty while a character is incomplete. Returns the text that can now be shown, and
    /// the reason if generation ends here. Stop tokens, stop strings and everything after them are never shown.
    pub fn push(&mut self, token: u32, piece: &str) -> (String, Option<FinishReason>) {
        if self.stop_tokens.contains(&token) {
            return (self.stop_strings.finish(), Some(FinishReason::Stop));
        }
        let (shown, stop) = self.stop_strings.push(piece);
        (shown, stop.map(FinishReason::StopString))
    }

    /// Returns the held-back text. To be called when generation ends without a reason from `push`.
    pub fn finish(&mut self) -> String {
        self.stop_strings.finish()
    }
}
