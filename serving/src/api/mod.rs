//! The HTTP API: OpenAI's Chat Completions, Completions and Responses, Ollama's chat and generate, lists of models, conversion between text
//! and tokens, endpoints for operators, and the chat page.
//!
//! Each endpoint that generates text has the same three parts. The JSON of a request becomes [`Request`](crate::request::Request)s for the
//! scheduler; their events go to an `Answer` (`runs.rs`), which writes chunks or a whole object; and a handler connects the two. The first
//! two parts do not use sockets. [`Server`] owns the sockets.

mod app;
mod body;
mod chat;
mod completions;
mod document;
mod error;
mod fields;
mod form;
mod guard;
mod health;
mod id;
mod json;
mod key;
mod metrics;
mod models;
mod ollama;
mod pending_tokens;
mod record;
mod responses;
mod runs;
#[cfg(test)]
mod scripted;
mod server;
mod stops;
mod stream;
mod system;
mod tokens;
mod tools;
mod turn;
mod usage;
mod write_timeout;

use std::sync::{Arc, LazyLock};

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};

use error::ApiError;

pub use app::{App, Model, Settings};
pub use key::Key;
pub use server::Server;

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .route("/", get(page))
        .route("/health", get(health::health))
        .route("/ping", get(health::health))
        .route("/version", get(health::version))
        .route("/openapi.json", get(document::openapi))
        .route("/metrics", get(health::metrics))
        .route("/v1/loads", get(health::loads))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/input_tokens", post(responses::input_tokens))
        .route("/v1/responses/{id}", get(responses::retrieve).delete(responses::delete))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
        .route("/v1/embeddings", post(models::embeddings))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::running))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(ollama::version))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/embed", post(models::ollama_embeddings))
        .route("/api/embeddings", post(models::ollama_embeddings))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method);
    routes.layer(middleware::from_fn_with_state(app.clone(), guard::guard)).with_state(app)
}

async fn unknown(request: Request) -> Response {
    let path = request.uri().path();
    ApiError::unknown_url(request.method().as_str(), path).respond_on(path)
}

async fn wrong_method(request: Request) -> Response {
    let path = request.uri().path();
    ApiError::wrong_method(request.method().as_str(), path).respond_on(path)
}

/// The chat page as one file: the style sheet and the scripts replace the tags in `index.html` that refer to them.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let mut page = include_str!("../page/index.html").to_owned();
    let style = format!("<style>\n{}</style>", include_str!("../page/style.css"));
    page = page.replace(r#"<link rel="stylesheet" href="style.css">"#, &style);
    for (name, script) in
        [("markdown.js", include_str!("../page/markdown.js")), ("chat.js", include_str!("../page/chat.js"))]
    {
        let tag = format!(r#"<script src="{name}"></script>"#);
        page = page.replace(&tag, &format!("<script>\n{script}</script>"));
    }
    page
});

/// The chat page. Its content security policy allows connections only to this server.
async fn page() -> Response {
    let mut response = Html(PAGE.as_str()).into_response();
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
