//! Endpoints for operators and routers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::app::App;
use super::error::ApiError;
use super::id;
use super::json::ok;

/// 200 while requests are served, otherwise 503.
pub async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.model()?;
    Ok(ok(&json!({ "status": "ok" })))
}

pub async fn version() -> Response {
    ok(&json!({ "version": env!("CARGO_PKG_VERSION") }))
}

pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.loaded().ok_or_else(|| ApiError::unavailable("The model is being loaded."))?;
    let text = app.metrics.write(model.name(), model.positions_per_page, &model.handle.statistics());
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// The load, for routers that balance it.
pub async fn loads(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.model()?;
    let now = model.handle.statistics();
    let pages = if now.pages_total == usize::MAX { 0 } else { now.pages_total };
    let used = pages.saturating_sub(now.pages_free);
    let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
    let usage = share(used as f64, pages as f64);
    let load = json!({
        "dp_rank": 0,
        "num_running_reqs": now.running,
        "num_waiting_reqs": now.waiting,
        "num_total_reqs": now.running + now.waiting,
        "num_used_tokens": used * model.positions_per_page,
        "max_total_num_tokens": pages * model.positions_per_page,
        "token_usage": usage,
        "cache_hit_rate": share(now.cached_tokens as f64, now.prompt_tokens as f64),
    });
    Ok(ok(&json!({ "timestamp": id::now(), "dp_rank_count": 1, "loads": [load] })))
}
