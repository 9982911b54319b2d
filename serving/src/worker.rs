//! The thread that owns the engine, and the handle through which the rest of the program uses it.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use phase2_forward::{Engine, EngineError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub use crate::request::{Event, Finish, Refused, Request};
pub use crate::scheduler::Options;
use crate::scheduler::{Activity, RequestId, Scheduler};
use crate::spill::Spill;
pub use crate::statistics::{Finished, Histogram, Statistics};
use crate::warm_up::WarmUp;

/// Interval between checks for completed reads and writes, while nothing is computed.
const FILES_POLL: Duration = Duration::from_millis(1);

/// Submits requests to the engine's thread. Clones share the thread, which ends when the last of them is dropped and all requests have
/// ended.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    arrivals: Sender<Message>,
}

/// State shared by the thread and the handles.
#[derive(Debug)]
struct Shared {
    vocab: usize,
    context: usize,
    max_running: usize,
    /// The most requests that may be running or waiting.
    most: usize,
    alive: AtomicUsize,
    draining: AtomicBool,
    /// Why the engine has failed.
    failure: OnceLock<String>,
    statistics: Mutex<Statistics>,
}

/// The events of one request, in order. Dropping this cancels the request.
#[derive(Debug)]
pub struct Events {
    events: UnboundedReceiver<Event>,
}

/// A message to the thread.
enum Message {
    Request(Box<Arrival>),
    /// Writes the prefix cache to disk, as far as time allows, and then drops the sender.
    SpillAll {
        until: Instant,
        done: Sender<()>,
    },
}

/// A request sent to the thread.
struct Arrival {
    request: Request,
    client: Client,
    at: Instant,
}

/// The channel to the client of a request.
struct Client {
    events: UnboundedSender<Event>,
    alive: Alive,
}

/// Counts a request in [`Shared::alive`] until it is dropped.
struct Alive(Arc<Shared>);

impl Alive {
    /// `None` if too many requests are alive.
    fn begin(shared: &Arc<Shared>) -> Option<Alive> {
        let one_more = |alive: usize| (alive < shared.most).then_some(alive + 1);
        let begun = shared.alive.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        begun.is_ok().then(|| Alive(Arc::clone(shared)))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Handle {
    /// Starts the thread.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    pub fn start(engine: Box<dyn Engine>, options: Options) -> Handle {
        Handle::start_with(engine, options, None)
    }

    /// As [`Handle::start`], with a folder for sequences that do not fit in the prefix cache. The engine must support saving sequences.
    ///
    /// # Panics
    /// As [`Handle::start`].
    pub fn start_with(engine: Box<dyn Engine>, options: Options, disk: Option<Spill>) -> Handle {
        let mut scheduler = Scheduler::new(engine.as_ref(), &options);
        if let Some(disk) = disk {
            scheduler = scheduler.spill_to(disk);
        }
        let max_running = scheduler.max_running();
        let shared = Arc::new(Shared {
            vocab: engine.config().vocab,
            context: scheduler.context(),
            max_running,
            most: max_running.saturating_add(options.max_waiting),
            alive: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            failure: OnceLock::new(),
            statistics: Mutex::new(scheduler.statistics(engine.as_ref())),
        });
        let (arrivals, receiver) = mpsc::channel();
        let warm_up = if options.warm_up { WarmUp::new(engine.capacity(), max_running) } else { WarmUp::none() };
        let worker = Worker { engine, scheduler, arrivals: receiver, clients: HashMap::new(), next: 0, warm_up };
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || run(worker, &of_thread));
        thread.expect("a thread for the engine");
        Handle { shared, arrivals }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// The request cannot be fulfilled, the queue is full, the server is shutting down, or its engine has failed.
    pub fn submit(&self, request: Request) -> Result<Events, Refused> {
        if self.is_draining() {
            return Err(Refused::Draining);
        }
        request.check(self.shared.vocab, self.shared.context)?;
        let full = || Refused::QueueFull { retry_after: self.retry_after() };
        let alive = Alive::begin(&self.shared).ok_or_else(full)?;
        let (sender, events) = unbounded_channel();
        let client = Client { events: sender, alive };
        let arrival = Arrival { request, client, at: Instant::now() };
        self.arrivals.send(Message::Request(Box::new(arrival))).map_err(|_| Refused::Draining)?;
        Ok(Events { events })
    }

    /// Counters and gauges after the last step.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses new requests from now on. Accepted requests continue.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
    }

    /// Whether new requests are refused.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Acquire) || self.failure().is_some()
    }

    /// Writes the prefix cache to disk before the server exits; returns when that is done, or after the time limit. Does nothing without a
    /// folder.
    pub fn spill_all(&self, within: Duration) {
        let (done, waiting) = mpsc::channel();
        let until = Instant::now() + within;
        if self.arrivals.send(Message::SpillAll { until, done }).is_ok() {
            // The sender is dropped after the write, or when the thread ends.
            let _ = waiting.recv_timeout(within);
        }
    }

    /// Number of requests that have not ended. A draining server can exit when it is 0.
    pub fn alive(&self) -> usize {
        self.shared.alive.load(Ordering::Acquire)
    }

    /// Why the engine has failed; `None` while it works.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }

    /// The most tokens of a prompt and its text: limited by the model's context and the cache.
    pub fn context(&self) -> usize {
        self.shared.context
    }

    pub fn vocab(&self) -> usize {
        self.shared.vocab
    }

    /// An estimate of when a new request can be accepted: the time until those waiting now have run.
    fn retry_after(&self) -> Duration {
        let Statistics { waiting, request_time, .. } = self.statistics();
        let rounds = (waiting + 1) as f64 / self.shared.max_running as f64;
        Duration::from_secs_f64((request_time.mean().unwrap_or(1.0) * rounds).clamp(1.0, 60.0))
    }
}

