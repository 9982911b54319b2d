//! What the user reads, and the stop strings that end it.

use std::mem::take;

use crate::header::Header;
use crate::message::{Message, Role};

impl Header {
    /// Whether the user reads such a message: the assistant's final answers and preambles, but neither what it thinks nor its calls.
    pub fn is_visible(&self) -> bool {
        is_visible(self.role, self.recipient.as_deref(), self.channel.as_deref())
    }
}

impl Message {
    /// As [`Header::is_visible`].
    pub fn is_visible(&self) -> bool {
        is_visible(self.role, self.recipient.as_deref(), self.channel.as_deref())
    }
}

fn is_visible(role: Role, recipient: Option<&str>, channel: Option<&str>) -> bool {
    role == Role::Assistant && recipient.is_none() && channel != Some("analysis")
}

/// Looks for stop strings in the text of one message. Text that may begin one is held back until more text decides.
#[derive(Default)]
pub(crate) struct StopStrings {
    strings: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Empty strings, which would match before any text, are left out.
    pub fn new(strings: Vec<String>) -> StopStrings {
        StopStrings { strings: strings.into_iter().filter(|string| !string.is_empty()).collect(), held: String::new() }
    }

    /// The text that may be shown now, and the stop string that ends it: the first to be complete, of several the longest.
    pub fn push(&mut self, text: &str) -> (String, Option<String>) {
        self.held.push_str(text);
        let complete = self.strings.iter().filter_map(|string| {
            let start = self.held.find(string)?;
            Some((start + string.len(), start, string))
        });
        if let Some((_, start, string)) = complete.min() {
            let string = string.clone();
            let mut shown = take(&mut self.held);
            shown.truncate(start);
            return (shown, Some(string));
        }
        let begun = self.strings.iter().flat_map(|string| {
            let beginnings = string.char_indices().map(|(end, _)| &string[..end]);
            beginnings.filter(|beginning| self.held.ends_with(beginning)).map(str::len)
        });
        let sure = self.held.len() - begun.max().unwrap_or(0);
        (self.held.drain(..sure).collect(), None)
    }

    /// What is held back when the message ends.
    pub fn finish(&mut self) -> String {
        take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However a text is cut, it ends at the same place.
    #[test]
    fn pieces_change_nothing() {
        let text = "One, two; three and thrice: end of é story";
        let lists: [&[&str]; 7] = [&[], &[""], &["three"], &["thr", "three"], &[": e", "thrice"], &["é"], &["missing"]];
        let accented = text.split_once('é').expect("it is there").0;
        let expected = [text, text, "One, two; ", "One, two; ", "One, two; three and ", accented, text];
        for (strings, expected) in lists.iter().zip(expected) {
            let strings: Vec<String> = strings.iter().map(|&string| string.to_owned()).collect();
            for size in 1..8 {
                let mut stop = StopStrings::new(strings.clone());
                let characters: Vec<char> = text.chars().collect();
                let mut shown = String::new();
                let mut found = None;
                for piece in characters.chunks(size) {
                    let (text, end) = stop.push(&piece.iter().collect::<String>());
                    shown += &text;
                    found = end;
                    if found.is_some() {
                        break;
                    }
                }
                shown += &stop.finish();
                assert_eq!((shown.as_str(), found.is_some()), (expected, expected != text), "{strings:?} by {size}");
            }
        }
    }
}
