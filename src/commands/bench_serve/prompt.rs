//! Prompts of about a given number of tokens. Only the server knows the tokenizer, so two requests first find how many tokens a word has.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::answer::Usage;
use super::http::Target;
use super::random::Random;

const WORDS: [&str; 64] = [
    "apple", "river", "stone", "cloud", "house", "bread", "light", "green", "table", "water", "chair", "music",
    "paper", "night", "horse", "grass", "plant", "train", "glass", "ocean", "sugar", "fruit", "heart", "world",
    "knife", "sound", "north", "voice", "small", "white", "black", "round", "early", "quiet", "happy", "young",
    "large", "short", "sharp", "clean", "under", "after", "above", "never", "often", "today", "again", "there",
    "where", "which", "could", "would", "carry", "write", "learn", "reach", "break", "sleep", "dance", "speak",
    "build", "drink", "laugh", "watch",
];

/// Random words, each with a space before it.
pub fn words(random: &mut Random, count: usize) -> String {
    (0..count).map(|_| format!(" {}", random.one_of(&WORDS))).collect()
}

/// A greedy completion with random words of about `prompt` tokens and an answer of `generate` tokens, to be streamed with one chunk per
/// token.
pub fn completion(model: &str, scale: Scale, random: &mut Random, prompt: usize, generate: usize) -> Value {
    json!({
        "model": model,
        "prompt": words(random, scale.words(prompt)),
        "max_tokens": generate,
        "temperature": 0,
        // `ignore_eos` makes answers as long as requested. Special tokens are not skipped, so that every token is a chunk of the stream.
        "ignore_eos": true,
        "skip_special_tokens": false,
    })
}

/// How many tokens the server counts for words.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Average number of tokens per word.
    per_word: f64,
    /// Number of tokens of a prompt without words.
    fixed: f64,
}

impl Scale {
    /// Measures the scale with requests to the server.
    ///
    /// # Errors
    /// The server does not complete texts, does not report token counts, or does not count more tokens for a text that is twice as long.
    pub fn of(target: &Target, model: &str) -> Result<Scale> {
        let count = |rounds: usize| -> Result<f64> {
            let prompt = WORDS.map(|word| format!(" {word}")).concat().repeat(rounds);
            let body = json!({ "model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0 });
            let answer = target.post("/v1/completions", &body)?.json()?;
            let Some(Usage { prompt, .. }) = Usage::read(&answer) else {
                bail!("the server reports no token counts in `usage`")
            };
            Ok(prompt as f64)
        };
        let (once, twice) = (count(1)?, count(2)?);
        let per_word = (twice - once) / WORDS.len() as f64;
        if per_word <= 0.0 {
            bail!("the server counts {once} tokens for a text and {twice} for the same text twice");
        }
        Ok(Scale { per_word, fixed: once - per_word * WORDS.len() as f64 })
    }

    /// Number of words, at least one, of a prompt with about `tokens` tokens.
    pub fn words(&self, tokens: usize) -> usize {
        (((tokens as f64 - self.fixed) / self.per_word).round() as usize).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_the_requested_length() {
        let scale = Scale { per_word: 1.5, fixed: 10.0 };
        assert_eq!((scale.words(160), scale.words(0)), (100, 1));
        let text = words(&mut Random::new(1, 0), 5);
        assert_eq!((text.matches(' ').count(), text), (5, words(&mut Random::new(1, 0), 5)));
        assert_ne!(words(&mut Random::new(1, 0), 5), words(&mut Random::new(1, 1), 5));
    }
}
