//! Why a turn cannot be constrained.

/// Grammars that one turn may have.
pub(super) const MOST_GRAMMARS: usize = 128;

/// Why there is no constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// A schema that cannot be enforced.
    #[error("{problem} (at `{path}`)")]
    Schema {
        /// Whose parameters these are; `None` for the answer.
        function: Option<String>,
        /// Where in the schema, as a JSON pointer behind `#`.
        path: String,
        problem: String,
    },
    #[error("there are more than {} schemas to enforce", MOST_GRAMMARS)]
    TooMany,
    /// A vocabulary that grammars cannot be matched against, or no memory for it.
    #[error("{0}")]
    Vocabulary(String),
}
