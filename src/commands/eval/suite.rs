//! The held-out questions, and the check of answers.

use harmony::Message;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::answer::Turn;

/// One question.
#[derive(Deserialize)]
pub struct Question {
    pub suite: String,
    /// A rendered conversation up to the point where the assistant continues.
    pub prompt: String,
    pub expected: Expected,
    /// For stories: the text whose perplexity is measured.
    pub completion: Option<String>,
}

/// What a right answer contains.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    /// The last number of the answer.
    Number { number: i64 },
    /// A function's name and arguments.
    Call { name: String, arguments: Map<String, Value> },
    /// Words of the answer.
    Contains { contains: String },
    /// The whole answer.
    Text { text: String },
}

/// All questions, suite by suite.
pub fn held_out() -> Vec<Question> {
    let json = include_str!("../../../reference/tiny/heldout.json");
    serde_json::from_str(json).expect("the file inside this program is well-formed")
}

impl Expected {
    pub fn met_by(&self, turn: &Turn) -> bool {
        match self {
            Expected::Number { number } => last_number(&turn.content()) == Some(*number),
            Expected::Contains { contains } => contains_words(&turn.content(), contains),
            Expected::Text { text } => turn.content() == *text,
            Expected::Call { name, arguments: wanted } => {
                let is_wanted =
                    |call: &Message| call.function() == Some(name.as_str()) && arguments(call).as_ref() == Some(wanted);
                turn.call().is_some_and(is_wanted)
            }
        }
    }
}

/// The arguments of a call; `None` if they are not a JSON object.
pub fn arguments(call: &Message) -> Option<Map<String, Value>> {
    serde_json::from_str(&call.content).ok()
}

fn last_number(text: &str) -> Option<i64> {
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let digits = text[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    let start = if text[..digits].ends_with('-') { digits - 1 } else { digits };
    text[start..end].parse().ok()
}

/// Whether `text` contains `words` as whole words, not adjacent to letters or digits.
fn contains_words(text: &str, words: &str) -> bool {
    text.match_indices(words).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        let after = text[start + words.len()..].chars().next();
        ![before, after].into_iter().flatten().any(char::is_alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_found() {
        for (text, number) in [
            ("47 + 38 = 85.", Some(85)),
            ("3 - 10 = -7", Some(-7)),
            ("85", Some(85)),
            ("– 12 €", Some(12)),
            ("none", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(last_number(text), number, "{text}");
        }
    }

    #[test]
    fn words_stand_alone() {
        assert!(contains_words("Your cat is Hana.", "Hana"));
        assert!(!contains_words("Your cat is Hanah.", "Hana"));
        assert!(contains_words("Hanah and Hana", "Hana"));
        assert!(!contains_words("1850", "85"));
        // Letters of every script count.
        assert!(!contains_words("é85", "85") && !contains_words("e85", "85"));
    }

    #[test]
    fn every_suite_has_enough_questions() {
        let questions = held_out();
        let recall = ["recall_near", "recall_far", "recall_changed", "recall_unknown"];
        let others = ["arithmetic", "arithmetic_low", "tools", "tools_result", "stories", "project"];
        for suite in recall.into_iter().chain(others) {
            assert!(questions.iter().filter(|question| question.suite == suite).count() >= 200, "{suite}");
        }
        let shown = |question: &Question| question.prompt.contains("What is 47 + 38?");
        assert!(questions.iter().any(shown));
    }
}
