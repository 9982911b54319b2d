//! Errors of constraints.

/// The largest number of grammars per turn: that of the answer, and those of the functions whose arguments must be JSON.
pub(super) const MAX_GRAMMARS: usize = 128;

/// Why a constraint cannot be created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// A schema cannot be enforced.
    #[error("{problem} (at `{path}`)")]
    Schema {
        /// The function whose parameters the schema describes; `None` for the schema of the answer.
        function: Option<String>,
        /// The position in the schema, as a JSON pointer after `#`.
        path: String,
        problem: String,
    },
    #[error("there are more than {} schemas to enforce", MAX_GRAMMARS)]
    TooMany,
    /// Grammars cannot be matched against the vocabulary, or memory is exhausted.
    #[error("{0}")]
    Vocabulary(String),
}
