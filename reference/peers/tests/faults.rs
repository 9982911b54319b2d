//! Faults of a worker, simulated by a script. Each gives an error, or an outcome of its row; the engine neither hangs nor panics.

use std::path::PathBuf;
use std::time::Duration;

use gates::refusals::refuse_all;
use gptoss_reference::Case;
use peers::{Launch, Options, Peer, PeerEngine};
use phase1_loading::Checkpoint;
use phase2_forward::{BadRequest, Draw, Engine, EngineError, Outcome, Sampling, Ticket, Want, Work};

/// Timeout for workers that answer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for workers that never answer. A step of one token gets two seconds more.
const SHORT: Duration = Duration::from_secs(1);

fn launch(peer: Peer, behaviour: &str) -> Launch {
    let program = format!("BEHAVIOUR = {behaviour:?}\n{}", include_str!("fake_worker.py"));
    Launch { peer, python: PathBuf::from("python3"), program }
}

fn checkpoint() -> (PathBuf, Checkpoint) {
    let path = Case::committed().remove(0).model();
    let checkpoint = Checkpoint::open(&path).expect("opens");
    (path, checkpoint)
}

fn start(peer: Peer, behaviour: &str, options: &Options) -> Result<PeerEngine, EngineError> {
    let (path, checkpoint) = checkpoint();
    PeerEngine::start(&launch(peer, behaviour), &checkpoint, &path, options)
}

fn options(patience: Duration) -> Options {
    Options { patience, ..Options::default() }
}

fn started(behaviour: &str, patience: Duration) -> PeerEngine {
    start(Peer::Mlx, behaviour, &options(patience)).unwrap_or_else(|error| panic!("{behaviour}: {error}"))
}

/// The message of a device error.
fn failure<T>(behaviour: &str, result: Result<T, EngineError>) -> String {
    match result {
        Err(EngineError::Device(sentence)) => sentence,
        Err(other) => panic!("{behaviour}: {other:?}"),
        Ok(_) => panic!("{behaviour}: no error"),
    }
}

/// The logits that the script returns.
fn row(vocab: usize, position: usize, token: usize) -> Vec<f32> {
    (0..vocab).map(|column| ((7 * column + position + token) % 11) as f32).collect()
}

fn last(tokens: &[u32]) -> [Work<'_>; 1] {
    [Work::tokens(0, tokens, Want::LastLogits)]
}

fn greedy(tokens: &[u32]) -> [Work<'_>; 1] {
    [Work::tokens(0, tokens, Want::Token(Draw::GREEDY))]
}

#[test]
fn worker_behaves_as_an_engine() {
    let mut engine = started("works", TIMEOUT);
    let vocab = engine.config().vocab;
    let mut mask = vec![0; vocab.div_ceil(32)];
    mask[0] = 1 << 5;
    let sampled =
        Draw { sampling: Sampling { temperature: 1.0, ..Sampling::GREEDY }, allowed: Some(&mask), ..Draw::GREEDY };
    let work = [
        Work::tokens(3, &[1, 2], Want::AllLogits),
        Work::tokens(4, &[6], Want::Nothing),
        Work::tokens(5, &[2, 9, 4], Want::Token(Draw::GREEDY)),
        Work::tokens(6, &[8, 8], Want::LastLogits),
        Work::tokens(7, &[3], Want::Token(sampled)),
    ];
    let outcomes = engine.step(&work).expect("a step");
    assert_eq!(outcomes[0], Outcome::Logits([row(vocab, 0, 1), row(vocab, 1, 2)].concat()));
    assert_eq!(outcomes[1], Outcome::Fed);
    // Position 2 and token 4: the first column c with 7 c + 6 = 10 in ℤ/11 is 10.
    assert_eq!(outcomes[2].drawn_id(), Some(10));
    assert_eq!(outcomes[3], Outcome::Logits(row(vocab, 1, 8)));
    assert_eq!(outcomes[4].drawn_id(), Some(5));
    // The worker is fed the token that it drew.
    let next = engine.step(&[Work { want: Want::LastLogits, ..Work::decode(5, Draw::GREEDY) }]).expect("a step");
    assert_eq!(next, [Outcome::Logits(row(vocab, 3, 10))]);
    engine.truncate(5, 2).expect("it is truncated");
    assert!(matches!(
        engine.step(&[Work::decode(5, Draw::GREEDY)]),
        Err(EngineError::BadRequest(BadRequest::NothingDrawn(5)))
    ));
    engine.fork(5, 8, 1).expect("a fork");
    assert_eq!((engine.length(5), engine.length(8)), (2, 1));
    assert_eq!(engine.last_logits(8, &[3]).expect("logits"), row(vocab, 1, 3));
    assert_eq!(engine.stats().expect("statistics").peak_resident_bytes, Some(5));
    assert_eq!(engine.hello().versions["fake"], "1");
    assert!(engine.snapshots().is_none());
}

