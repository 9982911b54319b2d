//! An engine whose next token is a hash of all tokens before it and of the draw's settings, so that texts do not depend on the batch. It
//! counts pages as phase 5 does, saves and restores sequences, and panics or returns an error if its caller violates the contract.

pub mod run;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use phase1_loading::{AttentionKind, GptOssConfig, RopeConfig, YarnRamp};
use phase2_forward::plain::{check_rewind, tokens_of};
use phase2_forward::{
    BadRequest, Capacity, Draw, DrawnToken, Engine, EngineError, Logprobs, Outcome, SequenceId, Snapshot, Snapshots,
    Ticket, Want, Work, check_work,
};
use phase3_kvcache::{Sampler, SamplingParams};
use serving::request::{Finish, Request};

pub const VOCAB: usize = 50;
/// A token that makes logits NaN. It is never drawn.
pub const POISON: u32 = VOCAB as u32 - 1;
pub const WINDOW: usize = 8;
pub const REWIND: usize = 3;
/// Positions per page.
pub const POSITIONS: usize = 4;
/// The engine's name in its snapshots.
pub const KIND: &str = "fake";

/// A failure of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Lost,
    Panic,
}

pub struct Fake {
    config: GptOssConfig,
    capacity: Capacity,
    pages_used: Arc<AtomicUsize>,
    sequences: BTreeMap<SequenceId, Sequence>,
    flights: VecDeque<Flight>,
    next_ticket: u64,
    /// For each step, the number of tokens fed per item.
    pub steps: Vec<Vec<usize>>,
    /// The number of steps after which the engine fails, and how.
    pub failure: Option<(usize, Failure)>,
}

struct Flight {
    ticket: Ticket,
    fed: Vec<SequenceId>,
    outcomes: Vec<Outcome>,
}

#[derive(Clone, Default)]
struct Sequence {
    tokens: Vec<u32>,
    drawn: Option<u32>,
    full: Pages,
    sliding: Pages,
}

#[derive(Clone, Default)]
struct Pages {
    gone: usize,
    held: VecDeque<Arc<Page>>,
}

/// A page that is counted as used while it exists.
struct Page(Arc<AtomicUsize>);

