//! Constrained output: turns whose answer, or whose arguments of calls, are JSON that matches a schema.
//!
//! [`Grammars::constraint`] creates a [`Constraint`] for one turn, which follows harmony token by token. Headers are limited to well-formed
//! ones that the rules allow. Reasoning and preambles may be any text. The body of an answer or of a call follows a grammar, which the
//! crate `llguidance` matches against all tokens at once, and may end only where the JSON is complete.
//!
//! A grammar does not limit the number of tokens: a text that reaches its token limit is cut off, and its JSON is then incomplete.

mod cache;
mod compile;
mod constraint;
mod error;
mod headers;
mod schema;
mod vocabulary;

use std::sync::{Arc, OnceLock};

use phase1_loading::Tokenizer;
use serde_json::{Value, json};

pub use error::GrammarError;

use crate::request::Constraint;
use cache::Cache;
use compile::compile_all;
use constraint::TurnConstraint;
use error::MAX_GRAMMARS;
use headers::forms;
use vocabulary::Vocabulary;

/// The allowed content of a body.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Text,
    Json {
        schema: Value,
        /// Whether any JSON object is accepted if the schema cannot be enforced.
        lenient: bool,
    },
}

impl Content {
    /// Any JSON object.
    pub fn object() -> Content {
        Content::Json { schema: json!({ "type": "object" }), lenient: false }
    }
}

/// What a turn may contain besides reasoning. With functions, it may contain text to the user before a call.
#[derive(Clone, Debug, PartialEq)]
pub struct TurnRules {
    /// The final answer; `None` if the turn must end with a call.
    pub answer: Option<Content>,
    /// Names of the functions that may be called, with their arguments.
    pub calls: Vec<(String, Content)>,
}

/// Creates constraints for one model.
///
/// Data that all constraints share is built from the tokenizer for the first one. For the 201,088 tokens of o200k_harmony this takes about
/// a second, and about 80 MiB for a dozen tries of tokens. Compiled grammars of recent schemas are cached.
#[derive(Default)]
pub struct Grammars {
    vocabulary: OnceLock<Result<Arc<Vocabulary>, String>>,
    cache: Cache,
}

impl Grammars {
    /// A constraint for a turn, beginning after `<|start|>assistant`. `vocab` is the number of logits; it and the tokenizer must be the
    /// same in every call. May take long: do not call it on a thread that serves other requests.
    ///
    /// # Errors
    /// A schema is too large, too deep, malformed, or cannot be enforced; there are too many schemas; or the vocabulary lacks harmony's
    /// tokens, has more tokens than `vocab`, or cannot be matched by grammars.
    pub fn constraint(
        &self,
        tokenizer: &Tokenizer,
        vocab: usize,
        rules: &TurnRules,
    ) -> Result<Box<dyn Constraint>, GrammarError> {
        let build = || Vocabulary::new(tokenizer, vocab).map(Arc::new);
        let vocabulary = self.vocabulary.get_or_init(build).clone().map_err(GrammarError::Vocabulary)?;

        let mut schemas = Vec::new();
        let mut number = |function: Option<&str>, content: &Content| match content {
            Content::Text => None,
            Content::Json { schema, lenient } => {
                schemas.push((function.map(str::to_owned), schema.clone(), *lenient));
                Some(schemas.len() - 1)
            }
        };
        let answer = rules.answer.as_ref().map(|content| number(None, content));
        let calls = rules.calls.iter().map(|(name, content)| (name.as_str(), number(Some(name.as_str()), content)));
        let calls: Vec<(&str, Option<usize>)> = calls.collect();
        if schemas.len() > MAX_GRAMMARS {
            return Err(GrammarError::TooMany);
        }
        let grammars = compile_all(&vocabulary, &self.cache, schemas)?;
        let forms = forms(tokenizer, &vocabulary.control, answer, &calls);
        let constraint = TurnConstraint::new(vocabulary, forms.into(), grammars).map_err(GrammarError::Vocabulary)?;
        Ok(Box::new(constraint))
    }
}
