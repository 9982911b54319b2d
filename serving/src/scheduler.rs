//! Continuous batching (Orca, Yu et al., OSDI 2022) on the trait `Engine`: decides which sequences are in a step, with how many tokens.
//!
//! [`Scheduler::advance`] is one iteration of the loop, with a given engine and clock. Only file access uses threads, in [`Spill`].
//! - A step takes one token of every sequence that decodes, and then chunks of prompts (Sarathi-Serve, Agrawal et al., 2024,
//!   arXiv:2403.02310), limited so that decoding is not delayed much. Up to [`Capacity::steps_in_flight`] steps are submitted ahead, the
//!   last one late enough that requests can still join it ([`Scheduler::spare_time`]). A sequence whose draws depend on the token before,
//!   by penalties or a constraint, is left out of steps until that token is known.
//! - Admitting a request reserves pages for its whole prompt; generated tokens take pages as needed. When no page is free, the prefix cache
//!   drops its least recently used sequences; then the youngest request is preempted: it gives up its pages and is computed again later.
//!   Its tokens are kept, and draws depend only on seed and position, so that its text continues unchanged.
//! - The prefix cache keeps the sequence of a finished request, and forks of it at lengths where later prompts may differ from it
//!   (`anchors`). With a folder, `prefix_cache` writes what does not fit in memory. A request with more tokens on disk than in the engine
//!   waits until they are read, while others go first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use phase2_forward::{Capacity, Engine, EngineError, Outcome, SequenceId, Ticket};

use crate::anchors::{anchors, entry_kind};
use crate::limits::Limits;
pub use crate::limits::Options;
use crate::pace::Pace;
use crate::plan::plan;
use crate::prefix::{Found, common_length};
use crate::prefix_cache::{EntryKind, PrefixCache};
use crate::request::{Event, Finish, Request};
pub use crate::sequence::RequestId;
use crate::sequence::Sequence;
use crate::spill::{FileId, Spill};
use crate::statistics::Statistics;
use crate::waiting::Waiting;

/// A request waits for another one that computes at least this many of its tokens; fewer are computed twice.
const MIN_SHARED_TOKENS: usize = 256;

/// The expected effect of the scheduler's next iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Requests are computed or wait.
    Computing,
    /// Only files are read or written; iterations have no effect until one is complete.
    Files,
    /// Nothing: the next iteration has no effect unless a request arrives.
    Nothing,
}

/// A submitted step.
#[derive(Debug)]
struct Flight {
    ticket: Ticket,
    /// The requests of its items, and whether they draw a token.
    items: Vec<(RequestId, bool)>,
    /// Whether each item feeds one token.
    is_decoding: bool,
}

/// All requests, and their sequences in the engine.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    vocab: usize,
    waiting: Waiting<Sequence>,
    /// Requests that wait for a file.
    reading: Vec<(FileId, Sequence)>,
    /// Running requests, the oldest first.
    running: Vec<Sequence>,
    /// Ended requests whose sequences are still fed by steps in flight.
    ending: Vec<Sequence>,
    /// In the order of submission.
    flights: VecDeque<Flight>,
    pace: Pace,
    prefix_cache: PrefixCache,
    /// The next unused sequence number in the engine.
    next_sequence: SequenceId,
    /// Whether a request was preempted and none has ended since: a newly admitted request would be preempted too.
    crowded: bool,
    events: Vec<(RequestId, Event)>,
    statistics: Statistics,
}

impl Scheduler {
    /// A scheduler for an engine that has no other user.
    pub fn new(engine: &dyn Engine, options: &Options) -> Scheduler {
        let limits = Limits::new(engine, options);
        Scheduler {
            limits,
            vocab: engine.config().vocab,
            waiting: Waiting::default(),
            reading: Vec::new(),
            running: Vec::new(),
            ending: Vec::new(),
            flights: VecDeque::new(),
            pace: Pace::default(),
            prefix_cache: PrefixCache::new(limits.prefixes, engine.capacity().rewind),
            next_sequence: 0,
            crowded: false,
            events: Vec::new(),
            statistics: Statistics::default(),
        }
    }

    /// Sets the folder for sequences that do not fit in the prefix cache. The engine must support [saving](Engine::snapshots).
    pub fn spill_to(mut self, disk: Spill) -> Scheduler {
        self.prefix_cache.set_disk(disk);
        self
    }

