//! Decides when generation ends, and which of its text may be shown meanwhile.

use phase1_loading::StopStrings;
use thiserror::Error;

/// Why generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose a stop token.
    Stop,
    /// The text reached this stop string.
    StopString(String),
    /// The token budget or the context is used up.
    Length,
    /// The caller asked to stop.
    Interrupted,
}

/// An empty stop string would match before any text.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("stop string {index} is empty, but must hold at least one character")]
pub struct EmptyStopString {
    /// Its place in the list of stop strings.
    pub index: usize,
}

/// Watches one generated sequence for its stop tokens and [`StopStrings`].
#[derive(Clone, Debug)]
pub struct StopCondition {
    stop_tokens: Vec<u32>,
    stop_strings: StopStrings,
}

impl StopCondition {
    /// Watches for any of `stop_tokens` and `stop_strings`; either may be empty.
    ///
    /// # Errors
    /// A stop string that is empty.
    pub fn new(stop_tokens: Vec<u32>, stop_strings: Vec<String>) -> Result<Self, EmptyStopString> {
        if let Some(index) = stop_strings.iter().position(String::is_empty) {
            return Err(EmptyStopString { index });
        }
        Ok(Self { stop_tokens, stop_strings: StopStrings::new(stop_strings) })
    }

    /// Takes the next token with the text that it added, which may be empty while a character is incomplete. Returns the text that may
    /// now be shown, and the reason if generation ends here. Stop tokens and stop strings are never shown, nor is anything after them.
    pub fn push(&mut self, token: u32, piece: &str) -> (String, Option<FinishReason>) {
        if self.stop_tokens.contains(&token) {
            return (self.stop_strings.finish(), Some(FinishReason::Stop));
        }
        let (shown, stop) = self.stop_strings.push(piece);
        (shown, stop.map(FinishReason::StopString))
    }

    /// Releases the held text when generation ends for a reason that `push` did not give.
    pub fn finish(&mut self) -> String {
        self.stop_strings.finish()
    }
}
