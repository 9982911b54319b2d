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

/// The requirement that a right answer meets.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    /// The last number in the answer.
    Number { number: i64 },
    /// The name and the arguments of the function that is called.
    Call { name: String, arguments: Map<String, Value> },
    /// Words that the answer contains.
    Contains { contains: String },
    /// The whole answer.
    Text { text: String },
    /// The answer contains exactly two of the words of each list.
    Two { two_of: Vec<Vec<String>> },
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
            Expected::Two { two_of } => {
                let content = turn.content();
                let count = |words: &[String]| words.iter().filter(|word| contains_words(&content, word)).count();
                two_of.iter().all(|words| count(words) == 2)
            }
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
    use std::path::Path;

    use harmony::Harmony;
    use serde_json::json;

    use super::*;
    use crate::embedded::EMBEDDED;
    use crate::model;

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
    fn only_whole_words_match() {
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
        let numbers = ["arithmetic", "arithmetic_low", "multiplication"];
        let tools = ["tools", "tools_result", "functions", "functions_result"];
        let others = ["stories", "characters", "project", "outside"];
        for suite in [&recall[..], &numbers, &tools, &others].concat() {
            assert!(questions.iter().filter(|question| question.suite == suite).count() >= 200, "{suite}");
        }
        for shown in ["What is 47 + 38?", "What is 12 × 12?", "What is the capital of France?"] {
            assert!(questions.iter().any(|question| question.prompt.contains(shown)), "{shown}");
        }
    }

    #[test]
    fn two_of_requires_two_different_characters() {
        let expected = json!({ "two_of": [["Pip", "Luna", "Kiki"], ["fox", "owl", "bear"]] });
        let expected: Expected = serde_json::from_value(expected).expect("two words of each list");
        let is_met = |text: &str| {
            let messages = vec![Message::assistant("final", text)];
            expected.met_by(&Turn { messages, warnings: Vec::new(), is_complete: true })
        };
        assert!(is_met("Pip the fox met Luna, an owl. Luna said hello to Pip."));
        assert!(!is_met("Kiki the fox met Kiki, an owl."));
        assert!(!is_met("Pip the fox met Luna, a fox."));
        assert!(!is_met("Pip the fox and Kiki met Luna, an owl."));
    }

    /// The prompts were rendered in Python, by `reference/tiny`, which also renders the training texts.
    #[test]
    fn prompts_are_what_harmony_renders() {
        let checkpoint = model::open(Path::new(EMBEDDED)).expect("the embedded model");
        let tokenizer = checkpoint.tokenizer().expect("its tokenizer");
        let harmony = Harmony::new(&tokenizer).expect("harmony's control tokens");
        for question in held_out().iter().step_by(7) {
            let prompt = tokenizer.encode_with_control(&question.prompt);
            let conversation =
                prompt.strip_suffix(&harmony.generation_prompt()[..]).expect("it ends where the assistant continues");
            let messages = harmony.parse_conversation(conversation).expect("a conversation");
            let rendered = harmony.render_prompt(&messages);
            assert_eq!(tokenizer.decode(&rendered), question.prompt);
            assert_eq!(rendered, prompt, "{}", question.prompt);
        }
    }
}
