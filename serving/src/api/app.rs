//! State shared by all requests: settings, the model once it is loaded, and the phase of a shutdown.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::HeaderValue;
use harmony::{Harmony, Message, MissingControlToken};
use phase1_loading::Tokenizer;
use tokio::sync::watch;

use super::error::ApiError;
use super::key::Key;
use super::metrics::Metrics;
use super::responses::Store;
use crate::grammar::Grammars;
use crate::worker::Handle;

/// Settings of the server that do not concern the model.
#[derive(Clone)]
pub struct Settings {
    /// If there are none, requests need no key.
    pub keys: Vec<Key>,
    /// Origins whose web pages may use the server; `*` allows any.
    pub origins: Vec<String>,
    /// Largest size of a body in bytes.
    pub max_body: usize,
    pub max_connections: usize,
    /// The longest time for the headers of a request to arrive, and for a connection to be idle between requests.
    pub header_time: Duration,
    /// The longest time in which a whole body must arrive.
    pub body_time: Duration,
    /// A client that accepts no data for this long is disconnected.
    pub write_time: Duration,
    /// The longest time from a request to the end of its answer, including waiting; `None` is unlimited.
    pub answer_time: Option<Duration>,
    /// The number of responses kept for `previous_response_id`, and their total bytes.
    pub stored_responses: usize,
    pub stored_bytes: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            keys: Vec::new(),
            origins: Vec::new(),
            max_body: 16 << 20,
            max_connections: 1024,
            header_time: Duration::from_secs(30),
            body_time: Duration::from_secs(60),
            write_time: Duration::from_secs(60),
            answer_time: None,
            stored_responses: 1000,
            stored_bytes: 64 << 20,
        }
    }
}

impl Settings {
    /// The value of `Access-Control-Allow-Origin` for web pages of that origin; `None` if they may not use the server.
    pub fn cors_answer(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.origins.iter().any(|allowed| allowed == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }
}

/// A loaded model.
pub struct Model {
    pub handle: Handle,
    pub tokenizer: Tokenizer,
    pub grammars: Grammars,
    /// The names that clients may request. The first is used if a request has no name.
    pub names: Vec<String>,
    /// Identifies the model: made from a hash of its configuration and of a part of its weights. A seed gives the same text only with the
    /// same fingerprint.
    pub fingerprint: String,
    /// Bytes of the weights.
    pub bytes: u64,
    /// Tokens per page of the KV cache.
    pub positions_per_page: usize,
    /// The date `YYYY-MM-DD` in the system message, instead of today's. With a fixed date, prompts begin with the same tokens after
    /// midnight as before, so that cached beginnings can still be used.
    pub date: Option<String>,
    /// Unix time in seconds.
    pub created: u64,
}

impl Model {
    pub fn name(&self) -> &str {
        self.names.first().map_or("gpt-oss", String::as_str)
    }

    /// The name of the model in the answer: the requested name, or the first of the names if none was requested.
    ///
    /// # Errors
    /// The name is not one of this model's.
    pub fn resolve(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let Some(asked) = asked else { return Ok(self.name().to_owned()) };
        // Ollama's clients append the tag.
        let known = |name: &String| name == asked || asked.strip_suffix(":latest") == Some(name.as_str());
        match self.names.iter().any(known) {
            true => Ok(asked.to_owned()),
            false => Err(ApiError::unknown_model(asked, self.name())),
        }
    }

    /// # Errors
    /// The vocabulary lacks harmony's control tokens.
    pub fn harmony(&self) -> Result<Harmony<'_>, ApiError> {
        let explain = |error: MissingControlToken| {
            ApiError::bad_request(format!("This model cannot chat: {error}. `/v1/completions` can continue text."))
        };
        Harmony::new(&self.tokenizer).map_err(explain)
    }

    /// The prompt of a conversation. `param` is the field that contains it.
    ///
    /// # Errors
    /// The conversation is certainly too long for the context, which is checked before it is encoded; or an error of [`Model::harmony`].
    pub fn prompt(&self, messages: &[Message], param: &str) -> Result<Vec<u32>, ApiError> {
        let harmony = self.harmony()?;
        self.expect_room(harmony.least_prompt_tokens(messages), param)?;
        Ok(harmony.render_prompt(messages))
    }

