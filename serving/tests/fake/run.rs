//! Runs a scheduler on the fake engine and records the events of its requests.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use phase2_forward::{Engine, Sampling};
use phase3_kvcache::SamplingParams;
use serving::request::{Event, Finish, Request};
use serving::scheduler::{Activity, Options, RequestId, Scheduler};
use serving::spill::Spill;

use super::{Fake, POISON, expected};

pub const TURN: Duration = Duration::from_millis(1);

/// The events of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    pub cached: Option<usize>,
    pub tokens: Vec<u32>,
    pub finish: Option<Finish>,
}

pub struct Run {
    pub scheduler: Scheduler,
    pub engine: Fake,
    pub now: Instant,
    next: RequestId,
    pub received: BTreeMap<RequestId, Received>,
    /// The requests in the order in which they started, and in which they got their first tokens.
    pub started: Vec<RequestId>,
    pub spoken: Vec<RequestId>,
}

impl Run {
    pub fn new(engine: Fake, options: Options) -> Run {
        let (scheduler, now) = (Scheduler::new(&engine, &options), Instant::now());
        Run { scheduler, engine, now, next: 0, received: BTreeMap::new(), started: Vec::new(), spoken: Vec::new() }
    }

    /// Enables spilling to a folder.
    pub fn spill_to(mut self, disk: Spill) -> Run {
        self.scheduler = self.scheduler.spill_to(disk);
        self
    }

    /// One step in flight at a time, and memory for all requests.
    pub fn roomy() -> Run {
        Run::new(Fake::new(400, 1), Options::default())
    }

    pub fn add(&mut self, request: Request) -> RequestId {
        let id = self.next;
        self.next += 1;
        self.scheduler.add(id, request, self.now);
        id
    }

    pub fn turn(&mut self) {
        self.now += TURN;
        let now = self.now;
        self.scheduler.advance(&mut self.engine, &|| now).expect("an engine that does not fail");
        self.receive();
    }

    pub fn receive(&mut self) {
        for (id, event) in self.scheduler.take_events() {
            let received = self.received.entry(id).or_default();
            assert_eq!(received.finish, None, "an event after the last one");
            match event {
                Event::Started { cached_tokens } => {
                    assert_eq!(received.cached.replace(cached_tokens), None, "started twice");
                    self.started.push(id);
                }
                Event::Token { id: token, .. } => {
                    assert!(received.cached.is_some(), "a token before the start");
                    if received.tokens.is_empty() {
                        self.spoken.push(id);
                    }
                    received.tokens.push(token);
                }
                Event::Finished(finish) => received.finish = Some(finish),
            }
        }
    }

    pub fn finish(&mut self) {
        self.turn_until(|scheduler| scheduler.is_idle());
    }

    /// Runs until all requests have ended and all files are written.
    pub fn settle(&mut self) {
        self.turn_until(|scheduler| scheduler.activity() == Activity::Nothing);
    }

    fn turn_until(&mut self, is_over: impl Fn(&Scheduler) -> bool) {
        for _ in 0..10_000 {
            if is_over(&self.scheduler) {
                return self.receive();
            }
            if self.scheduler.activity() == Activity::Files {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.turn();
        }
        panic!("the requests do not end: {:?}", self.scheduler);
    }

    /// Runs a request to its end.
    pub fn run(&mut self, request: Request) -> Received {
        let id = self.add(request);
        self.finish();
        self.received[&id].clone()
    }

    pub fn check(&self, id: RequestId, request: &Request) {
        let received = &self.received[&id];
        let (tokens, finish) = expected(request, self.scheduler.context());
        assert_eq!((&received.tokens, &received.finish), (&tokens, &Some(finish)), "request {id}: {request:?}");
    }

    /// Asserts that nothing is left in the engine.
    pub fn check_empty(&mut self) {
        self.scheduler.clear_prefixes(&mut self.engine);
        let capacity = self.engine.capacity();
        assert_eq!((self.engine.sequences(), capacity.pages_free), (0, capacity.pages_total));
    }
}

/// A text; shorter texts of the same family are its prefixes.
pub fn text(family: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (i * i + family * 5 + i / 9) % POISON).collect()
}

pub fn seeded(seed: u64) -> SamplingParams {
    SamplingParams { sampling: Sampling { temperature: 1.0, ..Sampling::GREEDY }, seed, ..SamplingParams::default() }
}
