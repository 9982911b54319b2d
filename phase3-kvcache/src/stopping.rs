//! Decides when generation ends, and which of its text may be shown meanwhile.

use std::mem::take;

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

/// Watches one generated sequence for its stop tokens and stop strings.
///
/// Text that may be the beginning of a stop string is held back until more text decides.
/// The first stop string to be complete wins, and among those that complete at the same
/// character the longest: the outcome never depends on how the text was cut into pieces.
#[derive(Clone, Debug)]
pub struct StopCondition {
    stop_tokens: Vec<u32>,
    stop_strings: Vec<String>,
    /// Held text: the longest end of the text so far that begins a stop string.
    held: String,
}

impl StopCondition {
    /// Watches for any of `stop_tokens` and `stop_strings`; either may be empty.
    pub fn new(stop_tokens: Vec<u32>, stop_strings: Vec<String>) -> Result<Self, EmptyStopString> {
        if let Some(index) = stop_strings.iter().position(String::is_empty) {
            return Err(EmptyStopString { index });
        }
        Ok(Self { stop_tokens, stop_strings, held: String::new() })
    }

    /// Takes the next token with the text that it added, which may be empty while a
    /// character is incomplete. Returns the text that may now be shown, and the reason if
    /// generation ends here. Stop tokens and stop strings are never shown, nor is anything
    /// after them.
    pub fn push(&mut self, token: u32, piece: &str) -> (String, Option<FinishReason>) {
        if self.stop_tokens.contains(&token) {
            return (take(&mut self.held), Some(FinishReason::Stop));
        }
        self.held.push_str(piece);

        let complete = self.stop_strings.iter().filter_map(|stop| {
            let start = self.held.find(stop)?;
            Some((start + stop.len(), start, stop))
        });
        if let Some((_, start, stop)) = complete.min() {
            let reason = FinishReason::StopString(stop.clone());
            let mut shown = take(&mut self.held);
            shown.truncate(start);
            return (shown, Some(reason));
        }

        let undecided = self.stop_strings.iter().flat_map(|stop| {
            let proper_prefixes = stop.char_indices().map(|(end, _)| &stop[..end]);
            proper_prefixes.filter(|prefix| self.held.ends_with(prefix)).map(str::len)
        });
        let safe = self.held.len() - undecided.max().unwrap_or(0);
        (self.held.drain(..safe).collect(), None)
    }

    /// Releases the held text when generation ends for a reason that `push` did not give.
    pub fn finish(&mut self) -> String {
        take(&mut self.held)
    }
}