    /// The most tokens of a prompt and its text: limited by the model's context and the cache.
    pub fn context(&self) -> usize {
        self.limits.context
    }

    /// The most requests that run together.
    pub fn max_running(&self) -> usize {
        self.limits.running
    }

    /// Adds a request that was [checked](Request::check). Ids must increase.
    pub fn add(&mut self, id: RequestId, request: Request, now: Instant) {
        if request.max_tokens == 0 {
            self.events.push((id, Event::Started { cached_tokens: 0 }));
            return self.finished(id, Finish::Length);
        }
        let client = request.client.clone();
        match Sequence::new(id, request, self.vocab, now) {
            Ok(sequence) => self.waiting.push(&client, sequence),
            Err(error) => self.finished(id, Finish::Failed(error.to_string())),
        }
    }

    /// Removes a request. It has no further events.
    pub fn cancel(&mut self, engine: &mut dyn Engine, id: RequestId) {
        let reading = self.reading.extract_if(.., |(_, sequence)| sequence.id == id).count();
        if reading > 0 || !self.waiting.extract(|sequence| sequence.id == id).is_empty() {
            self.statistics.finished.cancelled += 1;
        } else if let Some(place) = self.running.iter().position(|sequence| sequence.id == id) {
            self.statistics.finished.cancelled += 1;
            self.leave(engine, place);
        }
    }

    /// Whether there is no request, and no step in flight.
    pub fn is_idle(&self) -> bool {
        !self.computes() && self.reading.is_empty()
    }

    /// The expected effect of the next iteration.
    pub fn activity(&self) -> Activity {
        match self.computes() {
            true => Activity::Computing,
            false if self.prefix_cache.is_busy() || !self.reading.is_empty() => Activity::Files,
            false => Activity::Nothing,
        }
    }

    fn computes(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty() || !self.flights.is_empty()
    }

    /// Returns the events since the last call.
    pub fn take_events(&mut self) -> Vec<(RequestId, Event)> {
        std::mem::take(&mut self.events)
    }

    pub fn statistics(&self, engine: &dyn Engine) -> Statistics {
        let Capacity { pages_total, pages_free, .. } = engine.capacity();
        Statistics {
            running: self.running.len(),
            waiting: self.waiting.len() + self.reading.len(),
            prefixes: self.prefix_cache.len(),
            spilled: self.prefix_cache.spilled(),
            pages_total,
            pages_free,
            ..self.statistics.clone()
        }
    }

    /// Releases all sequences of the prefix cache in the engine.
    pub fn clear_prefixes(&mut self, engine: &mut dyn Engine) {
        self.prefix_cache.clear(engine);
    }

    /// Writes the useful sequences of the prefix cache to the folder, and waits for completion. No request should be running.
    pub fn spill_all(&mut self, engine: &mut dyn Engine, until: Instant) {
        self.prefix_cache.save_all(engine, until);
    }

    /// How long the next iteration can wait without leaving the device idle; a request added until then joins the next step. Zero unless
    /// the only step in flight decodes; also if a request would not be admitted, a prompt waits already, or the time of a step is unknown.
    pub fn spare_time(&self, now: Instant) -> Duration {
        let is_open = self.running.len() < self.limits.running && self.waiting.is_empty();
        match self.flights.front() {
            Some(Flight { items, is_decoding: true, .. })
                if self.flights.len() == 1 && is_open && self.running.iter().all(Sequence::is_decoding) =>
            {
                self.pace.spare(items.len(), now)
            }
            _ => Duration::ZERO,
        }
    }

    /// Submits steps up to the limit in flight, and collects the oldest.
    ///
    /// # Errors
    /// The device failed. The scheduler cannot be used any more.
    pub fn advance(&mut self, engine: &mut dyn Engine, clock: &dyn Fn() -> Instant) -> Result<(), EngineError> {
        self.expire(engine, clock());
        self.prefix_cache.begin_iteration();
        self.take_read(engine);
        while self.flights.len() < self.limits.steps_in_flight {
            self.admit(engine, clock());
            if !self.submit(engine)? {
                break;
            }
            if self.flights.len() == 1 {
                self.pace.begin(clock());
            }
        }
        if let Some(Flight { ticket, items, is_decoding }) = self.flights.pop_front() {
            let waiting = clock();
            let outcomes = engine.collect(ticket)?;
            let now = clock();
            self.pace.collected(is_decoding.then_some(items.len()), waiting, now);
            for ((id, drew), outcome) in items.into_iter().zip(outcomes) {
                self.take(engine, id, drew, outcome, now);
            }
        }
        self.prefix_cache.save_ahead(engine);
        Ok(())
    }

