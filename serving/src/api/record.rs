//! Logs each request in one line on stderr, without its content.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;

/// The facts about a request. Its log line is written when the last copy is dropped, which for a stream is at its end.
#[derive(Clone)]
pub struct Record(Arc<Line>);

struct Line {
    id: String,
    method: String,
    path: String,
    client: String,
    quiet: bool,
    begin: Instant,
    facts: Mutex<Facts>,
}

/// Facts that become known during the request.
#[derive(Default)]
pub struct Facts {
    pub status: Option<StatusCode>,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub tokens: usize,
    pub first_token: Option<Duration>,
    /// Why generation ended.
    pub finish: Option<&'static str>,
}

impl Record {
    /// `client` is the name of the key or the address. `quiet` requests are logged only if they fail.
    pub fn begin(id: String, method: &str, path: &str, client: String, quiet: bool) -> Record {
        let (method, path) = (method.to_owned(), path.to_owned());
        Record(Arc::new(Line { id, method, path, client, quiet, begin: Instant::now(), facts: Mutex::default() }))
    }

    pub fn id(&self) -> &str {
        &self.0.id
    }

    pub fn client(&self) -> &str {
        &self.0.client
    }

    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the request arrived.
    pub fn elapsed(&self) -> Duration {
        self.0.begin.elapsed()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let facts = self.facts.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Without a status, the client disconnected before the response; nginx logs this as 499.
        let status = facts.status.map_or(499, |status| status.as_u16());
        if self.quiet && status == 200 {
            return;
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let mut line = format!(
            "time={time:.3} id={} client={} method={} path={} status={status} ms={:.1}",
            self.id,
            self.client,
            self.method,
            self.path,
            milliseconds(self.begin.elapsed())
        );
        if facts.prompt_tokens > 0 {
            let Facts { prompt_tokens, cached_tokens, tokens, .. } = facts;
            let _ = write!(line, " prompt={prompt_tokens} cached={cached_tokens} tokens={tokens}");
        }
        if let Some(first) = facts.first_token {
            let _ = write!(line, " first_ms={:.1}", milliseconds(first));
        }
        if let Some(finish) = facts.finish {
            let _ = write!(line, " finish={finish}");
        }
        // Errors are ignored: the server continues even if stderr is closed.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
