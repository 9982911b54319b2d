//! The stop tokens and seeds of runs. A run generates one text; a request may have several.

use phase1_loading::Tokenizer;
use serde_json::Value;

use super::app::Model;
use crate::request::Request;

/// Tokens that end a run: the model's own, unless the request ignores them, and the request's.
pub fn tokens(model: &Model, ignore_own: Option<bool>, also: Option<&[u32]>) -> Vec<u32> {
    let own: &[u32] = if ignore_own.unwrap_or(false) { &[] } else { model.tokenizer.stops() };
    own.iter().chain(also.unwrap_or_default()).copied().collect()
}

/// vLLM's `stop_reason` for a token: the token if the request named it, null if it is the model's own.
pub fn reason(tokenizer: &Tokenizer, token: u32) -> Value {
    if tokenizer.stops().contains(&token) { Value::Null } else { token.into() }
}

/// `runs` copies of a request with consecutive seeds.
pub fn with_seeds(request: Request, runs: usize) -> Vec<Request> {
    let run = |index: usize| {
        let mut sampling = request.sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(index as u64);
        Request { sampling, ..request.clone() }
    };
    (0..runs).map(run).collect()
}
