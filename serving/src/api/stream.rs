//! Streamed answers.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_core::Stream;
use serde_json::Value;
use tokio::sync::mpsc;

use super::error::ApiError;

/// The number of chunks that are buffered for a slow reader. While the buffer is full, events are not converted to chunks; the engine
/// continues, and its events wait in memory.
const WAITING: usize = 64;

/// The format of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing is written: the answer is returned as a whole.
    Silent,
    /// Server-sent events without names, and `[DONE]` at the end.
    Data,
    /// Server-sent events with names.
    Events,
    /// One line of JSON per chunk.
    Lines,
}

/// Chunks that are not yet sent.
#[derive(Debug)]
pub struct Frames {
    pub form: Form,
    text: String,
}

impl Frames {
    pub fn new(form: Form) -> Frames {
        Frames { form, text: String::new() }
    }

    /// Adds a value, which is created only if chunks are written.
    pub fn push(&mut self, value: impl FnOnce() -> Value) {
        match self.form {
            Form::Silent => {}
            Form::Data => self.text += &format!("data: {}\n\n", value()),
            Form::Events => {
                let value = value();
                self.text += &format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap_or("message"));
            }
            Form::Lines => self.text += &format!("{}\n", value()),
        }
    }

    /// Adds an error, which ends a failed stream.
    pub fn fail(&mut self, error: &ApiError) {
        match self.form {
            Form::Lines => self.push(|| serde_json::json!({ "error": error.message })),
            _ => self.push(|| error.object()),
        }
    }

    /// Adds the end marker, if the format has one.
    pub fn done(&mut self) {
        if self.form == Form::Data {
            self.text += "data: [DONE]\n\n";
        }
    }

    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }
}

/// The sender of a response's chunks.
pub struct ChunkSender(mpsc::Sender<Bytes>);

/// The client has disconnected.
#[derive(Debug)]
pub struct Disconnected;

impl ChunkSender {
    /// Sends the collected chunks.
    ///
    /// # Errors
    /// The client has disconnected.
    pub async fn flush(&self, frames: &mut Frames) -> Result<(), Disconnected> {
        let text = frames.take();
        if text.is_empty() {
            return Ok(());
        }
        self.write(text.into()).await
    }

    /// Sends a keep-alive comment to the client and to proxies, if the format is server-sent events; otherwise nothing.
    ///
    /// # Errors
    /// As [`ChunkSender::flush`].
    pub async fn keep_alive(&self, form: Form) -> Result<(), Disconnected> {
        match form {
            Form::Data | Form::Events => self.write(Bytes::from_static(b": keep-alive\n\n")).await,
            Form::Silent | Form::Lines => Ok(()),
        }
    }

    async fn write(&self, bytes: Bytes) -> Result<(), Disconnected> {
        self.0.send(bytes).await.map_err(|_| Disconnected)
    }

    /// Completes when the client has disconnected.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// A response whose chunks are written by `work`.
pub fn respond<F: Future<Output = ()> + Send + 'static>(form: Form, work: impl FnOnce(ChunkSender) -> F) -> Response {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(work(ChunkSender(sender)));
    let mut response = Response::new(Body::from_stream(ChunkStream(receiver)));
    let kind = match form {
        Form::Lines => "application/x-ndjson",
        _ => "text/event-stream",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Keeps nginx from buffering chunks.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct ChunkStream(mpsc::Receiver<Bytes>);

impl Stream for ChunkStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| piece.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_stream_format_is_encoded() {
        let written = |form| {
            let mut frames = Frames::new(form);
            frames.push(|| json!({ "type": "a", "text": "x\ny" }));
            frames.done();
            frames.take()
        };
        assert_eq!(written(Form::Silent), "");
        assert_eq!(written(Form::Data), "data: {\"type\":\"a\",\"text\":\"x\\ny\"}\n\ndata: [DONE]\n\n");
        assert_eq!(written(Form::Events), "event: a\ndata: {\"type\":\"a\",\"text\":\"x\\ny\"}\n\n");
        assert_eq!(written(Form::Lines), "{\"type\":\"a\",\"text\":\"x\\ny\"}\n");
    }
}
