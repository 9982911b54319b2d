//! Decoding while tokens arrive.

use super::encode::Tokenizer;

/// Turns tokens into text piece by piece, never splitting a character whose bytes come in several tokens.
#[derive(Default)]
pub struct TextStream {
    /// Up to three bytes that begin a character.
    pending: Vec<u8>,
}

impl TextStream {
    /// The text that `token` completes: possibly none yet. Bytes that can never become UTF-8 turn into U+FFFD.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> String {
        self.pending.extend(tokenizer.token_bytes(token).unwrap_or_default());
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
                    let Some(broken) = error.error_len() else {
                        self.pending.drain(..valid);
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..valid + broken);
                }
            }
        }
    }

    /// What is left at the end: U+FFFD if a character was begun and never completed.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}
