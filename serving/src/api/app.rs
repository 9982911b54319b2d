//! What all requests share: settings, the model once it is loaded, and whether the server is on its way out.

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

/// How the server behaves; nothing of it concerns the model.
#[derive(Clone)]
pub struct Settings {
    /// Without keys everybody is let in.
    pub keys: Vec<Key>,
    /// Origins whose pages may use the server; `*` is any.
    pub origins: Vec<String>,
    /// Bytes of a body.
    pub max_body: usize,
    pub max_connections: usize,
    /// For an answer from its request to its end, waiting included; `None` is as long as it takes.
    pub answer_time: Option<Duration>,
    /// Responses that are kept for `previous_response_id`, and their bytes.
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
            answer_time: None,
            stored_responses: 1000,
            stored_bytes: 64 << 20,
        }
    }
}

impl Settings {
    /// What `Access-Control-Allow-Origin` says to pages of that origin, if they may use the server.
    pub fn cors_answer(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.origins.iter().any(|allowed| allowed == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }
}

/// A model that is ready.
pub struct Model {
    pub handle: Handle,
    pub tokenizer: Tokenizer,
    pub grammars: Grammars,
    /// What clients call it; the first is what answers say.
    pub names: Vec<String>,
    /// Tells models and settings apart between which seeds mean nothing.
    pub fingerprint: String,
    /// Bytes of weights.
    pub bytes: u64,
    /// Tokens of a page of the cache.
    pub positions_per_page: usize,
    /// `YYYY-MM-DD` for the system message instead of today. Prompts then keep their beginning over midnight, and with it their cache.
    pub date: Option<String>,
    /// Seconds since 1970.
    pub created: u64,
}

impl Model {
    pub fn name(&self) -> &str {
        self.names.first().map_or("gpt-oss", String::as_str)
    }

    /// The name to answer with for the name that was asked for.
    ///
    /// # Errors
    /// A name that is not this model's.
    pub fn resolve(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let Some(asked) = asked else { return Ok(self.name().to_owned()) };
        // Ollama's clients write the tag.
        let known = |name: &String| name == asked || asked.strip_suffix(":latest") == Some(name.as_str());
        match self.names.iter().any(known) {
            true => Ok(asked.to_owned()),
            false => Err(ApiError::unknown_model(asked)),
        }
    }

    /// # Errors
    /// A vocabulary without harmony's control tokens.
    pub fn harmony(&self) -> Result<Harmony<'_>, ApiError> {
        let explain = |error: MissingControlToken| {
            ApiError::bad_request(format!("This model cannot chat: {error}. `/v1/completions` can continue text."))
        };
        Harmony::new(&self.tokenizer).map_err(explain)
    }

    /// The prompt of a conversation. `param` is the field that holds it.
    ///
    /// # Errors
    /// A conversation that the context cannot hold, which is refused without being encoded, or as [`Model::harmony`].
    pub fn prompt(&self, messages: &[Message], param: &str) -> Result<Vec<u32>, ApiError> {
        let harmony = self.harmony()?;
        self.expect_room(harmony.least_prompt_tokens(messages), param)?;
        Ok(harmony.render_prompt(messages))
    }

    /// The tokens of raw text, in which control tokens stand for themselves. `param` is the field that holds it.
    ///
    /// # Errors
    /// A text that the context cannot hold, which is refused without being encoded.
    pub fn encode(&self, text: &str, param: &str) -> Result<Vec<u32>, ApiError> {
        self.expect_room(self.tokenizer.least_tokens_with_control(text), param)?;
        Ok(self.tokenizer.encode_with_control(text))
    }

    /// Room for `least` tokens or more, and for one to generate.
    fn expect_room(&self, least: usize, param: &str) -> Result<(), ApiError> {
        let context = self.handle.context();
        match least < context {
            true => Ok(()),
            false => Err(ApiError::context_exceeded(context, &format!("at least {least}"), param)),
        }
    }

    /// The date that the system message tells.
    pub fn date(&self) -> String {
        self.date.clone().unwrap_or_else(|| time::OffsetDateTime::now_utc().date().to_string())
    }

    /// Tokens that may be generated after a prompt: what the request allows, as far as the context reaches.
    pub fn room(&self, prompt: usize, asked: Option<usize>) -> usize {
        let left = self.handle.context().saturating_sub(prompt).max(1);
        asked.map_or(left, |tokens| tokens.min(left))
    }
}

/// How far the server is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// What runs is finished, nothing new begins.
    Draining,
    /// What still runs is broken off.
    Stopping,
}

pub struct App {
    pub settings: Settings,
    model: OnceLock<Model>,
    phase: watch::Sender<Phase>,
    /// Requests that generate.
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

    /// From now on requests are served. Only the first model counts.
    pub fn ready(&self, model: Model) {
        let _ = self.model.set(model);
    }

    /// The model, if requests are served.
    ///
    /// # Errors
    /// A server that is not ready yet, or no longer.
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

    /// The model, even if no requests are taken any more.
    pub fn loaded(&self) -> Option<&Model> {
        self.model.get()
    }

    /// Takes no new work from now on.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
        if let Some(model) = self.loaded() {
            model.handle.drain();
        }
    }

    /// Breaks off what still runs.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Stopping);
    }

    /// Ends when work is to be broken off.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.subscribe();
        async move {
            // An error says that the server is gone altogether.
            let _ = phase.wait_for(|phase| *phase == Phase::Stopping).await;
        }
    }

    /// Counts a request that generates for as long as the guard lives.
    pub fn generating(self: &Arc<App>) -> Generating {
        self.generating.fetch_add(1, Ordering::Relaxed);
        Generating(self.clone())
    }

    pub fn is_idle(&self) -> bool {
        self.generating.load(Ordering::Relaxed) == 0
    }
}

/// A request that generates.
pub struct Generating(Arc<App>);

impl Drop for Generating {
    fn drop(&mut self) {
        self.0.generating.fetch_sub(1, Ordering::Relaxed);
    }
}
