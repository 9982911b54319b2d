//! A stress test of the trait `Engine`, for any engine: requests start, end, fork, go back, move to other sequences, are cancelled, run out
//! of pages and start again, and each that is not cancelled gets the same tokens as when it runs alone, apart from ties within rounding.

use std::collections::{BTreeMap, VecDeque};
use std::ops::AddAssign;

use gptoss_reference::Random;
use phase2_forward::{
    Adjustment, Draw, DrawnToken, Engine, EngineError, HostDraw, Logprobs, Outcome, Sampling, SequenceId, Ticket, Want,
    Work,
};

/// A waiting request starts only while fewer than this run. Forks may raise the number up to twice this.
const RUNNING: usize = 6;
/// The most tokens that a fork takes over, so that the pages suffice for each request alone.
const LONGEST_FORKED: usize = 300;
/// The most rounds per request; a test with more is assumed to hang.
const ROUNDS: usize = 1000;
/// Two logits that differ by less, in standard deviations of their row, count as tied.
const OPEN: f32 = 1e-3;
/// A sum of probabilities closer than this to the random number may fall on either side of it.
const OPEN_NUMBER: f32 = 1e-3;

/// A text to generate.
#[derive(Clone, Debug)]
struct Request {
    prompt: Vec<u32>,
    /// Number of tokens after which it is complete.
    wanted: usize,
    sampling: Sampling,
    seed: u64,
    allowed: Option<Vec<u32>>,
    adjustments: Vec<Adjustment>,
    logprobs: Option<usize>,
}

/// A running request.
struct Running {
    request: Request,
    sequence: SequenceId,
    /// Number of prompt tokens that were submitted.
    fed: usize,
    /// Number of tokens whose step was submitted.
    drawn: usize,
    /// The tokens that have been returned.
    tokens: Vec<DrawnToken>,
    /// The greatest length so far of the sequence, or of the one it was forked from. The engine's limit for going back counts from it.
    longest: usize,
}

/// Steps whose outcomes have not been collected yet, with their sequences.
type InFlight = VecDeque<(Ticket, Vec<SequenceId>)>;

/// How often each random event happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    pub completed: usize,
    pub forked: usize,
    pub cut_back: usize,
    pub restored: usize,
    pub cancelled: usize,
    /// Steps that were refused because the cache was full.
    pub full: usize,
}

impl AddAssign for Events {
    fn add_assign(&mut self, other: Events) {
        self.completed += other.completed;
        self.forked += other.forked;
        self.cut_back += other.cut_back;
        self.restored += other.restored;
        self.cancelled += other.cancelled;
        self.full += other.full;
    }
}

impl Request {
    fn random(random: &mut Random, vocab: usize) -> Request {
        let length = 1 + random.below(150);
        let greedy = random.below(3) == 0;
        let sampling = Sampling {
            temperature: if greedy { 0.0 } else { random.of(&[0.6, 1.0, 1.5]) },
            top_k: random.of(&[0, 3, 40]),
            top_p: random.of(&[1.0, 0.9, 0.3]),
            min_p: random.of(&[0.0, 0.05]),
        };
        let mask = |random: &mut Random| -> Vec<u32> {
            (0..vocab.div_ceil(32)).map(|_| random.below(1 << 30) as u32 | 1 << random.below(30)).collect()
        };
        let adjustment = |random: &mut Random| Adjustment {
            token: random.below(vocab) as u32,
            bias: random.of(&[0.0, 2.0, -3.0, f32::NEG_INFINITY]),
            repetition_penalty: random.of(&[1.0, 1.3]),
            penalty: random.of(&[0.0, 0.5]),
        };
        let mut adjustments: Vec<Adjustment> = match random.below(3) {
            0 => (0..1 + random.below(8)).map(|_| adjustment(random)).collect(),
            _ => Vec::new(),
        };
        adjustments.sort_by_key(|adjustment| adjustment.token);
        adjustments.dedup_by_key(|adjustment| adjustment.token);
        Request {
            prompt: (0..length).map(|_| random.below(vocab) as u32).collect(),
            wanted: 1 + random.below(12),
            sampling,
            seed: random.below(1 << 30) as u64,
            allowed: (random.below(4) == 0).then(|| mask(random)),
            adjustments,
            logprobs: random.of(&[None, None, Some(0), Some(5)]),
        }
    }

