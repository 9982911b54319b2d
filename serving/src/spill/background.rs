//! A thread that executes jobs in order and returns their results.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

/// A thread with jobs `J` and results `R`. Dropping this discards queued jobs and waits for the current one.
#[derive(Debug)]
pub(super) struct Background<J, R> {
    jobs: Option<Sender<J>>,
    results: Option<Receiver<R>>,
    /// Set when this is dropped: the thread then starts no further job.
    dropped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The thread has ended: a job panicked.
#[derive(Debug)]
pub(super) struct ThreadEnded;

impl<J: Send + 'static, R: Send + 'static> Background<J, R> {
    /// Starts a thread that executes each job with `work`, which may return no result. While `waiting` results have not been taken, the
    /// thread pauses at the end of the next job that returns one.
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
        let dropped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&dropped);
        let run = move || {
            for job in queue {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                if let Some(result) = work(job)
                    && sender.send(result).is_err()
                {
                    return;
                }
            }
        };
        let thread = Builder::new().name(name.into()).spawn(run)?;
        Ok(Background { jobs: Some(jobs), results: Some(results), dropped, thread: Some(thread) })
    }

    /// Queues a job. If the thread has ended, the job is lost.
    pub fn send(&self, job: J) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }

    /// The next result, if it has arrived.
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
        self.dropped.store(true, Ordering::Release);
        // Without a receiver the thread also ends while it waits to return a result.
        self.results = None;
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn dropping_discards_queued_jobs() {
        let (started, is_started) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let ran = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&ran);
        let work = move |()| {
            count.fetch_add(1, Ordering::Relaxed);
            started.send(()).expect("the test waits");
            let _ = released.recv();
            None::<()>
        };
        let background = Background::start("test", 1, work).expect("starts");
        for _ in 0..3 {
            background.send(());
        }
        is_started.recv().expect("the first job runs");
        let dropped = Arc::clone(&background.dropped);
        let dropping = thread::spawn(move || drop(background));
        while !dropped.load(Ordering::Acquire) {
            thread::yield_now();
        }
        drop(release);
        dropping.join().expect("dropped");
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    }
}
