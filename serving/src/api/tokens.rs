//! `/tokenize` and `/detokenize`, in the formats of llama.cpp and of vLLM. The names of a request's fields tell which one it uses.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::app::App;
use super::body::{block_in_place_if_large, parse, read};
use super::chat::ChatRequest;
use super::error::ApiError;
use super::json::ok;

#[derive(Deserialize)]
struct Tokenize {
    /// llama.cpp's text, with its options `with_pieces` and `parse_special`.
    content: Option<String>,
    with_pieces: Option<bool>,
    parse_special: Option<bool>,
    /// vLLM's text, or instead its `messages`, with its option `return_token_strs`.
    prompt: Option<String>,
    messages: Option<Value>,
    return_token_strs: Option<bool>,
}

pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    app.model()?;
    let body = read(request, &app.settings).await?;
    let model = app.model()?;
    let tokenizer = &model.tokenizer;
    let piece = |&token: &u32| String::from_utf8_lossy(tokenizer.token_bytes(token).unwrap_or_default()).into_owned();
    block_in_place_if_large(body.len(), || {
        let asked: Tokenize = parse(&body)?;
        // Control tokens are recognized unless the request wants them as text, as in both servers.
        let encode = |text: &str| match asked.parse_special {
            Some(false) => tokenizer.encode(text),
            _ => tokenizer.encode_with_control(text),
        };
        if let Some(text) = &asked.content {
            let tokens = encode(text);
            let pieces = |token: &u32| json!({ "id": token, "piece": piece(token) });
            let tokens: Vec<Value> = match asked.with_pieces {
                Some(true) => tokens.iter().map(pieces).collect(),
                _ => tokens.into_iter().map(Value::from).collect(),
            };
            return Ok(ok(&json!({ "tokens": tokens })));
        }
        let tokens = match (&asked.prompt, &asked.messages) {
            (Some(text), _) => encode(text),
            (None, Some(_)) => super::chat::prompt(model, parse::<ChatRequest>(&body)?)?,
            (None, None) => {
                return Err(ApiError::invalid("prompt", "One of `prompt`, `messages` and `content` must be given."));
            }
        };
        let mut answer = Map::new();
        answer.insert("count".into(), tokens.len().into());
        answer.insert("max_model_len".into(), model.handle.context().into());
        if asked.return_token_strs == Some(true) {
            answer.insert("token_strs".into(), tokens.iter().map(piece).collect());
        }
        answer.insert("tokens".into(), tokens.into());
        Ok(ok(&answer))
    })
}

#[derive(Deserialize)]
struct Detokenize {
    tokens: Option<Vec<u32>>,
}

pub async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    app.model()?;
    let body = read(request, &app.settings).await?;
    let model = app.model()?;
    block_in_place_if_large(body.len(), || {
        let asked: Detokenize = parse(&body)?;
        let tokens = asked.tokens.ok_or_else(|| ApiError::invalid("tokens", "`tokens` is missing."))?;
        if let Some(token) = tokens.iter().find(|&&token| model.tokenizer.token_bytes(token).is_none()) {
            let message = format!("Token {token} is not in the vocabulary of {}.", model.tokenizer.vocab());
            return Err(ApiError::invalid("tokens", message));
        }
        let text = model.tokenizer.decode(&tokens);
        Ok(ok(&json!({ "prompt": text, "content": text })))
    })
}
