//! The thread that owns the engine: if it fails or receivers are dropped, no client waits forever.

#[allow(dead_code, reason = "each test uses a part of it")]
mod fake;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use fake::{Failure, Fake, VOCAB, expected, request};
use phase2_forward::{Engine, EngineError, Input, Outcome, SequenceId, Ticket, Work, delegate_engine};
use phase3_kvcache::SamplingParams;
use serving::request::{Event, Finish, Refused, Request};
use serving::worker::{Events, Handle, Options};

/// An engine that submits a step for each message on `gate`, or without waiting when the sender is gone.
struct Gated {
    inner: Fake,
    gate: Receiver<()>,
}

fn gated() -> (Box<Gated>, Sender<()>) {
    let (key, gate) = channel();
    (Box::new(Gated { inner: Fake::new(400, 2), gate }), key)
}

impl Engine for Gated {
    delegate_engine!(inner: config, capacity, length, collect, fork, truncate, release);

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        // If the sender is gone, this returns at once.
        let _ = self.gate.recv();
        self.inner.submit(work)
    }
}

fn start(engine: Fake) -> Handle {
    Handle::start(Box::new(engine), Options::default())
}

/// All tokens, and why there are no more.
fn received(mut events: Events) -> (Vec<u32>, Finish) {
    let mut tokens = Vec::new();
    while let Some(event) = events.next_blocking() {
        match event {
            Event::Started { .. } => assert!(tokens.is_empty()),
            Event::Token { id, logprobs } => {
                assert!(logprobs.is_some_and(|logprobs| logprobs.token < 0.0));
                tokens.push(id);
            }
            Event::Finished(finish) => {
                assert!(events.next_blocking().is_none(), "an event after the last one");
                return (tokens, finish);
            }
        }
    }
    panic!("the events ended without a reason");
}

fn with_logprobs(prompt: &[u32], max_tokens: usize) -> Request {
    Request { logprobs: Some(1), ..request(prompt, max_tokens) }
}

/// Waits until another thread has done something.
fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn many_threads_share_an_engine() {
    let handle = start(Fake::new(120, 2));
    let submit_ten = |thread: u32| {
        let handle = handle.clone();
        move || {
            for number in 0..10 {
                let request = with_logprobs(&[thread, number, 3], 20);
                let events = handle.submit(request.clone()).expect("room");
                assert_eq!(received(events), expected(&request, handle.context()));
            }
        }
    };
    let threads: Vec<_> = (0..8).map(|thread| std::thread::spawn(submit_ten(thread))).collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no assertion failed"));
    let statistics = handle.statistics();
    assert_eq!((statistics.finished.length, statistics.generated_tokens), (80, 80 * 20));
    assert_eq!((statistics.ttft.count(), statistics.inter_token.count()), (80, 80 * 19));
    assert_eq!((statistics.prompt_tokens, handle.alive()), (80 * 3, 0));
}

#[test]
fn the_queue_is_bounded() {
    let (engine, key) = gated();
    let handle = Handle::start(engine, Options { max_running: 1, max_waiting: 2, ..Options::default() });
    let requests: Vec<Request> = (0..3).map(|token| with_logprobs(&[token], 3)).collect();
    let taken: Vec<Events> = requests.iter().map(|request| handle.submit(request.clone()).expect("room")).collect();
    let refused = handle.submit(request(&[1], 3)).expect_err("no room");
    assert!(matches!(refused, Refused::QueueFull { retry_after } if retry_after >= Duration::from_secs(1)));
    drop(key);
    for (events, request) in taken.into_iter().zip(&requests) {
        assert_eq!(received(events), expected(request, handle.context()));
    }
    assert!(handle.submit(request(&[1], 3)).is_ok());
}

/// An engine that reports the number of sequences of its largest step and its free pages.
struct Observed {
    inner: Fake,
    most_sequences: Arc<AtomicUsize>,
    pages_free: Arc<AtomicUsize>,
}

impl Engine for Observed {
    delegate_engine!(inner: config, capacity, length, collect, fork, truncate);

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        self.most_sequences.fetch_max(work.len(), Ordering::Relaxed);
        self.inner.submit(work)
    }

    fn release(&mut self, sequence: SequenceId) {
        self.inner.release(sequence);
        self.pages_free.store(self.inner.capacity().pages_free, Ordering::Relaxed);
    }
}

#[test]
fn warm_up_computes_the_largest_step_and_frees_its_pages() {
    let (most_sequences, pages_free) = (Arc::default(), Arc::default());
    let engine = Observed {
        inner: Fake::new(400, 2),
        most_sequences: Arc::clone(&most_sequences),
        pages_free: Arc::clone(&pages_free),
    };
    let options = Options { max_running: 6, prefix_cache: false, warm_up: true, ..Options::default() };
    let handle = Handle::start(Box::new(engine), options);
    until("a step of 6 sequences", || most_sequences.load(Ordering::Relaxed) == 6);
    until("every page is free", || pages_free.load(Ordering::Relaxed) == 400);
    let request = with_logprobs(&[1, 2, 3], 30);
    assert_eq!(received(handle.submit(request.clone()).expect("room")), expected(&request, handle.context()));
    assert_eq!(handle.statistics().generated_tokens, 30);
}

/// An engine whose steps take 20 ms each, one after another.
struct Slow {
    inner: Fake,
    ends: VecDeque<Instant>,
    last_end: Instant,
    collected: Arc<AtomicUsize>,
    /// The number of steps that were collected before the last step with a prompt was submitted.
    before_prompt: Arc<AtomicUsize>,
}