    /// Resumes requests whose file was read, whether it is useful or not.
    fn take_read(&mut self, engine: &mut dyn Engine) {
        let number = self.new_number();
        let Some(file) = self.prefix_cache.take_read(engine, number) else { return };
        let ready: Vec<_> = self.reading.extract_if(.., |(of, _)| *of == file).collect();
        ready.into_iter().rev().for_each(|(_, sequence)| self.waiting.resume(sequence));
    }

    /// Ends requests that are past their deadline.
    fn expire(&mut self, engine: &mut dyn Engine, now: Instant) {
        let is_late = |sequence: &Sequence| sequence.deadline.is_some_and(|deadline| deadline <= now);
        let reading: Vec<_> = self.reading.extract_if(.., |(_, sequence)| is_late(sequence)).collect();
        let reading = reading.into_iter().map(|(_, sequence)| sequence);
        for sequence in reading.chain(self.waiting.extract(is_late)) {
            self.finished(sequence.id, Finish::Deadline);
        }
        while let Some(place) = self.running.iter().position(is_late) {
            self.finish(engine, place, Finish::Deadline, now);
        }
    }

    /// Starts waiting requests in order while there is room for their prompts. Requests whose prompt another one computes are passed over.
    fn admit(&mut self, engine: &mut dyn Engine, now: Instant) {
        let mut passed_over = Vec::new();
        while self.running.len() < self.limits.running && (self.running.is_empty() || !self.crowded) {
            let Some(next) = self.waiting.peek() else { break };
            let found = self.prefix_cache.find(&next.tokens);
            let cached = found.hits.first().map_or(0, |hit| hit.length);
            if !self.running.is_empty() && !self.has_room(next.tokens.len() - cached) {
                break;
            }
            let Some(next) = self.waiting.pop() else { break };
            match self.is_computed_already(&next.tokens, cached) {
                true => passed_over.push(next),
                false => self.enter(engine, next, &found, now),
            }
        }
        passed_over.into_iter().rev().for_each(|sequence| self.waiting.resume(sequence));
    }

    /// Whether a running sequence will soon hold many more of these tokens than `cached`. If so, adds an anchor at the shared length.
    fn is_computed_already(&mut self, tokens: &[u32], cached: usize) -> bool {
        if !self.prefix_cache.is_on() {
            return false;
        }
        let shares = |sequence: &Sequence| common_length(&sequence.tokens[..sequence.prompt], tokens);
        let shared = self.running.iter_mut().map(|sequence| (shares(sequence), sequence));
        let Some((shared, sequence)) = shared.max_by_key(|(shared, _)| *shared) else { return false };
        if shared < cached + MIN_SHARED_TOKENS || shared <= sequence.fed {
            return false;
        }
        sequence.add_anchor(shared);
        true
    }

    /// Whether the pages reserved so far leave room for a sequence with `own` unshared tokens.
    fn has_room(&self, own: usize) -> bool {
        let promised = |sequence: &Sequence| self.limits.pages_of(sequence.tokens.len() - sequence.cached);
        let promised: usize = self.running.iter().map(promised).sum();
        promised + self.limits.chunk + self.limits.pages_of(own) <= self.limits.pages
    }