    fn draw(&self) -> Draw<'_> {
        Draw {
            sampling: self.sampling,
            seed: self.seed,
            allowed: self.allowed.as_deref(),
            adjustments: &self.adjustments,
            logprobs: self.logprobs,
        }
    }

    /// Whether `token` is a correct draw from `logits`, given that another engine's logits differ by rounding.
    fn accepts(&self, token: &DrawnToken, logits: &[f32], position: usize, host: &mut HostDraw) -> bool {
        let open = OPEN * deviation(logits);
        if token.logprobs.as_ref().is_some_and(|found| !agrees(found, token.id, logits, open)) {
            return false;
        }
        let draw = self.draw();
        if host.draw(&mut logits.to_vec(), position, &draw).is_some_and(|drawn| drawn.id == token.id) {
            return true;
        }
        let mut restricted = logits.to_vec();
        draw.restrict(&mut restricted);
        if draw.is_greedy() {
            let largest = restricted.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            return restricted[token.id as usize] >= largest - open;
        }
        // Filters may end one token earlier or later, and the random number may fall on the other side of a sum.
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let around = |exact: f32| [exact - OPEN_NUMBER, exact, exact + OPEN_NUMBER].map(|open| open.clamp(0.0, 1.0));
        let top_ps = if top_p < 1.0 { around(top_p).to_vec() } else { vec![1.0] };
        let min_ps = if min_p > 0.0 { around(min_p).to_vec() } else { vec![0.0] };
        let rows = [Some(restricted.clone()), swapped_at(top_k, restricted, open)];
        let numbers = around(phase2_forward::draw_number(self.seed, position));
        rows.iter().flatten().any(|row| {
            let mut filters = top_ps.iter().flat_map(|&top_p| min_ps.iter().map(move |&min_p| (top_p, min_p)));
            filters.any(|(top_p, min_p)| {
                let sampling = Sampling { top_k, top_p, min_p, ..self.sampling };
                let drawn = |number: f32| host.draw_number(row, &sampling, number.min(1.0f32.next_down()));
                numbers.map(drawn).contains(&token.id)
            })
        })
    }
}

/// The logits' standard deviation.
fn deviation(logits: &[f32]) -> f32 {
    let count = logits.len() as f32;
    let mean = logits.iter().sum::<f32>() / count;
    (logits.iter().map(|l| (l - mean).powi(2)).sum::<f32>() / count).sqrt()
}

/// Whether the log probabilities of `token` and of the most likely tokens agree with the logits, and the latter tokens have the largest
/// logits, both within `open`.
fn agrees(found: &Logprobs, token: u32, logits: &[f32], open: f32) -> bool {
    let sum = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    let is_of = |token: u32, logprob: f32| {
        (f64::from(logits[token as usize]) - sum - f64::from(logprob)).abs() <= f64::from(open)
    };
    let mut falling = logits.to_vec();
    falling.sort_by(|a, b| b.total_cmp(a));
    let is_next = |(&(token, logprob), &next): (&(u32, f32), &f32)| {
        is_of(token, logprob) && (logits[token as usize] - next).abs() <= open
    };
    is_of(token, found.token) && found.top.iter().zip(&falling).all(is_next)
}

/// The row with the logits of the last of the top k tokens and of the next token swapped, if they are so close that rounding may decide.
fn swapped_at(top_k: usize, mut row: Vec<f32>, open: f32) -> Option<Vec<f32>> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    let (&last, &next) = (order.get(top_k.checked_sub(1)?)?, order.get(top_k)?);
    if row[last] - row[next] > open {
        return None;
    }
    // Of two equal logits the lower token is taken, so the logits must differ.
    (row[last], row[next]) = (row[next].next_down(), row[last]);
    Some(row)
}

/// One of the numbers; `None` if there are none.
fn pick(numbers: &[usize], random: &mut Random) -> Option<usize> {
    (!numbers.is_empty()).then(|| random.of(numbers))
}

/// Whether an event is tried in this round: with the probability 1 / `rounds`, and always until it has happened once, so that every run in
/// which it is possible contains it.
fn is_due(happened: usize, rounds: usize, random: &mut Random) -> bool {
    happened == 0 || random.below(rounds) == 0
}

