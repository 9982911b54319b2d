//! A worker: a Python process that runs a peer, MLX or llama.cpp. It handles one request at a time, each with a deadline.
//!
//! Separate threads write to its stdin and read its stdout and stderr, so that nothing here waits for a pipe. Any failure ends the process,
//! and every later request returns the same error. A request that the worker declines is not a failure: the process continues to run.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::frame::{BadFrame, Frame, encode, read};
use crate::peer::Launch;
use crate::protocol::{Header, Kind, Request};

/// Number of lines of the worker's stderr that the error quotes if its stdout ends, and the most bytes per line.
const LINES_KEPT: usize = 4;
const LINE_BYTES: u64 = 400;
/// How long a worker may take to exit after its stdin is closed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for the last output of a dead worker.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(500);

type Reply = Result<Frame, BadFrame>;
type StderrTail = Arc<Mutex<VecDeque<String>>>;

pub(crate) struct Worker {
    /// The peer's name in errors.
    title: &'static str,
    child: Child,
    /// `None` when the worker should exit.
    requests: Option<Sender<Vec<u8>>>,
    replies: Receiver<Reply>,
    /// The most bytes of payload that the reader accepts.
    most: Arc<AtomicU64>,
    stderr_tail: StderrTail,
    stderr: Option<thread::JoinHandle<()>>,
    /// Why the worker has ended; `None` while it runs.
    ended: Option<String>,
}

/// Why a request was not answered.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The worker has ended; the sentence says why.
    Ended(String),
    /// The worker cannot do what was requested, but continues to run.
    Declined(Kind, String),
}

impl Worker {
    /// Starts the process, which then waits for its first request.
    ///
    /// # Errors
    /// The Python cannot be started.
    pub fn start(launch: &Launch) -> Result<Worker, String> {
        let mut command = Command::new(&launch.python);
        // Isolated: the user's packages and the current directory are not searched. Packages must not download models.
        command.args(["-I", "-c", &launch.program]).env("HF_HUB_OFFLINE", "1").env("TOKENIZERS_PARALLELISM", "false");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let title = launch.peer.title();
        let mut child = command.spawn().map_err(|error| {
            let (python, variable) = (launch.python.display(), launch.peer.python_variable());
            format!(
                "{python} for {title} cannot be started: {error}; run `gptoss peers install`, or set {variable} to another Python"
            )
        })?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (requests, to_write) = channel();
        let (read_ones, replies) = channel();
        let (most, stderr_tail) = (Arc::new(AtomicU64::new(0)), StderrTail::default());
        thread::spawn(move || write_requests(stdin, &to_write));
        let limit = most.clone();
        thread::spawn(move || read_replies(stdout, &limit, &read_ones));
        let lines = stderr_tail.clone();
        let stderr = thread::spawn(move || keep_lines(stderr, &lines));
        Ok(Worker {
            title,
            child,
            requests: Some(requests),
            replies,
            most,
            stderr_tail,
            stderr: Some(stderr),
            ended: None,
        })
    }

    /// # Errors
    /// The worker has ended.
    pub fn check(&self) -> Result<(), String> {
        self.ended.clone().map_or(Ok(()), Err)
    }

