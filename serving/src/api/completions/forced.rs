//! Scores a known text: a constraint allows only the next token of the text at each position, so that each token is drawn with its log
//! probability in the model's own distribution.

use crate::request::Constraint;

/// Allows the tokens of a text one after another, and then any token.
#[derive(Clone, Debug)]
pub struct Forced {
    /// The remaining tokens, in reverse order.
    left: Vec<u32>,
    /// The mask that allows the next token.
    mask: Vec<u32>,
}

impl Forced {
    /// All tokens must be below `vocab`, the number of logits.
    pub fn new(tokens: &[u32], vocab: usize) -> Forced {
        let mut forced = Forced { left: tokens.iter().rev().copied().collect(), mask: vec![0; vocab.div_ceil(32)] };
        forced.flip();
        forced
    }

    /// Toggles the bit of the next token in the mask.
    fn flip(&mut self) {
        if let Some(&token) = self.left.last() {
            self.mask[token as usize / 32] ^= 1 << (token % 32);
        }
    }
}

impl Constraint for Forced {
    fn allowed(&self) -> Option<&[u32]> {
        (!self.left.is_empty()).then_some(&self.mask[..])
    }

    fn push(&mut self, token: u32) -> Result<(), String> {
        if self.left.last().is_some_and(|&next| next != token) {
            return Err(format!("token {token} was drawn where it is not allowed"));
        }
        self.flip();
        self.left.pop();
        self.flip();
        Ok(())
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forced_tokens_are_allowed_in_order() {
        let mut forced = Forced::new(&[40, 3, 3], 64);
        for (token, mask) in [(40, [0, 1 << 8]), (3, [1 << 3, 0]), (3, [1 << 3, 0])] {
            assert_eq!(forced.allowed(), Some(&mask[..]));
            assert!(forced.push(token + 1).is_err());
            forced.push(token).expect("allowed");
        }
        assert_eq!(forced.allowed(), None);
        forced.push(9).expect("any token is allowed");
    }
}
