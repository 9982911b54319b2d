//! The token counts of an answer.

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// Prompt tokens that were found in the cache.
    pub cached_tokens: usize,
    /// All generated tokens, including headers and ends of messages.
    pub tokens: usize,
    /// Generated tokens of reasoning.
    pub reasoning_tokens: usize,
}

impl Usage {
    /// In the format of Chat Completions and Completions.
    pub fn of_chat(&self) -> Value {
        let Usage { prompt_tokens, cached_tokens, tokens, reasoning_tokens } = self;
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
            "prompt_tokens_details": { "cached_tokens": cached_tokens },
            "completion_tokens_details": { "reasoning_tokens": reasoning_tokens },
        })
    }

    /// In the format of Responses.
    pub fn of_response(&self) -> Value {
        let Usage { prompt_tokens, cached_tokens, tokens, reasoning_tokens } = self;
        json!({
            "input_tokens": prompt_tokens,
            "input_tokens_details": { "cached_tokens": cached_tokens, "cache_write_tokens": 0 },
            "output_tokens": tokens,
            "output_tokens_details": { "reasoning_tokens": reasoning_tokens },
            "total_tokens": prompt_tokens + tokens,
        })
    }
}
