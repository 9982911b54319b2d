//! The runs of one HTTP request, each of which generates one text. They are submitted together, received as one stream of events, and
//! cancelled together.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::app::{App, Generating, Model};
use super::error::ApiError;
use super::metrics::Outcome;
use super::record::Record;
use super::stream::{ChunkSender, Disconnected, Frames};
use crate::request::{Event, Finish, Refused, Request};

/// Interval between keep-alive messages while nothing is generated.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Builds an answer from the events of its runs.
pub trait Answer {
    /// Writes the part before the first token.
    fn begin(&mut self, frames: &mut Frames);

    /// Processes an event of a run and writes what it adds to the answer. Failures and passed deadlines are handled by the caller.
    fn take(&mut self, run: usize, event: Event, frames: &mut Frames) -> Flow;

    /// Writes the part after the last token.
    fn end(&mut self, frames: &mut Frames);

    /// Writes an error.
    fn fail(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.fail(error);
        frames.done();
    }
}

/// Whether a run should continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// The answer of this run is complete.
    Stop,
}

/// Running generations. Dropping them cancels them and frees their memory.
pub struct Runs {
    app: Arc<App>,
    record: Record,
    receiver: mpsc::Receiver<(usize, Event)>,
    runs: Vec<Run>,
    _generating: Generating,
}

struct Run {
    task: AbortHandle,
    prompt_tokens: usize,
    started: Option<Instant>,
    first: Option<Instant>,
    tokens: usize,
    is_over: bool,
}

impl Runs {
    /// Submits all requests, or none of them. `param` is the field that contains the prompt.
    ///
    /// # Errors
    /// A prompt fills the context, or the scheduler refuses a request.
    pub fn submit(
        app: &Arc<App>,
        model: &Model,
        record: &Record,
        requests: Vec<Request>,
        param: &str,
    ) -> Result<Runs, ApiError> {
        let context = model.handle.context();
        if let Some(prompt) = requests.iter().map(|request| request.prompt.len()).find(|&prompt| prompt >= context) {
            // At least one generated token must fit after the prompt.
            return Err(ApiError::refused(Refused::PromptTooLong { prompt, context }, param));
        }
        let deadline = app.settings.answer_time.and_then(|time| Instant::now().checked_add(time));
        let generating = app.generating();
        let (sender, receiver) = mpsc::channel(64);
        // On an early return, the accepted requests are dropped, which cancels them.
        let mut accepted = Vec::new();
        for mut request in requests {
            let prompt_tokens = request.prompt.len();
            request.deadline = request.deadline.or(deadline);
            let events = model.handle.submit(request).map_err(|refused| {
                app.metrics.refused();
                ApiError::refused(refused, param)
            })?;
            accepted.push((prompt_tokens, events));
        }
        let runs = accepted.into_iter().enumerate().map(|(index, (prompt_tokens, mut events))| {
            let sender = sender.clone();
            let task = tokio::spawn(async move {
                loop {
                    let broken = || Event::Finished(Finish::Failed("the engine stopped".into()));
                    let event = events.next().await.unwrap_or_else(broken);
                    let is_last = matches!(event, Event::Finished(_));
                    if sender.send((index, event)).await.is_err() || is_last {
                        return;
                    }
                }
            });
            Run { task: task.abort_handle(), prompt_tokens, started: None, first: None, tokens: 0, is_over: false }
        });
        let runs: Vec<Run> = runs.collect();
        record.facts().prompt_tokens = runs.iter().map(|run| run.prompt_tokens).sum();
        Ok(Runs { app: app.clone(), record: record.clone(), receiver, runs, _generating: generating })
    }

    /// The next event of any run; `None` when all runs have ended.
    async fn next(&mut self) -> Option<(usize, Event)> {
        while self.runs.iter().any(|run| !run.is_over) {
            let (index, event) = self.receiver.recv().await?;
            // A stopped run may still have events in the queue.
            if self.runs[index].is_over {
                continue;
            }
            self.observe(index, &event);
            return Some((index, event));
        }
        None
    }

