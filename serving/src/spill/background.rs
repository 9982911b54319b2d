//! A thread that executes jobs in order and returns their results.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

/// A thread with jobs `J` and results `R`. Dropping this waits for the thread, which ends with the first job whose result nobody can take:
/// queued jobs without a result, such as deletions, are still executed until then.
#[derive(Debug)]
pub(super) struct Background<J, R> {
    jobs: Option<Sender<J>>,
    results: Option<Receiver<R>>,
    thread: Option<JoinHandle<()>>,
}

/// The thread has ended: a job panicked.
#[derive(Debug)]
pub(super) struct ThreadEnded;

impl<J: Send + 'static, R: Send + 'static> Background<J, R> {
    /// Starts a thread that executes each job with `work`, which may return no result. The thread pauses while `waiting` results have not
    /// been taken.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start(
        name: &str,
        waiting: usize,
        mut work: impl FnMut(J) -> Option<R> + Send + 'static,
    ) -> io::Result<Background<J, R>> {
        let (jobs, queue) = mpsc::channel();
        let (sender, results) = mpsc::sync_channel(waiting);
        let run = move || {
            for job in queue {
                if let Some(result) = work(job)
                    && sender.send(result).is_err()
                {
                    return;
                }
            }
        };
        let thread = Builder::new().name(name.into()).spawn(run)?;
        Ok(Background { jobs: Some(jobs), results: Some(results), thread: Some(thread) })
    }

    /// Queues a job. If the thread has ended, the job is lost.
    pub fn send(&self, job: J) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }

    /// A result, if there is one.
    ///
    /// # Errors
    /// The thread has ended; there will be no more results.
    pub fn take(&self) -> Result<Option<R>, ThreadEnded> {
        let results = self.results.as_ref().ok_or(ThreadEnded)?;
        match results.try_recv() {
            Ok(result) => Ok(Some(result)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(ThreadEnded),
        }
    }

    /// The next result, or `None` if it does not arrive in time.
    ///
    /// # Errors
    /// As [`Background::take`].
    pub fn wait(&self, until: Instant) -> Result<Option<R>, ThreadEnded> {
        let results = self.results.as_ref().ok_or(ThreadEnded)?;
        match results.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(result) => Ok(Some(result)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(ThreadEnded),
        }
    }
}

impl<J, R> Drop for Background<J, R> {
    fn drop(&mut self) {
        // Without a receiver the thread ends at the next result, even while it waits to return one.
        self.results = None;
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