/// The indices of requests that have been fed at least `fed` tokens and have no step in flight.
fn idle(fed: usize, running: &[Running], in_flight: &InFlight) -> Vec<usize> {
    let under_way = |running: &Running| in_flight.iter().any(|(_, sequences)| sequences.contains(&running.sequence));
    (0..running.len()).filter(|&number| running[number].fed >= fed && !under_way(&running[number])).collect()
}

/// A length within its prompt to which a sequence can go back.
fn earlier(engine: &dyn Engine, running: &Running, random: &mut Random) -> Option<usize> {
    let (held, rewind) = (engine.length(running.sequence), engine.capacity().rewind);
    let end = held.min(running.request.prompt.len());
    let length = end.saturating_sub(random.below(rewind.min(8) + 1)).max(1);
    (length == held || running.longest.max(held) - length <= rewind).then_some(length)
}

/// Runs `count` random requests and forks of them concurrently on one engine, and each completed one again alone on another.
///
/// # Panics
/// If a request gets a wrong token or does not end, the engine fails, pages are not free at the end, or every request was cancelled.
pub fn stress(together: &mut dyn Engine, alone: &mut dyn Engine, seed: u64, count: usize) -> Events {
    let mut random = Random::new(seed);
    let vocab = together.config().vocab;
    let pages = together.capacity().pages_free;
    let mut waiting: VecDeque<Request> = (0..count).map(|_| Request::random(&mut random, vocab)).collect();
    let mut running: Vec<Running> = Vec::new();
    let mut complete: Vec<(Request, Vec<DrawnToken>)> = Vec::new();
    let mut in_flight = InFlight::new();
    let mut happened = Events::default();
    let mut next: SequenceId = 1;
    let mut rounds = 0;
    while !waiting.is_empty() || !running.is_empty() || !in_flight.is_empty() {
        rounds += 1;
        assert!(rounds < ROUNDS * count, "seed {seed}: {} requests do not end", running.len());
        // Some requests start.
        while running.len() < RUNNING && random.below(2) == 0 {
            let Some(request) = waiting.pop_front() else { break };
            running.push(Running { request, sequence: next, fed: 0, drawn: 0, tokens: Vec::new(), longest: 0 });
            next += 1;
        }
        // A request may fork, go back, move to another sequence, or be cancelled.
        if is_due(happened.forked, 6, &mut random)
            && happened.forked < count
            && running.len() < 2 * RUNNING
            && let Some(number) = pick(&idle(2, &running, &in_flight), &mut random)
            && let Some(length) = earlier(together, &running[number], &mut random)
            && length <= LONGEST_FORKED
        {
            let (from, sequence) = (&running[number], next);
            next += 1;
            let held = together.length(from.sequence);
            if let Err(error) = together.fork(from.sequence, sequence, length) {
                panic!("seed {seed}: a fork at {length} of {held}: {error}");
            }
            let mut request = Request::random(&mut random, vocab);
            request.prompt = [&from.request.prompt[..length], &request.prompt[..]].concat();
            let longest = from.longest.max(held);
            running.push(Running { request, sequence, fed: length, drawn: 0, tokens: Vec::new(), longest });
            happened.forked += 1;
        }
        if is_due(happened.cut_back, 8, &mut random)
            && let Some(number) = pick(&idle(1, &running, &in_flight), &mut random)
            && running[number].drawn == 0
            && let Some(length) = earlier(together, &running[number], &mut random)
        {
            let running = &mut running[number];
            let held = together.length(running.sequence);
            if let Err(error) = together.truncate(running.sequence, length) {
                panic!("seed {seed}: {held} tokens cut back to {length}: {error}");
            }
            (running.fed, running.longest) = (length, running.longest.max(held));
            happened.cut_back += 1;
        }
        if is_due(happened.restored, 12, &mut random)
            && let Some(number) = pick(&idle(1, &running, &in_flight), &mut random)
            && running[number].drawn == 0
            && let Some(snapshots) = together.snapshots()
        {
            let (from, to) = (running[number].sequence, next);
            next += 1;
            let saved = snapshots.save(from).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(saved.length, running[number].fed, "seed {seed}");
            match snapshots.restore(to, &saved) {
                Ok(()) => {
                    running[number].longest = running[number].longest.max(saved.length);
                    running[number].sequence = to;
                    together.release(from);
                    happened.restored += 1;
                }
                Err(EngineError::Full { needed, free }) => {
                    assert!(needed > free && together.length(to) == 0, "seed {seed}: {needed} of {free} pages");
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        if random.below(12) == 0
            && let Some(number) = pick(&idle(0, &running, &in_flight), &mut random)
        {
            together.release(running.remove(number).sequence);
            happened.cancelled += 1;
        }
        // A step with some of the requests.
        let mut chunks: BTreeMap<SequenceId, usize> = BTreeMap::new();
        let mut room = together.capacity().tokens_per_step.min(200);
        for running in &running {
            let left = running.request.prompt.len() - running.fed;
            let count = if left > 0 { left.min(1 + random.below(60)) } else { 1 };
            let more = left > 0 || running.drawn < running.request.wanted;
            if more && count <= room && random.below(4) > 0 {
                chunks.insert(running.sequence, count);
                room -= count;
            }
        }
        let work: Vec<Work<'_>> = (running.iter())
            .filter_map(|running| {
                let count = *chunks.get(&running.sequence)?;
                let Running { request, sequence, fed, .. } = running;
                let tokens = &request.prompt[*fed..];
                Some(match tokens.len() {
                    0 => Work::decode(*sequence, request.draw()),
                    left if left == count => Work::tokens(*sequence, tokens, Want::Token(request.draw())),
                    _ => Work::tokens(*sequence, &tokens[..count], Want::Nothing),
                })
            })
            .collect();
        if !work.is_empty() && in_flight.len() < together.capacity().steps_in_flight {
            match together.submit(&work) {
                Ok(ticket) => {
                    in_flight.push_back((ticket, work.iter().map(|item| item.sequence).collect()));
                    for running in &mut running {
                        if let Some(&count) = chunks.get(&running.sequence) {
                            let prompt = running.request.prompt.len();
                            let before = running.fed;
                            running.fed = prompt.min(running.fed + count);
                            running.drawn += usize::from(running.fed == prompt && (before < prompt || count == 1));
                        }
                    }
                    if random.below(2) == 0 {
                        continue;
                    }
                }
                // Preempts a request, which starts again later.
                Err(EngineError::Full { needed, free }) => {
                    assert!(needed > free, "seed {seed}: {needed} pages were refused with {free} free");
                    happened.full += 1;
                    if let Some(&victim) = idle(0, &running, &in_flight).last() {
                        let victim = running.remove(victim);
                        together.release(victim.sequence);
                        waiting.push_back(victim.request);
                    }
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        // Collects the oldest step.
        if let Some((ticket, sequences)) = in_flight.pop_front() {
            let outcomes = together.collect(ticket).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(outcomes.len(), sequences.len());
            for (sequence, outcome) in sequences.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Fed => {}
                    Outcome::Token(token) => {
                        let running =
                            running.iter_mut().find(|running| running.sequence == sequence).expect("a running request");
                        assert_eq!(token.logprobs.as_ref().map(|found| found.top.len()), running.request.logprobs);
                        running.tokens.push(token);
                    }
                    other => panic!("seed {seed}: {other:?}"),
                }
            }
            let done = |running: &Running| running.tokens.len() == running.request.wanted;
            while let Some(number) = running.iter().position(done) {
                let Running { request, sequence, tokens, .. } = running.remove(number);
                assert_eq!(together.length(sequence), request.prompt.len() + tokens.len() - 1, "seed {seed}");
                together.release(sequence);
                complete.push((request, tokens));
            }
        }
    }
    assert_eq!(together.capacity().pages_free, pages, "seed {seed}: pages were lost");
    assert!(!complete.is_empty(), "seed {seed}: every request was cancelled");
    happened.completed = complete.len();
    let mut host = HostDraw::default();
    for (request, tokens) in complete {
        let mut logits = Vec::new();
        for chunk in request.prompt.chunks(alone.capacity().tokens_per_step.min(512)) {
            logits = alone.last_logits(0, chunk).expect("the same request alone");
        }
        for (number, token) in tokens.iter().enumerate() {
            let position = request.prompt.len() + number;
            assert!(
                request.accepts(token, &logits, position, &mut host),
                "seed {seed}: token {number} is {token:?} in a batch and another alone: {request:?}"
            );
            logits = alone.last_logits(0, &[token.id]).expect("the same request alone");
        }
        alone.release(0);
    }
    happened
}