    fn observe(&mut self, index: usize, event: &Event) {
        let now = Instant::now();
        let run = &mut self.runs[index];
        match event {
            Event::Started { cached_tokens } => {
                run.started = Some(now);
                self.record.facts().cached_tokens += cached_tokens;
            }
            Event::Token { .. } => {
                run.tokens += 1;
                if run.first.is_none() {
                    run.first = Some(now);
                    self.app.metrics.first_token(now - run.started.unwrap_or(now));
                }
                let mut facts = self.record.facts();
                facts.tokens += 1;
                if facts.first_token.is_none() {
                    facts.first_token = Some(self.record.elapsed());
                }
            }
            Event::Finished(finish) => {
                let outcome = match finish {
                    Finish::Stop(_) => Outcome::Stop,
                    Finish::Length => Outcome::Length,
                    Finish::Deadline => Outcome::Abort,
                    Finish::Failed(_) => Outcome::Error,
                };
                self.over(index, outcome);
            }
        }
    }

    /// Records the end of a run.
    fn over(&mut self, index: usize, outcome: Outcome) {
        let run = &mut self.runs[index];
        if std::mem::replace(&mut run.is_over, true) {
            return;
        }
        run.task.abort();
        let decode = run.first.map(|first| first.elapsed());
        self.app.metrics.finished(outcome, run.prompt_tokens, run.tokens, decode);
        self.record.facts().finish = Some(outcome.name());
    }

    /// Processes all runs to their end. With a sender, chunks are written as they arrive.
    ///
    /// # Errors
    /// The client disconnected, a run failed or passed its deadline, or the server is stopping.
    pub async fn drive<A: Answer>(
        &mut self,
        answer: &mut A,
        frames: &mut Frames,
        sender: Option<&ChunkSender>,
    ) -> Result<(), Incomplete> {
        answer.begin(frames);
        let stopped = self.app.stopped();
        tokio::pin!(stopped);
        loop {
            if let Some(sender) = sender {
                sender.flush(frames).await?;
            }
            let event = tokio::select! {
                biased;
                () = disconnected(sender) => return Err(Incomplete::Disconnected),
                () = &mut stopped => {
                    return Err(Incomplete::Failed(ApiError::unavailable("The server is shutting down.")));
                }
                event = self.next() => event,
                () = sleep(KEEP_ALIVE) => {
                    if let Some(sender) = sender {
                        sender.keep_alive(frames.form).await?;
                    }
                    continue;
                }
            };
            match event {
                None => break,
                Some((_, Event::Finished(Finish::Failed(message)))) => {
                    return Err(Incomplete::Failed(ApiError::server(format!("The answer failed: {message}."))));
                }
                Some((_, Event::Finished(Finish::Deadline))) => return Err(Incomplete::Failed(ApiError::timed_out())),
                Some((run, event)) => {
                    if answer.take(run, event, frames) == Flow::Stop {
                        self.over(run, Outcome::Stop);
                    }
                }
            }
        }
        answer.end(frames);
        match sender {
            Some(sender) => Ok(sender.flush(frames).await?),
            None => Ok(()),
        }
    }

    /// As [`Runs::drive`], for a streamed answer: an error is written to the stream.
    pub async fn write<A: Answer>(mut self, answer: &mut A, frames: &mut Frames, sender: &ChunkSender) {
        if let Err(Incomplete::Failed(error)) = self.drive(answer, frames, Some(sender)).await {
            answer.fail(&error, frames);
            let _ = sender.flush(frames).await;
        }
    }

    /// As [`Runs::drive`], for an answer that is returned as a whole.
    ///
    /// # Errors
    /// A run failed or passed its deadline, or the server is stopping.
    pub async fn gather<A: Answer>(mut self, answer: &mut A) -> Result<(), ApiError> {
        let mut frames = Frames::new(super::stream::Form::Silent);
        self.drive(answer, &mut frames, None).await.map_err(|incomplete| match incomplete {
            Incomplete::Failed(error) => error,
            Incomplete::Disconnected => ApiError::server("the client disconnected"),
        })
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        for index in 0..self.runs.len() {
            self.over(index, Outcome::Abort);
        }
    }
}

/// Why an answer is incomplete.
#[derive(Debug)]
pub enum Incomplete {
    Disconnected,
    Failed(ApiError),
}

impl From<Disconnected> for Incomplete {
    fn from(_: Disconnected) -> Incomplete {
        Incomplete::Disconnected
    }
}

async fn disconnected(sender: Option<&ChunkSender>) {
    match sender {
        Some(sender) => sender.closed().await,
        None => pending().await,
    }
}