    /// Sends a request and waits for its reply, whose payload must have `payload` bytes.
    ///
    /// # Errors
    /// The worker has ended or ends, does not reply within `within`, sends an invalid reply, or declines.
    pub fn ask(&mut self, request: &Request<'_>, payload: u64, within: Duration) -> Result<Frame, Refusal> {
        self.check().map_err(Refusal::Ended)?;
        match self.replies.try_recv() {
            Err(TryRecvError::Empty) => {}
            Ok(Ok(_)) => return Err(self.end("it sent a reply without a request".into())),
            Ok(Err(bad)) => return Err(self.end_badly(bad)),
            Err(TryRecvError::Disconnected) => return Err(self.end_badly(BadFrame::Ended)),
        }
        self.most.store(payload, Ordering::Release);
        let json = serde_json::to_vec(request).expect("requests hold numbers and text");
        // If the write fails the worker has ended, which the reader reports.
        let _ = self.requests.as_ref().map(|requests| requests.send(encode(&json)));
        let frame = match self.replies.recv_timeout(within) {
            Ok(Ok(frame)) => frame,
            Ok(Err(bad)) => return Err(self.end_badly(bad)),
            Err(RecvTimeoutError::Disconnected) => return Err(self.end_badly(BadFrame::Ended)),
            Err(RecvTimeoutError::Timeout) => {
                return Err(self.end(format!("it did not reply within {:.0} s", within.as_secs_f64().ceil())));
            }
        };
        let Header { bytes, error, kind, .. } = &frame.header;
        match error {
            Some(error) if *kind == Kind::Failed => Err(self.end(error.clone())),
            Some(error) => Err(Refusal::Declined(*kind, error.clone())),
            None if *bytes != payload => {
                Err(self.end(format!("its reply has {bytes} bytes where {payload} are expected")))
            }
            None => Ok(frame),
        }
    }

    /// Ends the worker with a reason, which this and every later request returns.
    pub fn end(&mut self, reason: String) -> Refusal {
        self.requests = None;
        // Errors are ignored: the process may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let sentence = format!("the {} worker failed: {reason}; restart to load the model again", self.title);
        Refusal::Ended(self.ended.insert(sentence).clone())
    }

    fn end_badly(&mut self, bad: BadFrame) -> Refusal {
        let reason = match bad {
            BadFrame::Invalid(reason) => reason,
            BadFrame::Ended => self.describe_exit(),
        };
        self.end(reason)
    }

    /// Describes a worker whose stdout has ended: its exit status, if it has exited, and its last output on stderr.
    fn describe_exit(&mut self) -> String {
        let deadline = Instant::now() + OUTPUT_TIMEOUT;
        while !self.is_over() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let status = match self.child.try_wait() {
            Ok(Some(status)) => format!("it ended ({status})"),
            _ => "it closed its stdout".into(),
        };
        let stderr_tail = self.stderr_tail.lock().unwrap_or_else(PoisonError::into_inner);
        match stderr_tail.back() {
            None => status,
            Some(_) => {
                format!("{status}; its last output: {}", stderr_tail.iter().cloned().collect::<Vec<_>>().join(" | "))
            }
        }
    }

    /// Whether the process has ended and all of its stderr was read.
    fn is_over(&mut self) -> bool {
        self.stderr.as_ref().is_none_or(|thread| thread.is_finished()) && matches!(self.child.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Worker {
    /// Closes the worker's stdin, so that it exits, and kills it if it does not.
    fn drop(&mut self) {
        self.requests = None;
        let deadline = Instant::now() + EXIT_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes requests until there are no more or the pipe is closed; then closes the worker's stdin.
fn write_requests(stdin: Option<ChildStdin>, requests: &Receiver<Vec<u8>>) {
    let Some(mut stdin) = stdin else { return };
    for request in requests {
        if stdin.write_all(&request).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

/// Reads replies until the first invalid one.
fn read_replies(stdout: Option<ChildStdout>, most: &AtomicU64, replies: &Sender<Reply>) {
    let Some(stdout) = stdout else { return };
    let mut stdout = BufReader::new(stdout);
    loop {
        let reply = read(&mut stdout, || most.load(Ordering::Acquire));
        let is_last = reply.is_err();
        if replies.send(reply).is_err() || is_last {
            return;
        }
    }
}

/// Keeps the last lines of stderr.
fn keep_lines(stderr: Option<impl Read>, stderr_tail: &Mutex<VecDeque<String>>) {
    let Some(stderr) = stderr else { return };
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A longer line counts as several lines.
        match stderr.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() {
            let mut stderr_tail = stderr_tail.lock().unwrap_or_else(PoisonError::into_inner);
            stderr_tail.push_back(text);
            let extra = stderr_tail.len().saturating_sub(LINES_KEPT);
            stderr_tail.drain(..extra);
        }
    }
}