/// The engine refuses bad requests itself: the script refuses none.
#[test]
fn bad_requests_are_refused() {
    for peer in Peer::ALL {
        let mut engine = start(peer, "works", &options(TIMEOUT)).expect("starts");
        assert!(!refuse_all(&mut engine).is_empty());
    }
}

#[test]
fn load_failures_are_reported() {
    let none = Launch { python: PathBuf::from("no-such-python"), ..launch(Peer::Mlx, "works") };
    let (path, checkpoint) = checkpoint();
    match PeerEngine::start(&none, &checkpoint, &path, &Options::default()) {
        Err(EngineError::Unsupported(sentence)) => {
            assert!(sentence.starts_with("no-such-python for MLX cannot be started: "), "{sentence}");
        }
        _ => panic!("a Python that does not exist was started"),
    }
    match start(Peer::LlamaCpp, "refuses the model", &options(TIMEOUT)) {
        Err(EngineError::Unsupported(sentence)) => assert_eq!(sentence, "llama.cpp: no such model"),
        _ => panic!("expected the worker's refusal of the model"),
    }
    for (behaviour, expected) in [
        ("dies while it loads", "it ended (exit status: 1); its last output: no such package"),
        ("loads another model", "it loaded another model, of 99 layers and 299 tokens"),
        ("says nothing of itself", "its reply is incomplete: missing field `device`"),
    ] {
        let found = failure(behaviour, start(Peer::Mlx, behaviour, &options(TIMEOUT)));
        assert_eq!(found, format!("the MLX worker failed: {expected}; restart to load the model again"));
    }
}

#[test]
fn step_failures_end_the_worker() {
    for (behaviour, expected) in [
        ("dies", "it ended (exit status: 7); its last output: out of memory"),
        ("prints", "its reply begins with a length of 1667330644 bytes"),
        ("closes its stdout", "it closed its stdout"),
        ("announces too much", "its reply announces 1099511627776 bytes where at most 1196 are expected"),
        ("sends too little", "its reply has 1192 bytes where 1196 are expected"),
        ("breaks off", "its reply broke off after 1192 of 1196 bytes"),
        ("fails", "MemoryError: no room"),
    ] {
        let mut engine = started(behaviour, TIMEOUT);
        check_end(&mut engine, behaviour, expected, &last(&[1]));
    }
    for (behaviour, expected) in [
        ("draws nonsense", "it drew [Some(299)]; the request was for 1, from a vocabulary of 299"),
        ("draws too much", "it drew [Some(1), Some(2)]; the request was for 1, from a vocabulary of 299"),
        ("forgets the tokens", "its reply is incomplete: missing field `tokens`"),
    ] {
        let mut engine = started(behaviour, TIMEOUT);
        check_end(&mut engine, behaviour, expected, &greedy(&[1]));
    }
}

#[test]
fn hanging_worker_is_killed() {
    for behaviour in ["hangs", "hangs within a reply"] {
        let mut engine = started(behaviour, SHORT);
        check_end(&mut engine, behaviour, "it did not reply within 3 s", &last(&[1]));
    }
}

