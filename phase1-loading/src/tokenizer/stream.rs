//! Decodes tokens as they arrive.

use super::encode::Tokenizer;

/// Turns tokens into text incrementally. A character whose bytes are in several tokens is never split.
#[derive(Default)]
pub struct TextStream {
    /// Up to three bytes that begin an incomplete character.
    pending: Vec<u8>,
}

impl TextStream {
    /// The text that `token` completes, which may be empty. Bytes that cannot become UTF-8 turn into U+FFFD.
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

    /// The remaining text at the end: U+FFFD if the last character is incomplete, otherwise empty.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}
