//! Continuous batching (Orca, Yu et al., OSDI 2022) over the seam: which sequences are in a step, with how many tokens.
//!
//! No thread and no clock here: [`Scheduler::advance`] is one turn of the loop, on an engine and a clock that it is given.
//! - A step takes one token of every sequence that decodes, and then chunks of prompts (Sarathi-Serve, Agrawal et al., 2024,
//!   arXiv:2403.02310), so few that those who decode do not wait long. Up to [`Capacity::steps_in_flight`] steps are submitted ahead.
//!   A sequence whose draws depend on the token before, by penalties or a constraint, sits out the steps until that token is known.
//! - Pages are promised to a request's whole prompt when it is admitted. Generated tokens take pages as they come. When none is left,
//!   the prefix cache gives back what was used least recently; then the youngest request gives up its pages and waits to be computed
//!   again. Its tokens stay, and what is drawn depends on seed and position, so that its text goes on as it would have.
//! - The prefix cache keeps the sequence of a finished request, and forks of it, made on the way, where a later prompt may part from
//!   it (`anchors`).

use std::collections::VecDeque;
use std::time::Instant;

use phase2_forward::{Capacity, Engine, EngineError, Outcome, SequenceId, Ticket};

use crate::limits::Limits;
pub use crate::limits::Options;
use crate::prefix::{Found, PrefixIndex, common_length};
use crate::request::{Event, Finish, Request};
pub use crate::sequence::RequestId;
use crate::sequence::Sequence;
use crate::statistics::Statistics;
use crate::waiting::Waiting;

/// Prompts leave a fork behind each time they grow by this, for later ones that part from them in the middle.
const ANCHOR_EVERY: usize = 2048;
/// Tokens that a fork must save: below, computing them again is cheaper than the pages that it holds.
const ANCHOR_GAIN: usize = 16;
/// Tokens that a request waits for while another computes them: fewer are computed again at once.
const WORTH_WAITING: usize = 256;

/// A step that was submitted.
#[derive(Debug)]
struct Flight {
    ticket: Ticket,
    /// Whose items these are, and whether they draw.
    items: Vec<(RequestId, bool)>,
}

/// All requests, and what the engine holds of them.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    vocab: usize,
    waiting: Waiting<Sequence>,
    /// The oldest first.
    running: Vec<Sequence>,
    /// Ended, but fed by steps in flight.
    ending: Vec<Sequence>,
    /// In the order of their submission.
    flights: VecDeque<Flight>,
    prefixes: PrefixIndex,
    /// The next free number of a sequence in the engine.
    next_sequence: SequenceId,
    /// A request lost its pages, and none has left since: whoever is admitted now would lose them too.
    crowded: bool,
    events: Vec<(RequestId, Event)>,
    statistics: Statistics,
}

impl Scheduler {
    /// A scheduler for an engine that nobody else uses.
    pub fn new(engine: &dyn Engine, options: &Options) -> Scheduler {
        Scheduler {
            limits: Limits::new(engine, options),
            vocab: engine.config().vocab,
            waiting: Waiting::default(),
            running: Vec::new(),
            ending: Vec::new(),
            flights: VecDeque::new(),
            prefixes: PrefixIndex::default(),
            next_sequence: 0,
            crowded: false,
            events: Vec::new(),
            statistics: Statistics::default(),
        }
    }

    /// Tokens that a prompt and its text may have: the model's context, or what the cache holds.
    pub fn context(&self) -> usize {
        self.limits.context
    }

    /// Requests that run together at most.
    pub fn max_running(&self) -> usize {
        self.limits.running
    }

    /// Takes a request that was [checked](Request::check). Ids grow from request to request.
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