/// A step fails with this message, and so do later calls that need the worker.
fn check_end(engine: &mut PeerEngine, behaviour: &str, expected: &str, work: &[Work<'_>]) {
    let expected = format!("the MLX worker failed: {expected}; restart to load the model again");
    let ticket = engine.submit(work).expect("a valid step");
    assert_eq!(failure(behaviour, engine.collect(ticket)), expected);
    assert!(matches!(engine.collect(ticket), Err(EngineError::BadRequest(BadRequest::UnknownTicket(_)))));
    assert_eq!(failure(behaviour, engine.submit(work)), expected);
    assert_eq!(failure(behaviour, engine.fork(0, 1, 1)), expected);
    assert_eq!(failure(behaviour, engine.truncate(0, 1)), expected);
    engine.release(0);
    assert_eq!(engine.length(0), 0);
    assert_eq!(failure(behaviour, engine.stats()), expected);
}

/// A second reply to one request ends the worker: it would otherwise be taken for the reply to the next request.
#[test]
fn unrequested_reply_is_refused() {
    let mut engine = started("answers twice", TIMEOUT);
    engine.step(&last(&[1])).expect("the first answer is right");
    // The second answer may still be on its way, and would then be read as the answer to this request, where no payload is expected.
    let sentence = failure("answers twice", engine.stats());
    let expected = [
        "it sent a reply without a request",
        "its reply announces 1196 bytes where at most 0 are expected",
        "its reply has 1196 bytes where 0 are expected",
    ];
    assert!(expected.iter().any(|expected| sentence.contains(expected)), "{sentence}");
}

#[test]
fn nan_logits_fail_their_row_only() {
    let mut engine = started("sees NaN", TIMEOUT);
    assert_eq!(engine.step(&greedy(&[1, 2])).expect("a step"), [Outcome::NotANumber { position: 2 }]);
    let again = engine.step(&[Work::decode(0, Draw::GREEDY)]);
    assert!(matches!(again, Err(EngineError::BadRequest(BadRequest::NothingDrawn(0)))), "{again:?}");
}

#[test]
fn refused_truncation_changes_nothing() {
    let mut engine = started("cannot go back", TIMEOUT);
    engine.step(&last(&[1, 2, 3])).expect("a step");
    let refused = |result: Result<(), EngineError>| match result {
        Err(EngineError::BadRequest(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let expected = BadRequest::CannotGoBack { sequence: 0, length: 3, wanted: 2 };
    assert_eq!(refused(engine.truncate(0, 2)), expected);
    assert_eq!(refused(engine.fork(0, 1, 2)), expected);
    assert_eq!((engine.length(0), engine.length(1)), (3, 0));
    engine.step(&last(&[4])).expect("the sequence continues");
}

#[test]
fn full_pool_refuses_tokens_and_sequences() {
    let options = Options { context: 10, sequences: 2, ..options(TIMEOUT) };
    let mut engine = start(Peer::LlamaCpp, "works", &options).expect("starts");
    assert_eq!((engine.config().context_length, engine.capacity().pages_total), (10, 10));
    engine.step(&last(&[1; 7])).expect("they fit");
    assert_eq!(engine.capacity().pages_free, 3);
    let long = engine.submit(&[Work::tokens(1, &[1; 4], Want::Nothing)]);
    assert!(matches!(long, Err(EngineError::Full { needed: 4, free: 3 })), "{long:?}");
    assert!(matches!(engine.fork(0, 1, 4), Err(EngineError::Full { needed: 4, free: 3 })));
    engine.fork(0, 1, 3).expect("it fits");
    let many = engine.submit(&[Work::tokens(2, &[1], Want::Nothing)]);
    assert!(matches!(many, Err(EngineError::Full { .. })), "{many:?}");
    engine.release(0);
    engine.release(1);
    let ticket: Ticket = engine.submit(&[Work::tokens(2, &[1; 10], Want::Nothing)]).expect("there is room again");
    assert_eq!(engine.collect(ticket).expect("fed"), [Outcome::Fed]);
}
