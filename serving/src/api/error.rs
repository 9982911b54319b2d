//! Errors in the formats of OpenAI's API and Ollama's.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::json::json_response;
use crate::request::Refused;

/// An error response, with its status and the fields that clients use.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    pub status: StatusCode,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    pub kind: &'static str,
    pub code: Option<&'static str>,
    /// The invalid field, such as `messages[0].content`.
    pub param: Option<String>,
    pub message: String,
    pub retry_after: Option<Duration>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, code, param: None, message: message.into(), retry_after: None }
    }

    /// A field has an invalid value.
    pub fn invalid(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..Self::bad_request(message) }
    }

    /// The request as a whole is invalid.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        Self::new(StatusCode::BAD_REQUEST, INVALID, None, message)
    }

    /// A field, or a value of a field, that OpenAI's or Ollama's API has and this server does not support.
    pub fn unsupported(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("unsupported_value"), ..Self::invalid(param, message) }
    }

    pub fn invalid_json(message: impl Into<String>) -> ApiError {
        Self::new(StatusCode::BAD_REQUEST, INVALID, Some("invalid_json"), message)
    }

    pub fn body_too_large(limit: usize) -> ApiError {
        let message = format!("The body is larger than {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large"), message)
    }

    pub fn body_too_slow() -> ApiError {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, None, "The body did not arrive in time.")
    }

    /// The requested model is not `served`, the model of this server.
    pub fn unknown_model(name: &str, served: &str) -> ApiError {
        let message = format!("The model `{}` does not exist; this server has `{served}`.", shortened(name));
        let error = Self::new(StatusCode::NOT_FOUND, INVALID, Some("model_not_found"), message);
        ApiError { param: Some("model".into()), ..error }
    }

    /// An object with the given id does not exist, or not any more.
    pub fn not_found(param: &str, message: impl Into<String>) -> ApiError {
        let error = Self::new(StatusCode::NOT_FOUND, INVALID, None, message);
        ApiError { param: Some(param.into()), ..error }
    }

    pub fn unknown_url(method: &str, path: &str) -> ApiError {
        let message = format!("Unknown request URL: {method} {}.", shortened(path));
        Self::new(StatusCode::NOT_FOUND, INVALID, Some("unknown_url"), message)
    }

    pub fn wrong_method(method: &str, path: &str) -> ApiError {
        let message = format!("Not allowed to {method} on {}.", shortened(path));
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, Some("method_not_allowed"), message)
    }

    pub fn unauthorized(message: &str) -> ApiError {
        Self::new(StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key"), message)
    }

    pub fn forbidden_origin() -> ApiError {
        let message = "Web pages of other origins may not use this server, unless it was started with `--cors ORIGIN`.";
        Self::new(StatusCode::FORBIDDEN, INVALID, Some("origin_not_allowed"), message)
    }

    /// The server is not ready yet, or is shutting down.
    pub fn unavailable(message: &str) -> ApiError {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("overloaded"), message);
        ApiError { retry_after: Some(Duration::from_secs(2)), ..error }
    }

    pub fn timed_out() -> ApiError {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            SERVER,
            Some("timeout"),
            "The answer took longer than the server allows.",
        )
    }

    pub fn server(message: impl Into<String>) -> ApiError {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, None, message)
    }

    /// An error for a prompt that is too long. `tokens` is its length, or a text such as `at least 5`; `param` is the field that contains
    /// the prompt.
    pub fn context_exceeded(context: usize, tokens: &str, param: &str) -> ApiError {
        let message = format!(
            "This model's maximum context length is {context} tokens, and the prompt has {tokens}. Shorten it."
        );
        ApiError { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    /// An error for the scheduler's refusal; `param` is the field that contains the prompt.
    pub fn refused(refused: Refused, param: &str) -> ApiError {
        match refused {
            Refused::QueueFull { retry_after } => {
                let message = "Too many requests are waiting; try again later.";
                let code = Some("rate_limit_exceeded");
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message);
                ApiError { retry_after: Some(retry_after), ..error }
            }
            Refused::PromptTooLong { prompt, context } => Self::context_exceeded(context, &prompt.to_string(), param),
            Refused::EmptyPrompt => Self::invalid(param, "The prompt is empty."),
            Refused::Draining => Self::unavailable("The server takes no more requests."),
            Refused::Invalid(message) => Self::bad_request(message),
        }
    }

    /// OpenAI's error object.
    pub fn object(&self) -> Value {
        let ApiError { kind, code, param, message, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }

    /// The response, with the body that clients of `path` expect.
    pub fn respond_on(&self, path: &str) -> Response {
        let body = match path.starts_with("/api/") {
            true => json!({ "error": self.message }),
            false => self.object(),
        };
        let mut response = json_response(self.status, &body);
        let headers = response.headers_mut();
        if let Some(delay) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(delay.as_secs().max(1)));
        }
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            // Tells clients not to retry: the same request would fail again.
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::GATEWAY_TIMEOUT => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            _ => {}
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond_on("")
    }
}

/// The beginning of an untrusted text, for an error message.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