    /// Forgets a request. It has no further events.
    pub fn cancel(&mut self, engine: &mut dyn Engine, id: RequestId) {
        if !self.waiting.extract(|sequence| sequence.id == id).is_empty() {
            self.statistics.finished.cancelled += 1;
        } else if let Some(place) = self.running.iter().position(|sequence| sequence.id == id) {
            self.statistics.finished.cancelled += 1;
            self.leave(engine, place);
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.flights.is_empty()
    }

    /// What has happened since this was last asked.
    pub fn take_events(&mut self) -> Vec<(RequestId, Event)> {
        std::mem::take(&mut self.events)
    }

    pub fn statistics(&self, engine: &dyn Engine) -> Statistics {
        let Capacity { pages_total, pages_free, .. } = engine.capacity();
        Statistics {
            running: self.running.len(),
            waiting: self.waiting.len(),
            prefixes: self.prefixes.len(),
            pages_total,
            pages_free,
            ..self.statistics.clone()
        }
    }

    /// Releases all that the prefix cache keeps.
    pub fn clear_prefixes(&mut self, engine: &mut dyn Engine) {
        while let Some(sequence) = self.prefixes.pop_oldest() {
            engine.release(sequence);
        }
    }

    /// Submits as many steps as may be in flight, and collects the oldest.
    ///
    /// # Errors
    /// A device that failed. The scheduler is of no further use then.
    pub fn advance(&mut self, engine: &mut dyn Engine, clock: &dyn Fn() -> Instant) -> Result<(), EngineError> {
        self.expire(engine, clock());
        while self.flights.len() < self.limits.steps_in_flight {
            self.admit(engine, clock());
            if !self.submit(engine)? {
                break;
            }
        }
        if let Some(Flight { ticket, items }) = self.flights.pop_front() {
            let outcomes = engine.collect(ticket)?;
            let now = clock();
            for ((id, drew), outcome) in items.into_iter().zip(outcomes) {
                self.take(engine, id, drew, outcome, now);
            }
        }
        Ok(())
    }

    /// Ends what is past its deadline.
    fn expire(&mut self, engine: &mut dyn Engine, now: Instant) {
        let is_late = |sequence: &Sequence| sequence.deadline.is_some_and(|deadline| deadline <= now);
        for sequence in self.waiting.extract(is_late) {
            self.finished(sequence.id, Finish::Deadline);
        }
        while let Some(place) = self.running.iter().position(is_late) {
            self.finish(engine, place, Finish::Deadline, now);
        }
    }

    /// Lets requests run while there is room for their prompts. One that waits for room is not passed over; one whose prompt another
    /// is computing just now is.
    fn admit(&mut self, engine: &mut dyn Engine, now: Instant) {
        let mut passed_over = Vec::new();
        while self.running.len() < self.limits.running && (self.running.is_empty() || !self.crowded) {
            let Some(next) = self.waiting.peek() else { break };
            let found = self.prefixes.find(&next.tokens);
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

    /// Whether a sequence that runs will soon hold much more of these tokens than the `cached` ones. It leaves a fork there then.
    fn is_computed_already(&mut self, tokens: &[u32], cached: usize) -> bool {
        if self.limits.prefixes == 0 {
            return false;
        }
        let shares = |sequence: &Sequence| common_length(&sequence.tokens[..sequence.prompt], tokens);
        let shared = self.running.iter_mut().map(|sequence| (shares(sequence), sequence));
        let Some((shared, sequence)) = shared.max_by_key(|(shared, _)| *shared) else { return false };
        if shared < cached + WORTH_WAITING || shared <= sequence.fed {
            return false;
        }
        sequence.anchor_at(shared);
        true
    }

    /// Whether the promises made so far leave room for a sequence with `own` tokens that it does not share.
    fn has_room(&self, own: usize) -> bool {
        let promised = |sequence: &Sequence| self.limits.pages_of(sequence.tokens.len() - sequence.cached);
        let promised: usize = self.running.iter().map(promised).sum();
        promised + self.limits.chunk + self.limits.pages_of(own) <= self.limits.pages
    }

    /// Begins a sequence in the engine, with what is cached of it.
    fn enter(&mut self, engine: &mut dyn Engine, mut sequence: Sequence, found: &Found, now: Instant) {
        let in_engine = self.new_number();
        // The engine knows which lengths it can go back to.
        let forked = found.hits.iter().find(|hit| engine.fork(hit.sequence, in_engine, hit.length).is_ok());
        let cached = forked.map_or(0, |hit| hit.length);
        if let Some(hit) = forked {
            self.prefixes.touch(hit.sequence);
        }
        sequence.enter(in_engine, cached);
        if self.limits.prefixes > 0 {
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

    /// Submits a step; false if there is nothing to submit, or no room before a step is collected.
    fn submit(&mut self, engine: &mut dyn Engine) -> Result<bool, EngineError> {
        loop {
            let counts = self.plan();
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
                // A step in flight may end a sequence, which makes room.
                Err(EngineError::Full { .. }) if !self.flights.is_empty() => return Ok(false),
                Err(error @ EngineError::Full { .. }) => self.give_up_youngest(engine, &error),
                // Requests were checked, so that this is a mistake here or in the engine. It harms no one else.
                Err(error) => ids.into_iter().for_each(|id| self.fail(engine, id, &error.to_string())),
            }
        }
    }

    /// How many tokens each running sequence is fed in the next step.
    fn plan(&self) -> Vec<usize> {
        let Limits { context, tokens_per_step, prompt_tokens, alone, .. } = self.limits;
        let due: Vec<usize> = self.running.iter().map(|sequence| sequence.due(context)).collect();
        let mut counts: Vec<usize> = due.iter().map(|&due| usize::from(due == 1)).collect();
        let most = if self.running.iter().any(Sequence::is_decoding) { prompt_tokens } else { alone };
        let mut budget = most.min(tokens_per_step - counts.iter().sum::<usize>());

        let mut prompts: Vec<usize> = (0..due.len()).filter(|&place| due[place] > 1).collect();
        let mut grant = |place: usize, most: usize| {
            let wanted = due[place].min(self.running[place].to_anchor()) - counts[place];
            let granted = wanted.min(most).min(budget);
            counts[place] += granted;
            budget -= granted;
        };
        // The oldest prompt is sure of half, so that it ends; the rest goes to the shortest, who wait the least that way.
        if let Some((&mut oldest, others)) = prompts.split_first_mut() {
            let share = if others.is_empty() { usize::MAX } else { most.div_ceil(2) };
            grant(oldest, share);
            others.sort_by_key(|&place| due[place]);
            others.iter().for_each(|&place| grant(place, usize::MAX));
            grant(oldest, usize::MAX);
        }
        counts
    }

    /// Submits a step as planned. The prefix cache makes room if there is none.
    fn submit_counts(&mut self, engine: &mut dyn Engine, counts: &[usize]) -> Result<Ticket, EngineError> {
        let included = self.running.iter_mut().zip(counts).filter(|&(_, &count)| count > 0);
        let work: Vec<_> = included.map(|(sequence, &count)| sequence.work(count)).collect();
        loop {
            match engine.submit(&work) {
                Err(EngineError::Full { needed, free }) => match self.prefixes.pop_oldest() {
                    Some(sequence) => engine.release(sequence),
                    None => return Err(EngineError::Full { needed, free }),
                },
                result => return result,
            }
        }
    }

    /// Notes a step that was submitted, and forks sequences that have come to an anchor.
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
        self.flights.push_back(Flight { ticket, items });
    }

    /// Leaves a fork of a sequence, as it is now, to the prefix cache.
    fn anchor(&mut self, engine: &mut dyn Engine, place: usize) {
        let number = self.new_number();
        let sequence = &mut self.running[place];
        let tokens = &sequence.tokens[..sequence.fed];
        match self.prefixes.exact(tokens) {
            Some(known) => self.prefixes.touch(known),
            None if engine.fork(sequence.in_engine, number, sequence.fed).is_ok() => {
                self.prefixes.insert(tokens, number);
                sequence.made.push(number);
                self.bound_prefixes(engine);
            }
            // Without room there is no fork: it only would have saved work.
            None => {}
        }
    }

    fn bound_prefixes(&mut self, engine: &mut dyn Engine) {
        while self.prefixes.len() > self.limits.prefixes {
            if let Some(oldest) = self.prefixes.pop_oldest() {
                engine.release(oldest);
            }
        }
    }

    /// Takes the pages of the youngest sequence, which waits then to be computed again. No step is in flight. A sequence that is alone
    /// and still finds no room has reached its end.
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

    /// Hears what became of a work item.
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

    /// Ends a running sequence whose text is complete.
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

    /// Ends a running sequence that is of no further use: what it left in the prefix cache is not trusted either.
    fn fail(&mut self, engine: &mut dyn Engine, id: RequestId, sentence: &str) {
        let Some(place) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        let sequence = self.running.remove(place);
        self.crowded = false;
        engine.release(sequence.in_engine);
        for made in sequence.made {
            if self.prefixes.remove(made) {
                engine.release(made);
            }
        }
        self.finished(id, Finish::Failed(sentence.to_owned()));
    }

    /// Takes a sequence out of those that run; its pages stay for the prefix cache.
    fn leave(&mut self, engine: &mut dyn Engine, place: usize) {
        let sequence = self.running.remove(place);
        self.crowded = false;
        match sequence.in_flight > 0 {
            true => self.ending.push(sequence),
            false => self.keep(engine, sequence),
        }
    }

    /// Gives a sequence that no step feeds any more to the prefix cache, without what was computed beyond the end of its text.
    fn keep(&mut self, engine: &mut dyn Engine, sequence: Sequence) {
        let Sequence { in_engine, fed, tokens, made, .. } = sequence;
        let length = fed.min(tokens.len());
        let is_kept = self.limits.prefixes > 0
            && length > 0
            && (length == fed || engine.truncate(in_engine, length).is_ok())
            && self.prefixes.insert(&tokens[..length], in_engine);
        if !is_kept {
            return engine.release(in_engine);
        }
        // The next prompt of a chat shares this prompt, but not the reasoning: of the two, the text goes first.
        if let Some(&prompt) = made.last() {
            self.prefixes.touch(prompt);
        }
        self.bound_prefixes(engine);
    }

    fn new_number(&mut self) -> SequenceId {
        self.next_sequence += 1;
        self.next_sequence
    }
}

/// The lengths at which a prompt leaves forks behind, shortest first. A fork shares all pages but the last one of each kind, and keeps
/// the pages of sliding layers alive, without which nothing can go on from there.
///
/// - The end of the prompt. The next prompt of a chat repeats it; then its own text differs, since earlier reasoning is left out.
/// - Where it parts from what is known already, as two chats with the same instructions do: a third will part there too (as Marconi
///   has it, Pan et al., 2024, arXiv:2411.19379).
/// - Every now and then, for a long text with a changed end.
fn anchors(prompt: usize, cached: usize, shared: usize) -> VecDeque<usize> {
    let regular = (1..).map(|count| count * ANCHOR_EVERY).take_while(|&length| length < prompt);
    let mut lengths: Vec<usize> = regular.chain([shared.min(prompt), prompt]).collect();
    lengths.retain(|&length| length >= cached + ANCHOR_GAIN);
    lengths.sort_unstable();
    lengths.dedup();
    lengths.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_where_prompts_may_part() {
        assert_eq!(anchors(100, 0, 0), [100]);
        assert_eq!(anchors(100, 0, 40), [40, 100]);
        assert_eq!(anchors(5000, 0, 40), [40, 2048, 4096, 5000]);
        assert_eq!(anchors(5000, 2040, 2045), [4096, 5000]);
        assert_eq!(anchors(100, 99, 100), [0usize; 0]);
        assert_eq!(anchors(100, 0, 100), [100]);
    }
}