impl Page {
    fn new(used: &Arc<AtomicUsize>) -> Arc<Page> {
        used.fetch_add(1, Ordering::Relaxed);
        Arc::new(Page(Arc::clone(used)))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pages {
    /// Whether growth from `length` writes into a page that is shared.
    fn copies(&self, length: usize) -> bool {
        !length.is_multiple_of(POSITIONS) && self.held.back().is_some_and(|page| Arc::strong_count(page) > 1)
    }

    fn needed(&self, from: usize, to: usize) -> usize {
        to.div_ceil(POSITIONS) - (self.gone + self.held.len()) + usize::from(self.copies(from))
    }

    fn extend(&mut self, from: usize, to: usize, used: &Arc<AtomicUsize>) {
        if self.copies(from) {
            self.held.pop_back();
            self.held.push_back(Page::new(used));
        }
        while self.gone + self.held.len() < to.div_ceil(POSITIONS) {
            self.held.push_back(Page::new(used));
        }
    }

    fn shorten(&mut self, length: usize) {
        self.held.truncate(length.div_ceil(POSITIONS) - self.gone);
    }
}

impl Sequence {
    fn length(&self) -> usize {
        self.tokens.len()
    }

    fn shorten(&mut self, length: usize) {
        self.tokens.truncate(length);
        self.drawn = None;
        self.full.shorten(length);
        self.sliding.shorten(length);
    }

    /// Frees the pages of sliding layers that are needed neither for the next token nor after a truncation by `REWIND`.
    fn let_go(&mut self) {
        let first = (self.length() + 1).saturating_sub(WINDOW + REWIND) / POSITIONS;
        while self.sliding.gone < first && self.sliding.held.pop_front().is_some() {
            self.sliding.gone += 1;
        }
    }

    fn reaches_back(&self, length: usize) -> bool {
        self.sliding.gone <= (length + 1).saturating_sub(WINDOW) / POSITIONS
    }
}

/// The token after `tokens`, among those that may be drawn; `None` if the logits are NaN.
pub fn next_token(tokens: &[u32], draw: &Draw<'_>) -> Option<u32> {
    let mut hash = if draw.is_greedy() { 0 } else { draw.seed.wrapping_add(1) };
    let mut mix = |word: u32| {
        hash = (hash ^ u64::from(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash ^= hash >> 29;
    };
    tokens.iter().for_each(|&token| mix(token));
    for adjustment in draw.adjustments {
        let values = [adjustment.bias, adjustment.repetition_penalty, adjustment.penalty].map(f32::to_bits);
        [adjustment.token].iter().chain(&values).for_each(|&word| mix(word));
    }
    let allowed: Vec<u32> = (0..POISON).filter(|&token| draw.allows(token as usize)).collect();
    (!tokens.contains(&POISON)).then(|| allowed[(hash % allowed.len() as u64) as usize])
}

/// A greedy request of a client without a name.
pub fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        sampling: SamplingParams::default(),
        max_tokens,
        stop_tokens: Vec::new(),
        logprobs: None,
        deadline: None,
        client: String::new(),
        constraint: None,
    }
}

/// The generated tokens of a request that is alone on an engine, and why it ends.
pub fn expected(request: &Request, context: usize) -> (Vec<u32>, Finish) {
    let mut sampler = Sampler::new(request.sampling.clone(), VOCAB).expect("valid parameters");
    sampler.observe_prompt(&request.prompt);
    let mut constraint = request.constraint.clone();
    let mut tokens = request.prompt.clone();
    let finish = loop {
        let generated = tokens.len() - request.prompt.len();
        if generated == request.max_tokens || tokens.len() > context {
            break Finish::Length;
        }
        let allowed = constraint.as_deref().and_then(|constraint| constraint.allowed());
        let token = next_token(&tokens, &Draw { allowed, ..sampler.next_draw() }).expect("a number");
        sampler.accept(token);
        tokens.push(token);
        if request.stop_tokens.contains(&token) {
            break Finish::Stop(token);
        }
        let is_last = tokens.len() - request.prompt.len() == request.max_tokens || tokens.len() > context;
        if let Some(constraint) = constraint.as_mut().filter(|_| !is_last)
            && let Err(reason) = constraint.push(token)
        {
            break Finish::Failed(reason);
        }
    };
    (tokens.split_off(request.prompt.len()), finish)
}

impl Fake {
    pub fn new(pages_total: usize, steps_in_flight: usize) -> Fake {
        let config = GptOssConfig {
            hidden: 64,
            expert_width: 64,
            heads: 2,
            kv_heads: 1,
            head_dim: 32,
            experts: 4,
            experts_per_token: 4,
            vocab: VOCAB,
            context_length: 1000,
            rms_eps: 1e-5,
            sliding_window: WINDOW,
            attention: AttentionKind::alternating(2),
            rope: RopeConfig { theta: 10_000.0, factor: 1.0, original_context: 1000, ramp: YarnRamp::Exact },
        };
        let capacity = Capacity {
            tokens_per_step: 100,
            steps_in_flight,
            pages_total,
            pages_free: pages_total,
            positions_per_page: POSITIONS,
            rewind: REWIND,
        };
        Fake {
            config,
            capacity,
            pages_used: Arc::default(),
            sequences: BTreeMap::new(),
            flights: VecDeque::new(),
            next_ticket: 0,
            steps: Vec::new(),
            failure: None,
        }
    }

    pub fn failing(after: usize, failure: Failure) -> Fake {
        Fake { failure: Some((after, failure)), ..Fake::new(400, 2) }
    }

    /// Number of existing sequences.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Total number of tokens fed.
    pub fn computed(&self) -> usize {
        self.steps.iter().flatten().sum()
    }

    fn check_rewind(&self, sequence: SequenceId, length: usize) -> Result<(), BadRequest> {
        let known = self.sequences.get(&sequence);
        let reaches = || known.is_some_and(|known| known.reaches_back(length));
        check_rewind(sequence, known.map(Sequence::length), length, reaches)
    }
}

impl Engine for Fake {
    fn config(&self) -> &GptOssConfig {
        &self.config
    }

    fn capacity(&self) -> Capacity {
        let pages_free = self.capacity.pages_total - self.pages_used.load(Ordering::Relaxed);
        Capacity { pages_free, ..self.capacity }
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, Sequence::length)
    }

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        if self.flights.len() == self.capacity.steps_in_flight {
            return Err(BadRequest::TooManySteps(self.flights.len()).into());
        }
        match self.failure {
            Some((after, Failure::Lost)) if self.steps.len() >= after => {
                return Err(EngineError::Lost("a test".into()));
            }
            Some((after, Failure::Panic)) if self.steps.len() >= after => panic!("a test's panic"),
            _ => {}
        }
        assert!(!work.is_empty(), "a step has no work items");
        check_work(self, work)?;
        let inputs = tokens_of(work, |sequence| self.sequences.get(&sequence).and_then(|known| known.drawn))?;
        let mut needed = 0;
        for (item, input) in work.iter().zip(&inputs) {
            let from = self.length(item.sequence);
            let to = from + input.len();
            needed += match self.sequences.get(&item.sequence) {
                Some(known) => known.full.needed(from, to) + known.sliding.needed(from, to),
                None => 2 * to.div_ceil(POSITIONS),
            };
        }
        let free = self.capacity().pages_free;
        if needed > free {
            return Err(EngineError::Full { needed, free });
        }
        let mut outcomes = Vec::new();
        for (item, input) in work.iter().zip(&inputs) {
            let known = self.sequences.entry(item.sequence).or_default();
            let (from, to) = (known.length(), known.length() + input.len());
            known.full.extend(from, to, &self.pages_used);
            known.sliding.extend(from, to, &self.pages_used);
            known.tokens.extend(input);
            known.let_go();
            known.drawn = None;
            outcomes.push(match &item.want {
                Want::Token(draw) => match next_token(&known.tokens, draw) {
                    Some(id) => {
                        known.drawn = Some(id);
                        let logprobs = draw.logprobs.map(|_| Logprobs { token: -(to as f32), top: Vec::new() });
                        Outcome::Token(DrawnToken { id, logprobs })
                    }
                    None => {
                        known.drawn = Some(0);
                        Outcome::NotANumber { position: to }
                    }
                },
                _ => Outcome::Fed,
            });
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let fed = work.iter().map(|item| item.sequence).collect();
        self.flights.push_back(Flight { ticket, fed, outcomes });
        self.steps.push(inputs.iter().map(Vec::len).collect());
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        match self.flights.pop_front_if(|flight| flight.ticket == ticket) {
            Some(flight) => Ok(flight.outcomes),
            None => Err(BadRequest::UnknownTicket(ticket).into()),
        }
    }

    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), EngineError> {
        assert!(!self.sequences.contains_key(&to), "a sequence number is used twice");
        self.check_rewind(from, length)?;
        let mut copy = self.sequences[&from].clone();
        copy.shorten(length);
        copy.let_go();
        self.sequences.insert(to, copy);
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), EngineError> {
        let is_fed = self.flights.iter().any(|flight| flight.fed.contains(&sequence));
        assert!(!is_fed, "a sequence is shortened while a step feeds it");
        self.check_rewind(sequence, length)?;
        if let Some(known) = self.sequences.get_mut(&sequence) {
            known.shorten(length);
        }
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn snapshots(&mut self) -> Option<&mut dyn Snapshots> {
        Some(self)
    }
}

/// The items of a snapshot are the tokens, and the number of freed pages of sliding layers.
impl Snapshots for Fake {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn save(&mut self, sequence: SequenceId) -> Result<Snapshot, EngineError> {
        let known = self.sequences.get(&sequence).ok_or(BadRequest::UnknownSequence(sequence))?;
        let tokens: Vec<u8> = known.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let gone = (known.sliding.gone as u64).to_le_bytes().to_vec();
        Ok(Snapshot { engine: KIND.into(), length: known.length(), items: vec![tokens.into(), gone.into()] })
    }

    fn restore(&mut self, sequence: SequenceId, snapshot: &Snapshot) -> Result<(), EngineError> {
        snapshot.check(KIND, self.config.context_length, |length| vec![4 * length, 8])?;
        assert!(!self.sequences.contains_key(&sequence), "a sequence number is used twice");
        let words = snapshot.items[0].as_chunks().0;
        let gone = u64::from_le_bytes(snapshot.items[1][..].try_into().expect("checked")) as usize;
        let mut known =
            Sequence { tokens: words.iter().map(|&word| u32::from_le_bytes(word)).collect(), ..Sequence::default() };
        known.sliding.gone = gone;
        let needed = known.full.needed(0, known.length()) + known.sliding.needed(0, known.length());
        let free = self.capacity().pages_free;
        if needed > free {
            return Err(EngineError::Full { needed, free });
        }
        known.full.extend(0, known.tokens.len(), &self.pages_used);
        known.sliding.extend(0, known.tokens.len(), &self.pages_used);
        self.sequences.insert(sequence, known);
        Ok(())
    }
}
