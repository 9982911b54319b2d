//! `/v1/models`, and the endpoints for embeddings, which always return an error.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::app::{App, Model};
use super::error::ApiError;
use super::json::ok;

pub async fn list(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.model()?;
    let models: Vec<Value> = model.names.iter().map(|name| object(model, name)).collect();
    Ok(ok(&json!({ "object": "list", "data": models })))
}

pub async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let model = app.model()?;
    Ok(ok(&object(model, &model.resolve(Some(&id))?)))
}

fn object(model: &Model, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "gptoss",
        "root": model.name(),
        "parent": null,
        "max_model_len": model.handle.context(),
        "meta": { "n_ctx_train": model.handle.context(), "n_vocab": model.handle.vocab(), "size": model.bytes },
    })
}

const NO_EMBEDDINGS: &str = "This model generates text and was not trained to embed it; its hidden states would make poor vectors. Use an embedding model.";

pub async fn embeddings() -> ApiError {
    ApiError::unsupported("model", NO_EMBEDDINGS)
}

pub async fn ollama_embeddings() -> Response {
    ApiError::unsupported("model", NO_EMBEDDINGS).respond_on("/api/embed")
}
