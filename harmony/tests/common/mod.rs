//! Shared by the tests.

use gptoss_reference::Case;
use phase1_loading::{Checkpoint, Tokenizer};

/// A small vocabulary with harmony's control tokens.
pub fn tokenizer() -> Tokenizer {
    let case = Case::committed().remove(0);
    Checkpoint::open(&case.model()).expect("opens").tokenizer().expect("builds")
}
