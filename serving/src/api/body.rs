//! Reads bodies within limits, and parses them with errors that name the invalid field.

use std::future::poll_fn;
use std::pin::Pin;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header;
use futures_core::Stream;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::app::Settings;
use super::error::{ApiError, shortened};

/// A body that exceeds the limit is read and discarded up to this many times the limit, so that the client can read the error.
const DISCARD_FACTOR: usize = 16;
/// Parsing and tokenizing more bytes than this would delay other connections.
const LARGE_BYTES: usize = 16 << 10;

/// Reads the whole body.
///
/// # Errors
/// The body is too large, too slow, or incomplete.
pub async fn read(request: Request, settings: &Settings) -> Result<Bytes, ApiError> {
    let limit = settings.max_body;
    let headers = request.headers();
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    // A client that sent the header `Expect` sends the body only after the server asks for it, so there is nothing to discard.
    if announced.is_some_and(|bytes| bytes > limit) && headers.contains_key(header::EXPECT) {
        return Err(ApiError::body_too_large(limit));
    }
    let mut stream = request.into_body().into_data_stream();
    let reading = async {
        let (mut kept, mut seen) = (Vec::new(), 0usize);
        while let Some(chunk) = poll_fn(|context| Pin::new(&mut stream).poll_next(context)).await {
            let chunk = chunk.map_err(|error| ApiError::bad_request(format!("The body broke off: {error}.")))?;
            seen += chunk.len();
            if seen <= limit {
                kept.extend_from_slice(&chunk);
                continue;
            }
            kept = Vec::new();
            if seen > limit.saturating_mul(DISCARD_FACTOR) {
                break;
            }
        }
        match seen > limit {
            true => Err(ApiError::body_too_large(limit)),
            false => Ok(Bytes::from(kept)),
        }
    };
    tokio::time::timeout(settings.body_time, reading).await.unwrap_or_else(|_| Err(ApiError::body_too_slow()))
}

/// Parses JSON. Fields that `T` does not have are ignored.
///
/// # Errors
/// The body is not JSON in UTF-8, or a field has the wrong type; the error then has the path of the field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // UTF-8 is checked in the whole body, because serde does not check the content of ignored fields.
    let text = std::str::from_utf8(bytes)
        .map_err(|error| not_json(&format!("invalid UTF-8 after {} bytes", error.valid_up_to())))?;
    let mut input = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut input).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let message = shortened(&inner.to_string());
        match inner.classify() {
            Category::Data if path == "." => ApiError::bad_request(format!("{message}.")),
            Category::Data => ApiError::invalid(&path, format!("Invalid value for `{path}`: {message}.")),
            Category::Syntax | Category::Eof | Category::Io => not_json(&message),
        }
    })?;
    input.end().map_err(|error| not_json(&error.to_string()))?;
    Ok(value)
}

fn not_json(message: &str) -> ApiError {
    ApiError::invalid_json(format!("The body could not be parsed as JSON: {message}."))
}

/// Runs work on input of the given size. If it is large, other tasks of this thread continue meanwhile.
pub fn block_in_place_if_large<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    match bytes > LARGE_BYTES {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Asked {
        #[allow(dead_code)]
        messages: Option<Vec<Message>>,
    }

    #[derive(Debug, Deserialize)]
    struct Message {
        #[allow(dead_code)]
        text: String,
    }

    fn refusal(body: &[u8]) -> (Option<&'static str>, Option<String>) {
        let error = parse::<Asked>(body).expect_err("refused");
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        (error.code, error.param)
    }

    #[test]
    fn error_names_the_invalid_field() {
        assert_eq!(refusal(br#"{"messages": "hi"}"#), (None, Some("messages".into())));
        assert_eq!(refusal(br#"{"messages": [{"text": 5}]}"#), (None, Some("messages[0].text".into())));
        assert_eq!(refusal(b"5"), (None, None));
    }

    #[test]
    fn invalid_json_and_wrong_fields_are_different_errors() {
        for body in [&b"{"[..], b"", b"{} {}", b"{\"messages\": [{\"text\": \"\xff\"}]}", b"{\"unknown\": \"\xff\"}"] {
            assert_eq!(refusal(body), (Some("invalid_json"), None), "{}", String::from_utf8_lossy(body));
        }
        assert!(parse::<Asked>(br#"{"unknown": {"a": 1}, "messages": null}"#).is_ok());
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        assert_eq!(parse::<serde_json::Value>(deep.as_bytes()).expect_err("refused").code, Some("invalid_json"));
    }
}