impl Events {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// As [`Events::next`], for threads outside an asynchronous runtime.
    ///
    /// # Panics
    /// If called inside a runtime.
    pub fn next_blocking(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

/// The thread's data.
struct Worker {
    engine: Box<dyn Engine>,
    scheduler: Scheduler,
    arrivals: Receiver<Message>,
    clients: HashMap<RequestId, Client>,
    next: RequestId,
    warm_up: WarmUp,
}

/// The thread's main function: serves until the engine fails, or no handle is left and all requests have ended. After a failure, ends all
/// requests with an error.
fn run(mut worker: Worker, shared: &Shared) {
    let served = catch_unwind(AssertUnwindSafe(|| worker.serve(shared)));
    let failure = match served {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("the engine failed: {}", text_of(panic.as_ref())),
    };
    let failure = shared.failure.get_or_init(|| failure);
    let Worker { engine, scheduler, arrivals, clients, .. } = worker;
    let ended = |client: &Client| {
        // Errors are ignored: the client may have disconnected.
        let _ = client.events.send(Event::Finished(Finish::Failed(failure.clone())));
    };
    clients.values().for_each(ended);
    drop(clients);
    // Dropping a failed engine may panic again.
    let _ = catch_unwind(AssertUnwindSafe(|| drop((engine, scheduler))));
    for message in arrivals {
        if let Message::Request(arrival) = message {
            ended(&arrival.client);
        }
    }
}

impl Worker {
    /// Runs the scheduler's loop until no handle is left and all requests have ended.
    fn serve(&mut self, shared: &Shared) -> Result<(), EngineError> {
        loop {
            match self.scheduler.activity() {
                Activity::Computing => {
                    let spare = self.scheduler.spare_time(Instant::now());
                    if !spare.is_zero()
                        && let Ok(message) = self.arrivals.recv_timeout(spare)
                    {
                        self.welcome(message);
                    }
                }
                Activity::Files => match self.arrivals.recv_timeout(FILES_POLL) {
                    Ok(message) => self.welcome(message),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) if self.scheduler.is_idle() => return Ok(()),
                    Err(RecvTimeoutError::Disconnected) => std::thread::sleep(FILES_POLL),
                },
                Activity::Nothing => match self.arrivals.try_recv() {
                    Ok(message) => self.welcome(message),
                    Err(TryRecvError::Disconnected) => return Ok(()),
                    Err(TryRecvError::Empty) if self.warm_up.advance(self.engine.as_mut())? => continue,
                    Err(TryRecvError::Empty) => {
                        let Ok(message) = self.arrivals.recv() else { return Ok(()) };
                        self.welcome(message);
                    }
                },
            }
            while let Ok(message) = self.arrivals.try_recv() {
                self.welcome(message);
            }
            self.cancel_abandoned();
            let advanced = self.scheduler.advance(self.engine.as_mut(), &Instant::now);
            self.publish(shared);
            self.deliver();
            advanced?;
        }
    }

    fn welcome(&mut self, message: Message) {
        let Arrival { request, client, at } = match message {
            Message::Request(arrival) => *arrival,
            Message::SpillAll { until, done } => {
                self.scheduler.spill_all(self.engine.as_mut(), until);
                return drop(done);
            }
        };
        let id = self.next;
        self.next += 1;
        self.clients.insert(id, client);
        self.scheduler.add(id, request, at);
    }

    /// Cancels requests whose receivers were dropped.
    fn cancel_abandoned(&mut self) {
        let abandoned = |(id, client): (&RequestId, &Client)| client.events.is_closed().then_some(*id);
        let abandoned: Vec<RequestId> = self.clients.iter().filter_map(abandoned).collect();
        for id in abandoned {
            self.clients.remove(&id);
            self.scheduler.cancel(self.engine.as_mut(), id);
        }
    }

    fn deliver(&mut self) {
        for (id, event) in self.scheduler.take_events() {
            // Errors are ignored: `cancel_abandoned` notices a disconnected client before the next step.
            if !matches!(event, Event::Finished(_)) {
                let _ = self.clients.get(&id).map(|client| client.events.send(event));
            } else if let Some(Client { events, alive }) = self.clients.remove(&id) {
                // Dropped first, so that a client that sees the end can submit another request immediately.
                drop(alive);
                let _ = events.send(event);
            }
        }
    }

    fn publish(&self, shared: &Shared) {
        let statistics = self.scheduler.statistics(self.engine.as_ref());
        *shared.statistics.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
    }
}

/// The message of a panic.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    match panic.downcast_ref::<String>() {
        Some(text) => text,
        None => panic.downcast_ref::<&str>().copied().unwrap_or("it panicked"),
    }
}
