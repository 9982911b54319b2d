//! The scheduler on real engines: a request gives the same tokens alone and together with others.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gptoss_reference::{Random, test_seed};
use phase1_loading::Checkpoint;
use phase2_forward::{
    Capacity, ComputeDevice, Draw, Engine, EngineError, GptOss, Outcome, Sampling, SequenceId, Ticket, Want, Work,
    delegate_engine,
};
use phase3_kvcache::{CachedEngine, Sampler, SamplingParams};
use phase5_flash::{CpuEngine, CpuOptions};
use serving::request::{Event, Finish, Request};
use serving::scheduler::{Options, RequestId, Scheduler};
use serving::spill::{Identity, Spill};
use synthetic::SyntheticModel;

/// Bytes of a page of the model below: 64 positions of 2 key/value heads of 32 numbers, keys and values in f32, in 2 layers. A page is for
/// layers of one kind, and the model has 2 sliding layers and 1 full layer.
const PAGE_BYTES: u64 = 64 * 2 * 32 * 2 * 4 * 2;
/// If the log probabilities of the two likeliest tokens differ by less than this, rounding may change their order.
const LEVEL: f32 = 1e-4;

struct Model {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Model {
    /// All experts for every token, so that rounding cannot change the choice of experts.
    fn random(seed: u64) -> Model {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("model.gguf");
        let nano = SyntheticModel::preset("nano").expect("a preset");
        let model = SyntheticModel { layers: 3, experts: 4, experts_per_token: 4, ..nano };
        model.write(&path, seed, &mut |_, _| ()).expect("written");
        Model { path, _directory: directory }
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.path).expect("opens")
    }

    fn cpu(&self, pages: u64) -> CpuEngine {
        let kv_bytes = Some(pages * PAGE_BYTES);
        let options = CpuOptions { threads: Some(2), exact: true, kv_bytes, ..CpuOptions::default() };
        let engine = CpuEngine::load(&self.checkpoint(), options).expect("loads");
        assert_eq!(engine.capacity().pages_total as u64, pages);
        engine
    }

    fn cached(&self) -> CachedEngine {
        let device = ComputeDevice::cpu("a test");
        CachedEngine::new(GptOss::load(&self.checkpoint(), device, &mut |_, _| ()).expect("loads"))
    }
}

/// Allows several steps in flight on an engine that computes each step when it is submitted.
struct Ahead {
    inner: CpuEngine,
    done: VecDeque<(Ticket, Vec<Outcome>)>,
}

impl Engine for Ahead {
    delegate_engine!(inner: config, length, fork, truncate, release);

    fn capacity(&self) -> Capacity {
        Capacity { steps_in_flight: 2, tokens_per_step: 64, ..self.inner.capacity() }
    }

