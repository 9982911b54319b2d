//! The scheduler's rules, on the fake engine, whose texts can be predicted.

#[allow(dead_code, reason = "each test uses a part of it")]
mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fake::run::{Received, Run, TURN, seeded, text};
use fake::{Fake, POISON, VOCAB, expected, request};
use phase2_forward::{Engine, EngineError, Outcome, Ticket, delegate_engine};
use phase3_kvcache::SamplingParams;
use proptest::prelude::*;
use serving::request::{Constraint, Finish, Request};
use serving::scheduler::{Options, RequestId, Scheduler};

#[derive(Clone, Debug)]
struct Arrival {
    delay: usize,
    request: Request,
    /// The number of iterations of the scheduler after which the request is cancelled.
    cancelled: Option<usize>,
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    prop_oneof![
        2 => Just(SamplingParams::default()),
        2 => (0..3u64).prop_map(seeded),
        1 => (0..3u64).prop_map(|seed| SamplingParams { frequency_penalty: 0.5, ..seeded(seed) }),
        1 => Just(SamplingParams { repetition_penalty: 1.5, logit_bias: vec![(3, 1.0)], ..SamplingParams::default() }),
    ]
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let prompt = (0..2u32, 0..40usize, prop::collection::vec(0..POISON, 1..10))
        .prop_map(|(family, shared, own)| [text(family, shared), own].concat());
    let stops = prop_oneof![2 => Just(0u32), 1 => Just(8)];
    let when = (0..6usize, prop::option::weighted(0.2, 0..15usize));
    (when, prompt, sampling(), 0..25usize, stops, 0..3usize).prop_map(
        |((delay, cancelled), prompt, sampling, max_tokens, stops, client)| {
            let stop_tokens = (0..stops).collect();
            let client = client.to_string();
            let request = Request { sampling, stop_tokens, client, ..request(&prompt, max_tokens) };
            Arrival { delay, request, cancelled }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// With random arrivals, cancellations and too few pages, every text equals that of the request alone, and nothing is left in the
    /// engine.
    #[test]
    fn texts_do_not_depend_on_other_requests(
        arrivals in prop::collection::vec(arrival(), 1..14),
        pages in prop_oneof![22..40usize, 40..200usize],
        steps_in_flight in 1..4usize,
        max_running in 1..6usize,
        prompt_tokens_per_step in prop_oneof![Just(3usize), Just(512)],
        prefix_cache: bool,
    ) {
        let options = Options { max_running, max_waiting: 100, prompt_tokens_per_step, prefix_cache, ..Options::default() };
        let mut run = Run::new(Fake::new(pages, steps_in_flight), options);
        let mut cancelled = Vec::new();
        for Arrival { delay, request, cancelled: after } in &arrivals {
            (0..*delay).for_each(|_| run.turn());
            let id = run.add(request.clone());
            if let Some(after) = after {
                (0..*after).for_each(|_| run.turn());
                run.scheduler.cancel(&mut run.engine, id);
                run.receive();
                cancelled.push(id);
            }
        }
        run.finish();
        for (id, Arrival { request, .. }) in (0..).zip(&arrivals) {
            let is_cut =
                cancelled.contains(&id) && run.received.get(&id).is_none_or(|received| received.finish.is_none());
            if is_cut {
                let received = run.received.get(&id).cloned().unwrap_or_default();
                prop_assert!(expected(request, run.scheduler.context()).0.starts_with(&received.tokens));
            } else {
                run.check(id, request);
            }
        }
        if !prefix_cache {
            prop_assert_eq!(run.engine.sequences(), 0);
        }
        run.check_empty();
    }
}

/// The next turn of a conversation repeats the prompt of the first, but not its answer: the cache is reused up to the end of that prompt.
#[test]
fn next_turn_reuses_the_cache_up_to_its_prompt() {
    let mut run = Run::roomy();
    let first = run.run(request(&text(0, 100), 5));
    assert_eq!(first.cached, Some(0));
    let before = run.engine.computed();
    let other = (first.tokens[0] + 1) % POISON;
    let next = request(&[text(0, 100), vec![other; 30]].concat(), 5);
    assert_eq!(run.run(next.clone()).cached, Some(100));
    // The tokens that were not cached, and all generated tokens except the last.
    assert_eq!(run.engine.computed() - before, 30 + 4);
    run.check(1, &next);
}

#[test]
fn repeated_prompt_computes_only_its_last_token() {
    let mut run = Run::roomy();
    let again = request(&text(0, 100), 5);
    let cached = [(); 3].map(|()| run.run(again.clone()).cached);
    assert_eq!(cached, [Some(0), Some(99), Some(99)]);
    (0..3).for_each(|id| run.check(id, &again));
}

#[test]
fn prompt_with_the_answer_reuses_the_answers_cache() {
    for steps_in_flight in 1..4 {
        let mut run = Run::new(Fake::new(400, steps_in_flight), Options::default());
        let first = run.run(request(&text(0, 100), 5));
        let next = request(&[text(0, 100), first.tokens, vec![1; 30]].concat(), 5);
        // The last generated token was not fed.
        assert_eq!(run.run(next.clone()).cached, Some(104), "{steps_in_flight} steps");
        run.check(1, &next);
    }
}

#[test]
fn third_chat_reuses_shared_instructions() {
    let mut run = Run::roomy();
    // Chats of three clients.
    let chat = |user: u32| {
        let prompt = [text(0, 60), vec![user; 40]].concat();
        Request { client: user.to_string(), ..request(&prompt, 3) }
    };
    let cached = [1, 2, 3].map(|user| run.run(chat(user)).cached);
    assert_eq!(cached, [Some(0), Some(0), Some(60)]);
}

#[test]
fn simultaneous_equal_prompts_are_computed_once() {
    let mut run = Run::new(Fake::new(400, 2), Options::default());
    let same = |seed| Request { sampling: seeded(seed), ..request(&text(0, 300), 8) };
    let ids: Vec<RequestId> = (0..4).map(|seed| run.add(same(seed))).collect();
    run.finish();
    let cached: Vec<_> = ids.iter().map(|id| run.received[id].cached).collect();
    assert_eq!(cached, [Some(0), Some(299), Some(299), Some(299)]);
    (0..4).for_each(|seed| run.check(seed, &same(seed)));
}

#[test]
fn clients_are_served_in_turn() {
    let mut run = Run::new(Fake::new(400, 1), Options { max_running: 1, ..Options::default() });
    let of = |client: &str| Request { client: client.into(), ..request(&[1, 2], 3) };
    for client in ["a", "a", "a", "a", "b", "c", "b"] {
        run.add(of(client));
    }
    run.finish();
    assert_eq!(run.started, [0, 4, 5, 1, 6, 2, 3]);
}

/// While a long prompt is computed, another text gets a token in every step, and no step feeds more prompt tokens than the limit.
#[test]
fn long_prompt_does_not_delay_other_texts() {
    let options = Options { prompt_tokens_per_step: 8, ..Options::default() };
    let mut run = Run::new(Fake::new(400, 1), options);
    let decoding = run.add(request(&[1, 2, 3], 60));
    (0..5).for_each(|_| run.turn());
    let long = run.add(request(&text(0, 300), 2));
    let before = (run.engine.steps.len(), run.received[&decoding].tokens.len());
    while run.received.get(&long).is_none_or(|received| received.tokens.is_empty()) {
        run.turn();
    }
    let steps = &run.engine.steps[before.0..];
    assert!(steps.len() >= 300 / 8);
    assert!(steps.iter().all(|step| step.iter().sum::<usize>() <= 8 + 1), "{steps:?}");
    assert_eq!(run.received[&decoding].tokens.len() - before.1, steps.len());
}

/// A chunk exceeds the limit by up to a quarter if it then completes its prompt.
#[test]
fn the_last_chunk_of_a_prompt_includes_a_short_rest() {
    let expected: [(usize, &[usize]); 5] =
        [(40, &[40]), (50, &[50]), (51, &[40, 11]), (90, &[40, 50]), (91, &[40, 40, 11])];
    for (prompt, chunks) in expected {
        let options = Options { prompt_tokens_per_step: 40, ..Options::default() };
        let mut run = Run::new(Fake::new(400, 1), options);
        run.add(request(&[1, 2, 3], 60));
        (0..3).for_each(|_| run.turn());
        let before = run.engine.steps.len();
        let joining = run.add(request(&text(0, prompt), 2));
        while !run.spoken.contains(&joining) {
            run.turn();
        }
        let steps: Vec<Vec<usize>> = chunks.iter().map(|&chunk| vec![1, chunk]).collect();
        assert_eq!(run.engine.steps[before..], steps, "{prompt} tokens");
    }
}

#[test]
fn a_short_prompt_overtakes_a_long_one() {
    let options = Options { prompt_tokens_per_step: 16, ..Options::default() };
    let mut run = Run::new(Fake::new(400, 1), options);
    let long = run.add(request(&text(0, 300), 2));
    let short = run.add(request(&text(1, 20), 2));
    run.finish();
    assert_eq!(run.spoken, [short, long]);
}

#[test]
fn youngest_request_is_preempted_without_changing_its_text() {
    let mut run = Run::new(Fake::new(24, 2), Options::default());
    let requests: Vec<Request> =
        (0..2).map(|seed| Request { sampling: seeded(seed), ..request(&text(0, 4), 45) }).collect();
    for request in &requests {
        run.add(request.clone());
    }
    run.finish();
    assert!(run.scheduler.statistics(&run.engine).preemptions > 0);
    assert_eq!(run.spoken, [0, 1]);
    (0..).zip(&requests).for_each(|(id, request)| run.check(id, request));
    run.check_empty();
}

/// A prompt is started only when the cache has pages for all of it, so that no request is preempted at once.
#[test]
fn a_prompt_waits_for_its_pages() {
    for (tokens, together) in [(4, 2), (60, 1)] {
        let mut run = Run::new(Fake::new(40, 1), Options::default());
        let requests = [request(&text(0, 60), 8), request(&text(1, tokens), 8)];
        for request in &requests {
            run.add(request.clone());
        }
        let mut most = 0;
        while !run.scheduler.is_idle() {
            run.turn();
            most = most.max(run.scheduler.statistics(&run.engine).running);
        }
        assert_eq!(most, together, "{tokens} tokens");
        assert_eq!(run.scheduler.statistics(&run.engine).preemptions, 0);
        (0..).zip(&requests).for_each(|(id, request)| run.check(id, request));
        run.check_empty();
    }
}

/// Each iteration of the scheduler ([`Run::turn`]) collects one step, and submits as many as may be in flight.
#[test]
fn steps_are_submitted_before_earlier_ones_are_collected() {
    for ahead in 1..4 {
        let mut run = Run::new(Fake::new(400, ahead), Options::default());
        let id = run.add(request(&[1, 2, 3], 20));
        for turn in 1..=5 {
            run.turn();
            let counts = (run.engine.steps.len(), run.received[&id].tokens.len());
            assert_eq!(counts, (ahead + turn - 1, turn), "{ahead} in flight");
        }
    }
}

/// An engine each of whose steps takes 10 ms by a simulated clock in milliseconds.
struct Clocked {
    inner: Fake,
    clock: Arc<AtomicU64>,
}

impl Engine for Clocked {
    delegate_engine!(inner: config, capacity, length, submit, fork, truncate, release);

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        self.clock.fetch_add(10, Ordering::Relaxed);
        self.inner.collect(ticket)
    }
}

/// The next step is submitted 3 ms before the current one ends if a request could still join it, and otherwise at once.
#[test]
fn the_next_step_waits_for_requests_that_could_join_it() {
    let (clock, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let now = || begun + Duration::from_millis(clock.load(Ordering::Relaxed));
    let mut engine = Clocked { inner: Fake::new(400, 2), clock: Arc::clone(&clock) };
    let mut scheduler = Scheduler::new(&engine, &Options { max_running: 2, ..Options::default() });
    let spare_after = |scheduler: &mut Scheduler, engine: &mut Clocked| {
        scheduler.advance(engine, &now).expect("an engine that does not fail");
        scheduler.spare_time(now()).as_millis()
    };
    scheduler.add(0, request(&[1, 2, 3], 60), now());
    // The step of the prompt, and the first four decoding steps.
    let spare = [(); 5].map(|()| spare_after(&mut scheduler, &mut engine));
    assert_eq!(spare, [0, 0, 0, 0, 7]);
    clock.fetch_add(5, Ordering::Relaxed);
    assert_eq!(scheduler.spare_time(now()).as_millis(), 2);

    scheduler.add(1, request(&[4, 5, 6], 60), now());
    assert_eq!(scheduler.spare_time(now()).as_millis(), 0, "a request waits");
    // It joins the step that was not submitted yet. Then as many requests run as may run together.
    assert_eq!(spare_after(&mut scheduler, &mut engine), 0);
    assert_eq!(engine.inner.steps.last(), Some(&vec![1, 3]));
    assert_eq!([(); 6].map(|()| spare_after(&mut scheduler, &mut engine)), [0; 6]);
    scheduler.cancel(&mut engine, 1);
    assert_eq!(scheduler.spare_time(now()).as_millis(), 7);
}

#[test]
fn deadlines_end_running_and_waiting_requests() {
    let mut run = Run::new(Fake::new(400, 1), Options { max_running: 1, ..Options::default() });
    let deadline = Some(run.now + 6 * TURN);
    let [running, waiting] = [1, 2].map(|token| run.add(Request { deadline, ..request(&[token], 100) }));
    run.finish();
    assert_eq!(run.received[&running].finish, Some(Finish::Deadline));
    assert_eq!(run.received[&running].tokens.len(), 5);
    assert_eq!(run.received[&waiting], Received { finish: Some(Finish::Deadline), ..Received::default() });
    run.check_empty();
}

/// NaN logits end one request, and its cache is not reused.
#[test]
fn nan_logits_end_only_their_request() {
    let mut run = Run::new(Fake::new(400, 2), Options::default());
    let bad = request(&[text(0, 40), vec![POISON; 3]].concat(), 5);
    let good = request(&text(1, 40), 5);
    let ids = [&bad, &good, &bad].map(|request| run.add(request.clone()));
    run.finish();
    for id in [ids[0], ids[2]] {
        assert!(matches!(run.received[&id].finish, Some(Finish::Failed(_))), "{:?}", run.received[&id]);
        assert!(run.received[&id].tokens.is_empty());
    }
    run.check(ids[1], &good);
    assert_eq!(run.run(bad).cached, Some(0));
    run.check_empty();
}

#[test]
fn zero_tokens_compute_nothing() {
    let mut run = Run::roomy();
    assert_eq!(run.run(request(&[1, 2], 0)).finish, Some(Finish::Length));
    assert_eq!(run.engine.computed(), 0);
}

#[test]
fn text_ends_at_the_context_length() {
    let mut run = Run::new(Fake::new(24, 3), Options::default());
    let context = run.scheduler.context();
    let long = request(&text(0, context - 3), 100);
    let received = run.run(long.clone());
    assert_eq!((received.tokens.len(), received.finish), (4, Some(Finish::Length)));
    run.check(0, &long);
}

#[test]
fn prefix_cache_stays_within_its_limit() {
    let mut run = Run::new(Fake::new(80, 1), Options::default());
    for family in 0..30 {
        run.run(request(&[vec![family], text(family, 20)].concat(), 2));
    }
    let kept = run.scheduler.statistics(&run.engine).prefixes;
    assert!((1..=80 / 4).contains(&kept), "{kept}");
    run.check_empty();
}

/// Allows only tokens whose remainder modulo 7 is the next after that of the previous token (first 0, and 0 again after 6), and fails when
/// it gets token number `most`.
#[derive(Clone, Debug)]
struct Remainders {
    mask: Vec<u32>,
    most: usize,
}

impl Remainders {
    fn boxed(most: usize) -> Box<dyn Constraint> {
        Box::new(Remainders { mask: Self::mask(0), most })
    }

    fn mask(remainder: u32) -> Vec<u32> {
        let mut mask = vec![0; VOCAB.div_ceil(32)];
        (0..POISON)
            .filter(|token| token % 7 == remainder)
            .for_each(|token| mask[token as usize / 32] |= 1 << (token % 32));
        mask
    }
}

impl Constraint for Remainders {
    fn allowed(&self) -> Option<&[u32]> {
        Some(&self.mask)
    }

    fn push(&mut self, token: u32) -> Result<(), String> {
        self.most -= 1;
        self.mask = Self::mask((token + 1) % 7);
        if self.most == 0 { Err("nothing more".into()) } else { Ok(()) }
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[test]
fn constraint_gets_each_token_before_the_next_draw() {
    // Numbers of steps in flight and of pages; with few pages, sequences are preempted.
    for (ahead, pages) in [(1, 400), (2, 400), (3, 400), (2, 40)] {
        let mut run = Run::new(Fake::new(pages, ahead), Options::default());
        let constrained = |seed| Request {
            constraint: Some(Remainders::boxed(1000)),
            sampling: seeded(seed),
            ..request(&[5, 6], 30)
        };
        let free = |seed| Request { sampling: seeded(seed), ..request(&[5, 6, 7], 30) };
        let requests = [constrained(1), free(1), constrained(2), free(2)];
        let ids = requests.clone().map(|request| run.add(request));
        run.finish();
        for (&id, request) in ids.iter().zip(&requests) {
            run.check(id, request);
            let tokens = &run.received[&id].tokens;
            let follow = tokens.windows(2).all(|pair| pair[1] % 7 == (pair[0] + 1) % 7);
            assert_eq!(tokens[0].is_multiple_of(7) && follow, request.constraint.is_some(), "{tokens:?}");
        }
        run.check_empty();
    }
}

#[test]
fn constraint_without_allowed_tokens_fails_its_request() {
    let mut run = Run::new(Fake::new(400, 2), Options::default());
    let failing = Request { constraint: Some(Remainders::boxed(4)), ..request(&[5], 30) };
    let other = request(&[6], 30);
    let ids = [&failing, &other].map(|request| run.add(request.clone()));
    run.finish();
    run.check(ids[0], &failing);
    run.check(ids[1], &other);
    let received = &run.received[&ids[0]];
    assert_eq!((received.tokens.len(), &received.finish), (4, &Some(Finish::Failed("nothing more".into()))));
    run.check_empty();
}
