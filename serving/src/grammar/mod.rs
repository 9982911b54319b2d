//! Constrained output: a turn whose answer is JSON of a schema, or whose calls have arguments of one.
//!
//! [`Grammars::constraint`] makes a [`Constraint`] for one turn. It follows harmony token by token. Headers are limited to the
//! well-formed ones that lead to what the turn may hold; reasoning and preambles may hold any text; the body of an answer or of a call
//! follows a grammar, which the crate `llguidance` matches against all tokens at once, and may end only where the JSON is complete.
//!
//! What no grammar can do is end a text in time: one that reaches the limit of its tokens breaks off in the middle.

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
use error::MOST_GRAMMARS;
use headers::forms;
use vocabulary::Vocabulary;

/// What a body holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Text,
    Json {
        schema: Value,
        /// Whether any JSON object will do if the schema cannot be enforced.
        lenient: bool,
    },
}

impl Content {
    /// Any JSON object.
    pub fn object() -> Content {
        Content::Json { schema: json!({ "type": "object" }), lenient: false }
    }
}

/// What a turn may hold beside reasoning. With functions, it may say something to the user before a call.
#[derive(Clone, Debug, PartialEq)]
pub struct TurnRules {
    /// The final answer; `None` if the turn has to end in a call.
    pub answer: Option<Content>,
    /// Functions that may be called, by their names, and their arguments.
    pub calls: Vec<(String, Content)>,
}

/// Makes constraints for one model.
///
/// What they share is built from the tokenizer at the first one. For the 201,088 tokens of o200k_harmony this takes some 80 MiB, as there
/// are a dozen tries of tokens, and in the order of a second. Grammars of the schemas that came last are kept.
#[derive(Default)]
pub struct Grammars {
    vocabulary: OnceLock<Result<Arc<Vocabulary>, String>>,
    cache: Cache,
}

impl Grammars {
    /// A constraint for a turn, from behind `<|start|>assistant` on. `vocab` is the number of logits, the same in every call, as is
    /// the tokenizer. May take a while: do not call it where others wait.
    ///
    /// # Errors
    /// A schema that is too large, too deep or malformed, or that uses what cannot be enforced; a vocabulary without harmony's tokens.
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
        if schemas.len() > MOST_GRAMMARS {
            return Err(GrammarError::TooMany);
        }
        let grammars = compile_all(&vocabulary, &self.cache, schemas)?;
        let forms = forms(tokenizer, &vocabulary.control, answer, &calls);
        let constraint = TurnConstraint::new(vocabulary, forms.into(), grammars).map_err(GrammarError::Vocabulary)?;
        Ok(Box::new(constraint))
    }
}