impl Engine for Slow {
    delegate_engine!(inner: config, capacity, length, fork, truncate, release);

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        if work.iter().any(|item| matches!(item.input, Input::Tokens(tokens) if tokens.len() > 1)) {
            self.before_prompt.store(self.collected.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.last_end = self.last_end.max(Instant::now()) + Duration::from_millis(20);
        self.ends.push_back(self.last_end);
        self.inner.submit(work)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        let end = self.ends.pop_front().expect("a step in flight");
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        self.collected.fetch_add(1, Ordering::Relaxed);
        self.inner.collect(ticket)
    }
}

/// A request that arrives early in a decoding step takes part in the step after it. If two steps were always in flight, it would take part
/// only in the step after the next. On a busy machine some of the requests may arrive late, so not all of them must succeed.
#[test]
fn a_prompt_joins_the_step_after_the_current_one() {
    let (collected, before_prompt) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let engine = Slow {
        inner: Fake::new(400, 2),
        ends: VecDeque::new(),
        last_end: Instant::now(),
        collected: Arc::clone(&collected),
        before_prompt: Arc::clone(&before_prompt),
    };
    let handle = Handle::start(Box::new(engine), Options::default());
    let mut decoding = handle.submit(request(&[1, 2, 3], 900)).expect("room");
    let mut joined_next = 0;
    for token in 0..8 {
        // Seven events of the decoding request: first its start, or the token of a step with a prompt; at least five are tokens of decoding
        // steps, of which the scheduler must measure four before it waits for requests.
        (0..7).for_each(|_| assert!(decoding.next_blocking().is_some()));
        std::thread::sleep(Duration::from_millis(4));
        let before = collected.load(Ordering::Relaxed);
        let mut joining = handle.submit(request(&[10 + token, 4, 5], 1)).expect("room");
        while joining.next_blocking().is_some() {}
        joined_next += usize::from(before_prompt.load(Ordering::Relaxed) == before);
    }
    assert!(joined_next > 1, "{joined_next}");
}

#[test]
fn invalid_requests_are_refused() {
    let handle = start(Fake::new(400, 1));
    let refused = |request: Request| handle.submit(request).expect_err("an invalid request");
    let context = handle.context();
    assert_eq!(refused(request(&[], 3)), Refused::EmptyPrompt);
    let long = request(&vec![1; context + 1], 3);
    assert_eq!(refused(long), Refused::PromptTooLong { prompt: context + 1, context });
    assert_eq!(handle.vocab(), VOCAB);
    assert!(matches!(refused(request(&[VOCAB as u32], 3)), Refused::Invalid(_)));
    assert!(matches!(refused(Request { logprobs: Some(21), ..request(&[1], 3) }), Refused::Invalid(_)));
    let sampling = SamplingParams { repetition_penalty: 0.0, ..SamplingParams::default() };
    assert!(matches!(refused(Request { sampling, ..request(&[1], 3) }), Refused::Invalid(_)));
}

#[test]
fn dropped_receiver_cancels_its_request() {
    let (engine, key) = gated();
    let handle = Handle::start(engine, Options { max_running: 1, ..Options::default() });
    let [running, waiting] = [1, 2].map(|token| handle.submit(request(&[token], 900)).expect("room"));
    let last = with_logprobs(&[3], 3);
    let drained = handle.submit(last.clone()).expect("room");
    drop((running, waiting));
    drop(key);
    assert_eq!(received(drained), expected(&last, handle.context()));
    until("no request is alive", || handle.alive() == 0);
    let statistics = handle.statistics();
    assert_eq!(statistics.finished.cancelled, 2);
    assert!(statistics.generated_tokens < 900);
}

#[test]
fn draining_worker_finishes_accepted_requests() {
    let (engine, key) = gated();
    let handle = Handle::start(engine, Options::default());
    let taken = with_logprobs(&[1, 2], 30);
    let events = handle.submit(taken.clone()).expect("room");
    assert!(!handle.is_draining());
    handle.drain();
    assert!(handle.is_draining());
    assert_eq!(handle.submit(request(&[1], 3)).expect_err("draining"), Refused::Draining);
    drop(key);
    assert_eq!(received(events), expected(&taken, handle.context()));
}

#[test]
fn engine_failure_ends_every_request() {
    for (failure, sentence) in [(Failure::Lost, "lost"), (Failure::Panic, "a test's panic")] {
        for after in [0, 1, 5] {
            let handle = start(Fake::failing(after, failure));
            let taken: Vec<_> = (0..6).map(|token| handle.submit(with_logprobs(&[token, 1], 50))).collect();
            let count = taken.iter().filter(|taken| taken.is_ok()).count();
            assert!(count > 0);
            for events in taken.into_iter().flatten() {
                let (tokens, finish) = received(events);
                assert!(tokens.len() <= after);
                assert!(matches!(&finish, Finish::Failed(text) if text.contains(sentence)), "{finish:?}");
            }
            assert!(handle.failure().is_some_and(|text| text.contains(sentence)));
            assert!(handle.is_draining());
            assert_eq!(handle.submit(request(&[1], 3)).expect_err("no engine"), Refused::Draining);
            until("no request is alive", || handle.alive() == 0);
        }
    }
}

#[test]
fn thread_ends_with_the_last_handle() {
    let (engine, key) = gated();
    let handle = Handle::start(engine, Options::default());
    let other = handle.clone();
    drop(handle);
    let taken = with_logprobs(&[4], 5);
    let events = other.submit(taken.clone()).expect("room");
    let context = other.context();
    drop(other);
    // The accepted request ends normally; then the engine is dropped, and with it the receiver of `gate`.
    assert!((0..5).all(|_| key.send(()).is_ok()));
    assert_eq!(received(events), expected(&taken, context));
    until("the engine was dropped", || key.send(()).is_err());
}