    /// Starts a sequence in the engine from its cached beginning, or makes it wait for a file that contains more of it.
    fn enter(&mut self, engine: &mut dyn Engine, mut sequence: Sequence, found: &Found, now: Instant) {
        let in_engine = self.new_number();
        // Only the engine knows to which lengths it can truncate a sequence.
        let forked = found.hits.iter().find(|hit| engine.fork(hit.sequence, in_engine, hit.length).is_ok());
        let cached = forked.map_or(0, |hit| hit.length);
        if !std::mem::replace(&mut sequence.was_sought, true)
            && let Some(file) = self.prefix_cache.read_from_disk(&sequence.tokens, cached)
        {
            engine.release(in_engine);
            return self.reading.push((file, sequence));
        }
        if let Some(hit) = forked {
            self.prefix_cache.touch(hit.sequence);
        }
        sequence.begun = forked.copied();
        sequence.enter(in_engine, cached);
        if self.prefix_cache.is_on() {
            sequence.anchors = anchors(sequence.prompt, cached, found.shared);
        }
        if !std::mem::replace(&mut sequence.started, true) {
            self.events.push((sequence.id, Event::Started { cached_tokens: cached }));
            self.statistics.prompt_tokens += sequence.prompt as u64;
            self.statistics.cached_tokens += cached as u64;
            self.statistics.queue_time.record(now - sequence.arrived);
        }
        let place = self.running.partition_point(|other| other.id < sequence.id);
        self.running.insert(place, sequence);
    }

    /// Submits a step; false if there is nothing to submit, or no room until a step is collected.
    fn submit(&mut self, engine: &mut dyn Engine) -> Result<bool, EngineError> {
        loop {
            let counts = plan(&self.limits, &self.running);
            let included = || self.running.iter().zip(&counts).filter(|&(_, &count)| count > 0);
            if included().next().is_none() {
                return Ok(false);
            }
            let ids: Vec<RequestId> = included().map(|(sequence, _)| sequence.id).collect();
            match self.submit_counts(engine, &counts) {
                Ok(ticket) => {
                    self.submitted(engine, ticket, &counts);
                    return Ok(true);
                }
                Err(error @ (EngineError::Lost(_) | EngineError::Device(_))) => return Err(error),
                // The end of a sequence in a step in flight may make room.
                Err(EngineError::Full { .. }) if !self.flights.is_empty() => return Ok(false),
                Err(error @ EngineError::Full { .. }) => self.give_up_youngest(engine, &error),
                // Requests were checked, so that this is a bug here or in the engine. Only the requests of this step fail.
                Err(error) => ids.into_iter().for_each(|id| self.fail(engine, id, &error.to_string())),
            }
        }
    }

    /// Submits the planned step. The prefix cache drops sequences if the engine is full.
    fn submit_counts(&mut self, engine: &mut dyn Engine, counts: &[usize]) -> Result<Ticket, EngineError> {
        let included = self.running.iter_mut().zip(counts).filter(|&(_, &count)| count > 0);
        let work: Vec<_> = included.map(|(sequence, &count)| sequence.work(count)).collect();
        loop {
            match engine.submit(&work) {
                Err(EngineError::Full { .. }) if self.prefix_cache.evict_oldest(engine) => {}
                result => return result,
            }
        }
    }

    /// Records a submitted step, and forks sequences that have reached an anchor.
    fn submitted(&mut self, engine: &mut dyn Engine, ticket: Ticket, counts: &[usize]) {
        self.statistics.steps += 1;
        let mut items = Vec::new();
        for (place, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
            let sequence = &mut self.running[place];
            items.push((sequence.id, sequence.submitted(count)));
            if sequence.anchors.pop_front_if(|anchor| *anchor == sequence.fed).is_some() {
                self.anchor(engine, place);
            }
        }
        let is_decoding = counts.iter().all(|&count| count <= 1);
        self.flights.push_back(Flight { ticket, items, is_decoding });
    }

    /// Adds a fork of a sequence, in its current state, to the prefix cache.
    fn anchor(&mut self, engine: &mut dyn Engine, place: usize) {
        let number = self.new_number();
        let sequence = &mut self.running[place];
        let tokens = &sequence.tokens[..sequence.fed];
        match self.prefix_cache.exact(tokens) {
            Some(known) => self.prefix_cache.touch(known),
            None if engine.fork(sequence.in_engine, number, sequence.fed).is_ok() => {
                self.prefix_cache.insert(tokens, number, sequence.id, entry_kind(sequence.fed, sequence.prompt));
                sequence.made.push(number);
                if let Some(begun) = sequence.begun.take() {
                    self.prefix_cache.count_follower(begun);
                }
                self.prefix_cache.enforce_limit(engine);
            }
            // Without room there is no fork; it would only have saved work.
            None => {}
        }
    }