    fn submit(&mut self, work: &[Work<'_>]) -> Result<Ticket, EngineError> {
        assert!(self.done.len() < 2, "too many steps in flight");
        let ticket = self.inner.submit(work)?;
        self.done.push_back((ticket, self.inner.collect(ticket)?));
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Outcome>, EngineError> {
        let (oldest, outcomes) = self.done.pop_front().expect("a step in flight");
        assert_eq!(oldest, ticket);
        Ok(outcomes)
    }
}

fn tokens(random: &mut Random, count: usize) -> Vec<u32> {
    (0..count).map(|_| random.below(1000) as u32).collect()
}

/// A request whose prompt may begin with a part of `common`.
fn request(random: &mut Random, common: &[u32], longest: usize, most: usize) -> Request {
    let shared = random.below(common.len());
    let own = 1 + random.below(longest);
    let seed = random.below(1000) as u64;
    let sampling = Sampling { temperature: 1.0, top_k: 50, ..Sampling::GREEDY };
    let sampling = match random.below(3) {
        0 => SamplingParams::default(),
        1 => SamplingParams { sampling, seed, ..SamplingParams::default() },
        _ => SamplingParams { sampling, seed, presence_penalty: 1.0, ..SamplingParams::default() },
    };
    Request {
        prompt: [&common[..shared], &tokens(random, own)].concat(),
        sampling,
        max_tokens: 1 + random.below(most),
        stop_tokens: tokens(random, 3),
        logprobs: None,
        deadline: None,
        client: random.below(3).to_string(),
        constraint: None,
    }
}

/// The tokens of a request without a scheduler, and for each token by how much the highest log probability exceeded the second.
fn alone(engine: &mut dyn Engine, request: &Request) -> (Vec<u32>, Vec<f32>) {
    const SEQUENCE: SequenceId = SequenceId::MAX;
    let mut sampler = Sampler::new(request.sampling.clone(), engine.config().vocab).expect("valid parameters");
    sampler.observe_prompt(&request.prompt);
    let (mut fed, mut tokens, mut leads) = (request.prompt.clone(), Vec::new(), Vec::new());
    while tokens.len() < request.max_tokens && tokens.last().is_none_or(|last| !request.stop_tokens.contains(last)) {
        let draw = Draw { logprobs: Some(2), ..sampler.next_draw() };
        let work = Work::tokens(SEQUENCE, &fed, Want::Token(draw));
        let drawn = engine.step(&[work]).expect("a step").remove(0).token().expect("a token");
        let top = drawn.logprobs.expect("log probabilities were requested").top;
        leads.push(top[0].1 - top[1].1);
        sampler.accept(drawn.id);
        tokens.push(drawn.id);
        fed = vec![drawn.id];
    }
    engine.release(SEQUENCE);
    (tokens, leads)
}

#[derive(Default)]
struct Received {
    cached: Option<usize>,
    tokens: Vec<u32>,
    finish: Option<Finish>,
}

impl Received {
    /// Asserts that the tokens are those of the request alone, and that all are there unless it was cancelled. Greedy texts may differ
    /// from a token on at which the two likeliest were closer than [`LEVEL`].
    fn check(&self, alone: &(Vec<u32>, Vec<f32>), request: &Request, was_cancelled: bool) {
        let (tokens, leads) = alone;
        let is_greedy = request.sampling == SamplingParams::default();
        if let Some(at) = self.tokens.iter().zip(tokens).position(|(found, expected)| found != expected) {
            let lead = leads[at];
            assert!(is_greedy && lead < LEVEL, "token {at} of {request:?}: {:?} for {tokens:?}", self.tokens);
            eprintln!("two tokens were level ({lead}); the texts part there");
            return;
        }
        assert!(self.tokens.len() <= tokens.len(), "{request:?}");
        assert!(was_cancelled || self.tokens.len() == tokens.len(), "{request:?}: {:?}", self.finish);
        if self.finish.is_some() {
            let last = *tokens.last().expect("at least one");
            let stops = request.stop_tokens.contains(&last);
            assert_eq!(self.finish, Some(if stops { Finish::Stop(last) } else { Finish::Length }));
        }
    }
}

type AllReceived = BTreeMap<RequestId, Received>;

fn turn(scheduler: &mut Scheduler, engine: &mut dyn Engine, received: &mut AllReceived) {
    scheduler.advance(engine, &Instant::now).expect("an engine that does not fail");
    for (id, event) in scheduler.take_events() {
        let received = received.entry(id).or_default();
        match event {
            Event::Started { cached_tokens } => received.cached = Some(cached_tokens),
            Event::Token { id, .. } => received.tokens.push(id),
            Event::Finished(finish) => received.finish = Some(finish),
        }
    }
}

/// Adds and cancels random requests, and compares each with the same request alone.
fn check_company(engine: &mut dyn Engine, requests: &[Request], options: &Options, random: &mut Random) {
    let alone: Vec<_> = requests.iter().map(|request| alone(engine, request)).collect();
    let mut scheduler = Scheduler::new(engine, options);
    let (mut received, mut cancelled) = (AllReceived::new(), Vec::new());
    for (id, request) in (0..).zip(requests) {
        assert!(request.check(engine.config().vocab, scheduler.context()).is_ok(), "{request:?}");
        scheduler.add(id, request.clone(), Instant::now());
        for _ in 0..random.below(12) {
            turn(&mut scheduler, engine, &mut received);
        }
        if random.below(4) == 0 {
            let which = random.below(id as usize + 1) as RequestId;
            scheduler.cancel(engine, which);
            cancelled.push(which);
        }
    }
    while !scheduler.is_idle() {
        turn(&mut scheduler, engine, &mut received);
    }
    for (id, (request, alone)) in (0..).zip(requests.iter().zip(&alone)) {
        received.entry(id).or_default().check(alone, request, cancelled.contains(&id));
    }
    scheduler.clear_prefixes(engine);
    let capacity = engine.capacity();
    assert_eq!(capacity.pages_free, capacity.pages_total, "pages were lost");
}

/// Consecutive seeds from a random first one, or from `TEST_SEED` if it is set.
fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let first = test_seed();
    (0..count).map(move |number| first.wrapping_add(number)).inspect(|seed| println!("seed {seed}"))
}

#[test]
fn cpu_texts_do_not_depend_on_other_requests() {
    for seed in seeds(3) {
        let (model, mut random) = (Model::random(seed), Random::new(seed));
        let common = tokens(&mut random, 150);
        let requests: Vec<Request> = (0..8).map(|_| request(&mut random, &common, 60, 60)).collect();
        for (pages, prompt_tokens_per_step, prefix_cache) in [(400, 512, true), (16, 40, true), (16, 512, false)] {
            let options = Options {
                max_running: 4,
                max_waiting: 100,
                prompt_tokens_per_step,
                prefix_cache,
                ..Options::default()
            };
            check_company(&mut model.cpu(pages), &requests, &options, &mut random);
        }
        let options = Options { max_running: 4, ..Options::default() };
        let mut ahead = Ahead { inner: model.cpu(30), done: VecDeque::new() };
        check_company(&mut ahead, &requests, &options, &mut random);
    }
}

#[test]
fn phase_3_texts_do_not_depend_on_other_requests() {
    for seed in seeds(1) {
        let (model, mut random) = (Model::random(seed), Random::new(seed));
        let common = tokens(&mut random, 20);
        let requests: Vec<Request> = (0..5).map(|_| request(&mut random, &common, 20, 12)).collect();
        check_company(&mut model.cached(), &requests, &Options::default(), &mut random);
    }
}

/// Two texts that together need more pages than the cache has.
#[test]
fn preempted_text_continues_unchanged() {
    for seed in seeds(1) {
        let (model, mut random) = (Model::random(seed), Random::new(seed));
        let mut engine = model.cpu(12);
        let requests: Vec<Request> = (0..2)
            .map(|_| Request { max_tokens: 260, stop_tokens: Vec::new(), ..request(&mut random, &[0], 40, 1) })
            .collect();
        let alone: Vec<_> = requests.iter().map(|request| alone(&mut engine, request)).collect();
        let (mut scheduler, mut received) = (Scheduler::new(&engine, &Options::default()), AllReceived::new());
        for (id, request) in (0..).zip(&requests) {
            scheduler.add(id, request.clone(), Instant::now());
        }
        while !scheduler.is_idle() {
            turn(&mut scheduler, &mut engine, &mut received);
        }
        assert!(scheduler.statistics(&engine).preemptions > 0);
        for (id, (request, alone)) in (0..).zip(requests.iter().zip(&alone)) {
            received[&id].check(alone, request, false);
        }
    }
}

/// Three turns of a chat, cold and cached: the same texts, and no prompt is computed twice.
#[test]
fn cached_chat_generates_the_same_text() {
    for seed in seeds(2) {
        let (model, mut random) = (Model::random(seed), Random::new(seed));
        let mut engine = model.cpu(400);
        let (mut scheduler, mut received) = (Scheduler::new(&engine, &Options::default()), AllReceived::new());
        let mut prompt = tokens(&mut random, 300);
        let mut before = 0;
        for id in 0..3 {
            let request = Request { prompt: prompt.clone(), max_tokens: 40, ..request(&mut random, &[0], 1, 1) };
            let alone = alone(&mut engine, &request);
            scheduler.add(id, request.clone(), Instant::now());
            while !scheduler.is_idle() {
                turn(&mut scheduler, &mut engine, &mut received);
            }
            received[&id].check(&alone, &request, false);
            assert_eq!(received[&id].cached, Some(before));
            before = prompt.len();
            // The next prompt leaves out what was generated, as a chat's prompt leaves out earlier reasoning.
            let other = (received[&id].tokens[0] + 1) % 1000;
            prompt.extend([vec![other], tokens(&mut random, 80)].concat());
        }
    }
}

/// A chat that continues after a restart from the stored files: the same text, and its last prompt is not computed again.
#[test]
fn chat_restored_from_disk_generates_the_same_text() {
    for seed in seeds(2) {
        let (model, mut random) = (Model::random(seed), Random::new(seed));
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut prompt = tokens(&mut random, 300);
        let mut before = 0;
        for id in 0..3 {
            let mut engine = model.cpu(400);
            let identity = Identity {
                model: model.checkpoint().fingerprint(),
                rope: "exact".into(),
                cache: "f32".into(),
                engine: engine.snapshots().expect("it saves").kind().into(),
            };
            let disk = Spill::open(folder.path(), 1 << 30, identity, |sentence| panic!("{sentence}"));
            let disk = disk.expect("a folder");
            let request = Request { prompt: prompt.clone(), max_tokens: 40, ..request(&mut random, &[0], 1, 1) };
            let alone = alone(&mut engine, &request);
            let mut scheduler = Scheduler::new(&engine, &Options::default()).spill_to(disk);
            let mut received = AllReceived::new();
            scheduler.add(id, request.clone(), Instant::now());
            while !scheduler.is_idle() {
                turn(&mut scheduler, &mut engine, &mut received);
            }
            received[&id].check(&alone, &request, false);
            assert_eq!(received[&id].cached, Some(before));
            assert_eq!(scheduler.statistics(&engine).spilled.restored_tokens, before as u64);
            scheduler.spill_all(&mut engine, Instant::now() + Duration::from_secs(60));
            before = prompt.len();
            // The next prompt leaves out what was generated, as a chat's prompt leaves out earlier reasoning.
            let other = (received[&id].tokens[0] + 1) % 1000;
            prompt.extend([vec![other], tokens(&mut random, 80)].concat());
        }
    }
}