    /// The tokens of raw text, in which control tokens are recognized. `param` is the field that contains it.
    ///
    /// # Errors
    /// The text is certainly too long for the context, which is checked before it is encoded.
    pub fn encode(&self, text: &str, param: &str) -> Result<Vec<u32>, ApiError> {
        self.expect_room(self.tokenizer.least_tokens_with_control(text), param)?;
        Ok(self.tokenizer.encode_with_control(text))
    }

    /// Checks that the context has space for `least`, the fewest tokens that the prompt can have, and one generated token.
    fn expect_room(&self, least: usize, param: &str) -> Result<(), ApiError> {
        let context = self.handle.context();
        match least < context {
            true => Ok(()),
            false => Err(ApiError::context_exceeded(context, &format!("at least {least}"), param)),
        }
    }

    /// The date in the system message.
    pub fn date(&self) -> String {
        self.date.clone().unwrap_or_else(|| time::OffsetDateTime::now_utc().date().to_string())
    }

    /// Tokens that may be generated after a prompt: as many as requested, limited by what the prompt leaves of the context, which
    /// counts as at least one token.
    pub fn room(&self, prompt: usize, asked: Option<usize>) -> usize {
        let left = self.handle.context().saturating_sub(prompt).max(1);
        asked.map_or(left, |tokens| tokens.min(left))
    }
}

/// The phase of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// Running requests are completed; new ones are refused.
    Draining,
    /// Requests that still run are aborted.
    Stopping,
}

pub struct App {
    pub settings: Settings,
    model: OnceLock<Model>,
    phase: watch::Sender<Phase>,
    /// Number of requests that are generating.
    generating: AtomicUsize,
    pub metrics: Metrics,
    pub store: Store,
}

impl App {
    pub fn new(settings: Settings) -> App {
        App {
            store: Store::new(settings.stored_responses, settings.stored_bytes),
            settings,
            model: OnceLock::new(),
            phase: watch::Sender::new(Phase::Serving),
            generating: AtomicUsize::new(0),
            metrics: Metrics::default(),
        }
    }

    /// Sets the model; requests are served from now on. Later calls have no effect.
    pub fn ready(&self, model: Model) {
        let _ = self.model.set(model);
    }

    /// The model, while requests are served.
    ///
    /// # Errors
    /// The server is not ready yet or is shutting down, or the engine has failed.
    pub fn model(&self) -> Result<&Model, ApiError> {
        if *self.phase.borrow() > Phase::Serving {
            return Err(ApiError::unavailable("The server is shutting down."));
        }
        let model = self.loaded().ok_or_else(|| ApiError::unavailable("The model is being loaded."))?;
        match model.handle.failure() {
            Some(failure) => Err(ApiError::unavailable(&format!("The engine has failed: {failure}."))),
            None => Ok(model),
        }
    }

    /// The model, even during a shutdown.
    pub fn loaded(&self) -> Option<&Model> {
        self.model.get()
    }

    /// Refuses new work from now on.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
        if let Some(model) = self.loaded() {
            model.handle.drain();
        }
    }

    /// Aborts the requests that still run.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Stopping);
    }

    /// Completes when running requests must be aborted.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.subscribe();
        async move {
            // An error means that the server has been dropped.
            let _ = phase.wait_for(|phase| *phase == Phase::Stopping).await;
        }
    }

    /// Counts a generating request until the guard is dropped.
    pub fn generating(self: &Arc<App>) -> Generating {
        self.generating.fetch_add(1, Ordering::Relaxed);
        Generating(self.clone())
    }

    pub fn is_idle(&self) -> bool {
        self.generating.load(Ordering::Relaxed) == 0
    }
}

/// A generating request.
pub struct Generating(Arc<App>);

impl Drop for Generating {
    fn drop(&mut self) {
        self.0.generating.fetch_sub(1, Ordering::Relaxed);
    }
}