    /// Preempts the youngest sequence, which is computed again later. No step is in flight. If it is the only sequence, it cannot continue
    /// and ends.
    fn give_up_youngest(&mut self, engine: &mut dyn Engine, error: &EngineError) {
        let Some(mut youngest) = self.running.pop() else { return };
        engine.release(youngest.in_engine);
        self.crowded = !self.running.is_empty();
        if !self.crowded {
            let full = Finish::Failed(error.to_string());
            let finish = if youngest.generated() > 0 { Finish::Length } else { full };
            return self.finished(youngest.id, finish);
        }
        youngest.enter(0, 0);
        self.waiting.resume(youngest);
        self.statistics.preemptions += 1;
    }

    /// Processes the outcome of a work item.
    fn take(&mut self, engine: &mut dyn Engine, id: RequestId, drew: bool, outcome: Outcome, now: Instant) {
        if let Some(place) = self.ending.iter().position(|sequence| sequence.id == id) {
            self.ending[place].collected(drew);
            if self.ending[place].in_flight == 0 {
                let sequence = self.ending.swap_remove(place);
                self.keep(engine, sequence);
            }
            return;
        }
        let Some(place) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        let sequence = &mut self.running[place];
        sequence.collected(drew);
        match outcome {
            Outcome::Token(token) => {
                match sequence.last_token.replace(now) {
                    Some(before) => self.statistics.inter_token.record(now - before),
                    None => self.statistics.ttft.record(now - sequence.arrived),
                }
                self.statistics.generated_tokens += 1;
                self.events.push((id, Event::Token { id: token.id, logprobs: token.logprobs }));
                if let Some(finish) = sequence.accept(token.id, self.limits.context) {
                    self.finish(engine, place, finish, now);
                }
            }
            Outcome::NotANumber { position } => {
                self.fail(engine, id, &EngineError::NotANumber { position }.to_string());
            }
            Outcome::Fed | Outcome::Logits(_) => {}
        }
    }

    /// Ends a running sequence whose text is complete, or whose deadline has passed.
    fn finish(&mut self, engine: &mut dyn Engine, place: usize, finish: Finish, now: Instant) {
        let Sequence { id, arrived, .. } = self.running[place];
        self.statistics.request_time.record(now - arrived);
        self.finished(id, finish);
        self.leave(engine, place);
    }

    fn finished(&mut self, id: RequestId, finish: Finish) {
        self.statistics.finished.count(&finish);
        self.events.push((id, Event::Finished(finish)));
    }

    /// Ends a running sequence that failed. Its entries in the prefix cache are dropped as well.
    fn fail(&mut self, engine: &mut dyn Engine, id: RequestId, sentence: &str) {
        let Some(place) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        let sequence = self.running.remove(place);
        self.crowded = false;
        let Sequence { in_engine, made, tokens, cached, .. } = sequence;
        engine.release(in_engine);
        self.prefix_cache.drop_failed(engine, &made, &tokens, cached);
        self.finished(id, Finish::Failed(sentence.to_owned()));
    }

    /// Removes a sequence from the running ones; its pages stay for the prefix cache.
    fn leave(&mut self, engine: &mut dyn Engine, place: usize) {
        let sequence = self.running.remove(place);
        self.crowded = false;
        match sequence.in_flight > 0 {
            true => self.ending.push(sequence),
            false => self.keep(engine, sequence),
        }
    }

    /// Adds a sequence without steps in flight to the prefix cache, without tokens that were computed after the end of its text.
    fn keep(&mut self, engine: &mut dyn Engine, sequence: Sequence) {
        let Sequence { id, in_engine, fed, tokens, made, .. } = sequence;
        let length = fed.min(tokens.len());
        let is_kept = self.prefix_cache.is_on()
            && length > 0
            && (length == fed || engine.truncate(in_engine, length).is_ok())
            && self.prefix_cache.insert(&tokens[..length], in_engine, id, EntryKind::End);
        if !is_kept {
            return engine.release(in_engine);
        }
        // The next prompt of a chat repeats this prompt, but not the reasoning: the entry with the text should be dropped first.
        if let Some(&prompt) = made.last() {
            self.prefix_cache.touch(prompt);
        }
        self.prefix_cache.enforce_limit(engine);
    }

    fn new_number(&mut self) -> SequenceId {
        self.next_sequence += 1;
        self.next_sequence
    }
}
