//! Stop strings, at which a generated text ends.

use std::mem::take;

/// Searches for stop strings in a text that arrives in pieces. Text that may begin a stop string is held back until later text shows
/// whether it does.
///
/// The first string to be complete ends the text; of several that complete at the same character, the longest. The result does not depend
/// on how the text was cut into pieces.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    /// The longest suffix of the text so far that begins a stop string.
    held: String,
}

impl StopStrings {
    /// Ignores empty strings, which would match before any text.
    pub fn new(strings: Vec<String>) -> StopStrings {
        StopStrings { strings: strings.into_iter().filter(|string| !string.is_empty()).collect(), held: String::new() }
    }

    /// Adds a piece of text. Returns the text that can be shown now, and the stop string that ended the text, if any. Neither that string
    /// nor what follows it is shown.
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

    /// Returns the text that was held back, when no more text follows.
    pub fn finish(&mut self) -> String {
        take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text ends at the same place however it is cut into pieces.
    #[test]
    fn stop_position_does_not_depend_on_pieces() {
        let text = "One, two; three and thrice: end of é story";
        let lists: [&[&str]; 7] = [&[], &[""], &["three"], &["thr", "three"], &[": e", "thrice"], &["é"], &["missing"]];
        let accented = text.split_once('é').expect("the text has an é").0;
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
