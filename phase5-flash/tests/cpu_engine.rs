//! Tests phase 5's engine on the CPU, mostly with random models. Its logits must agree with phase 3's within limits, whatever the chunk
//! lengths and the other sequences in the batch.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use gptoss_reference::{Check, Limit, test_seed};
use phase1_loading::{Checkpoint, DenseFormat, Format};
use phase2_forward::{
    BadRequest, ComputeDevice, Draw, Engine, EngineError, GptOss, HostDraw, Inspect, Operation, Outcome, Probe,
    Sampling, SequenceId, Snapshot, Snapshots, Span, Want, Work,
};
use phase3_kvcache::{CacheType, CachedEngine, ReadCache};
use phase5_flash::cpu::Isa;
use phase5_flash::{CpuEngine, CpuLoadError, CpuOptions};
use proptest::prelude::*;
use synthetic::SyntheticModel;

use common::{Expected, OwnedDraw, decode, ids, last_logits};

/// The allowed error of the fast mode. The rms is that of phase 5's gate, the comparison with golden outputs in `reference/gates`. The
/// largest error of a logit may be higher than in the gate, because more models are tested.
const FAST: Limit = Limit { rms: 1e-2, max: 1.0 };

/// A random model with a window of `sliding_window` positions; a page of the cache has 64.
fn model(directory: &Path, seed: u64, rest: DenseFormat, sliding_window: usize, heads: usize) -> PathBuf {
    let experts = SyntheticModel::preset("nano").expect("a preset").experts;
    model_of(experts, directory, seed, rest, sliding_window, heads)
}

/// A random model with `experts` experts, of which each token uses four.
fn model_of(
    experts: usize,
    directory: &Path,
    seed: u64,
    rest: DenseFormat,
    sliding_window: usize,
    heads: usize,
) -> PathBuf {
    let path = directory.join("model.gguf");
    let nano = SyntheticModel::preset("nano").expect("a preset");
    let model = SyntheticModel { sliding_window, layers: 3, rest, heads, experts, expert_width: 96, ..nano };
    model.write(&path, seed, &mut |_, _| ()).expect("written");
    path
}

fn cpu(path: &Path, options: CpuOptions) -> CpuEngine {
    CpuEngine::load(&Checkpoint::open(path).expect("opens"), options).expect("loads")
}

fn phase3(path: &Path) -> CachedEngine {
    let checkpoint = Checkpoint::open(path).expect("opens");
    let device = ComputeDevice::cpu("a test");
    CachedEngine::new(GptOss::load(&checkpoint, device, &mut |_, _| ()).expect("loads"))
}

/// Feeds the sequences together, each in its own chunks, until all their tokens are fed. Returns the logits of every token by sequence.
fn logits(engine: &mut dyn Engine, sequences: &[Vec<u32>], lengths: &[usize]) -> Vec<Vec<f32>> {
    let mut done = vec![0; sequences.len()];
    let mut all = vec![Vec::new(); sequences.len()];
    for step in 0.. {
        let taken: Vec<usize> = (0..sequences.len())
            .map(|s| lengths[(step + s) % lengths.len()].min(sequences[s].len() - done[s]))
            .collect();
        let who: Vec<usize> = (0..sequences.len()).filter(|&s| taken[s] > 0).collect();
        if who.is_empty() {
            break;
        }
        let item = |&s: &usize| Work::tokens(s as u64, &sequences[s][done[s]..done[s] + taken[s]], Want::AllLogits);
        let work: Vec<Work<'_>> = who.iter().map(item).collect();
        let outcomes = engine.step(&work).expect("a step");
        for (&s, outcome) in who.iter().zip(outcomes) {
            all[s].extend(outcome.logits().expect("logits"));
            done[s] += taken[s];
        }
    }
    (0..sequences.len() as u64).for_each(|sequence| engine.release(sequence));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn phase_3_computes_the_same(
        seed: u64,
        sequences in prop::collection::vec(prop::collection::vec(0u32..1000, 1..200), 1..4),
        lengths in prop::collection::vec(1usize..60, 1..6),
        window in prop::sample::select(vec![7, 64, 100]),
        rest in prop::sample::select(DenseFormat::ALL.to_vec()),
        heads in prop::sample::select(vec![2, 4, 6, 16]),
        // Four experts are all used by every token; with eight, rounding may change the choice.
        experts in prop::sample::select(vec![4, 8]),
        threads in 1usize..5,
    ) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = model_of(experts, directory.path(), seed, rest, window, heads);
        let checkpoint = Checkpoint::open(&path).expect("opens");
        let vocab = checkpoint.config.vocab;
        let of = |tokens: &Vec<u32>| Expected::of(&checkpoint, CacheType::F32, tokens);
        let expected: Vec<Expected> = sequences.iter().map(of).collect();
        for isa in Isa::all() {
            for (exact, rounding, limit) in [(true, 1e-4, Limit::F32), (false, 1e-2, FAST)] {
                // f32, because the gate already tests rounded caches.
                let kv = Some(CacheType::F32);
                let options = CpuOptions { threads: Some(threads), exact, isa: Some(isa), kv, kv_bytes: None };
                let found = logits(&mut cpu(&path, options), &sequences, &lengths);
                for (expected, found) in expected.iter().zip(&found) {
                    prop_assert_eq!(found.len(), expected.logits.len());
                    let settled = expected.settled(rounding);
                    if settled > 0 {
                        let (expected, found) = (&expected.logits[..settled * vocab], &found[..settled * vocab]);
                        let check = Check::values("random", "logits", expected, found, limit);
                        prop_assert!(check.passed(), "{isa}, exact {exact}, {settled} tokens: {check:?}");
                    }
                }
            }
        }
    }
}

/// Pages that a released sequence used are reused: their old contents must have no effect.
#[test]
fn reused_pages_do_not_change_results() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = model(directory.path(), test_seed(), DenseFormat::Q8_0, 20, 4);
    for kv in CacheType::ALL {
        let options = CpuOptions { threads: Some(2), kv: Some(kv), ..CpuOptions::default() };
        let sequence = vec![(0..150).map(|i| i * 13 % 1000).collect::<Vec<u32>>()];
        let fresh = logits(&mut cpu(&path, options), &sequence, &[11]);
        let mut used = cpu(&path, options);
        logits(&mut used, &[(0..200).map(|i| i * 7 % 1000).collect(), (0..90).collect()], &[50, 3]);
        assert_eq!(logits(&mut used, &sequence, &[11]), fresh, "{kv}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A sequence that is saved and restored at any point, even over another sequence, gives bit-identical logits; and the snapshot does
    /// not depend on earlier work of the engine.
    #[test]
    fn restored_sequence_continues_bit_identically(
        seed: u64,
        tokens in prop::collection::vec(0u32..1000, 2..300),
        share in 0.0f64..1.0,
        window in prop::sample::select(vec![1, 7, 64, 100]),
        kv in prop::sample::select(CacheType::ALL.to_vec()),
    ) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = model(directory.path(), seed, DenseFormat::Q8_0, window, 4);
        let options = CpuOptions { threads: Some(2), kv: Some(kv), ..CpuOptions::default() };
        let (before, after) = tokens.split_at(1 + ((tokens.len() - 2) as f64 * share) as usize);
        let feed = |engine: &mut CpuEngine, sequence, tokens: &[u32]| {
            engine.step(&[Work::tokens(sequence, tokens, Want::Nothing)]).expect("a step");
        };
        let (mut first, mut second) = (cpu(&path, options), cpu(&path, options));
        let other: Vec<u32> = (0..200).collect();
        feed(&mut second, 9, &other);
        second.release(9);
        for engine in [&mut first, &mut second] {
            feed(engine, 1, before);
        }
        let snapshot = first.save(1).expect("known");
        prop_assert_eq!(&second.save(1).expect("known"), &snapshot);
        feed(&mut second, 2, &other);
        second.restore(2, &snapshot).expect("the same model");
        prop_assert_eq!(second.length(2), before.len());
        let rest = |engine: &mut CpuEngine, sequence| engine.all_logits(sequence, after).expect("logits");
        prop_assert_eq!(rest(&mut first, 1), rest(&mut second, 2));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Greedy tokens have the largest logit, and the sequences then have the same length as after single steps.
    #[test]
    fn shortlisted_greedy_tokens_have_the_largest_logit(
        seed: u64,
        lengths in prop::collection::vec(1usize..20, 1..9),
        rest in prop::sample::select(DenseFormat::ALL.to_vec()),
        // A shortlist is made after 24 greedy steps: every case has steps with one.
        steps in 28usize..44,
        isa in prop::sample::select(Isa::all()),
    ) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = model(directory.path(), seed, rest, 20, 4);
        let options = CpuOptions { threads: Some(2), isa: Some(isa), ..CpuOptions::default() };
        let (mut listed, mut stepped) = (cpu(&path, options), cpu(&path, options));
        let tokens: Vec<u32> = (0..20).map(|i| (seed.wrapping_mul(2 * i + 1) % 1000) as u32).collect();
        let sequences = || (0u64..).zip(&lengths);
        for engine in [&mut listed, &mut stepped] {
            let item = |(sequence, &length)| Work::tokens(sequence, &tokens[..length], Want::Nothing);
            engine.step(&sequences().map(item).collect::<Vec<_>>()).expect("a step");
        }
        let mut fed: Vec<u32> = sequences().map(|(_, &length)| tokens[length]).collect();
        let first: Vec<(u64, u32)> = (0..).zip(fed.iter().copied()).collect();
        let generated = ids(&decode(&mut listed, &first, &vec![Draw::GREEDY; first.len()], steps));
        for tokens in &generated {
            let item = |(sequence, token)| Work::tokens(sequence, std::slice::from_ref(token), Want::LastLogits);
            let work: Vec<Work<'_>> = (0..).zip(&fed).map(item).collect();
            for (outcome, &token) in stepped.step(&work).expect("a step").into_iter().zip(tokens) {
                let logits = outcome.logits().expect("logits");
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                // With more than four sequences, a step rounds the inputs of the head.
                let slack = if lengths.len() > 4 { 1e-3 } else { 0.0 };
                prop_assert!(logits[token as usize] >= largest - slack, "{}, {largest}", logits[token as usize]);
            }
            fed.clone_from(tokens);
        }
        for (sequence, _) in sequences() {
            prop_assert_eq!(listed.length(sequence), stepped.length(sequence));
        }
    }

    /// A draw, also from a shortlist, equals the host's draw from all logits.
    #[test]
    fn draws_from_a_shortlist_equal_the_hosts(seed: u64, exact: bool, greedy: bool) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = model(directory.path(), seed, DenseFormat::Q8_0, 20, 4);
        let options = CpuOptions { threads: Some(2), exact, ..CpuOptions::default() };
        let (mut drawing, mut stepped) = (cpu(&path, options), cpu(&path, options));
        let vocab = drawing.config().vocab;
        let mut state = seed | 1;
        let mut below = |end: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 33) % end as u64) as usize
        };
        // Few enough rows that a shortlist and all logits are computed with the same arithmetic.
        let mut owned_draws: Vec<OwnedDraw> = (0..3).map(|_| OwnedDraw::random(&mut below, vocab)).collect();
        if greedy {
            owned_draws.iter_mut().for_each(|draw| (draw.sampling, draw.logprobs) = (Sampling::GREEDY, None));
        }
        let first: Vec<(SequenceId, u32)> = (0..3).map(|sequence| (sequence, below(vocab) as u32)).collect();
        let draws: Vec<Draw<'_>> = owned_draws.iter().map(OwnedDraw::draw).collect();
        // More than the 24 greedy steps after which the shortlist is made.
        let drawn = decode(&mut drawing, &first, &draws, 30);
        let mut host = HostDraw::default();
        let mut fed: Vec<u32> = first.iter().map(|&(_, token)| token).collect();
        for (step, tokens) in drawn.iter().enumerate() {
            let item = |(sequence, token)| Work::tokens(sequence, std::slice::from_ref(token), Want::LastLogits);
            let work: Vec<Work<'_>> = (0..).zip(&fed).map(item).collect();
            let outcomes = stepped.step(&work).expect("a step");
            for ((outcome, draw), found) in outcomes.into_iter().zip(&draws).zip(tokens) {
                let expected = host.draw(&mut outcome.logits().expect("logits"), step + 1, draw).expect("numbers");
                prop_assert_eq!(found, &expected, "step {}: {:?}", step, draw);
            }
            fed = tokens.iter().map(|token| token.id).collect();
        }
    }
}

/// The shortlist's bound assumes rounding errors that are independent of the inputs: this must also hold for trained weights.
#[test]
fn trained_model_generates_the_same_with_a_shortlist() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/gptoss-tiny.gguf");
    let (mut listed, mut stepped) = (cpu(&path, CpuOptions::default()), cpu(&path, CpuOptions::default()));
    let vocab = listed.config().vocab as u32;
    let seed = test_seed() as u32;
    for sequence in 0..6 {
        let mut fed = seed.wrapping_add(1).wrapping_mul(2_654_435_761u32.wrapping_mul(sequence + 1)) % vocab;
        let generated = decode(&mut listed, &[(sequence.into(), fed)], &[Draw::GREEDY], 300);
        for (place, token) in ids(&generated).concat().into_iter().enumerate() {
            let logits = last_logits(&mut stepped, sequence.into(), &[fed]);
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(logits[token as usize], largest, "sequence {sequence}, token {place}");
            fed = token;
        }
    }
}

#[test]
fn a_full_context_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = model(directory.path(), test_seed(), DenseFormat::Q8_0, 20, 4);
    let mut checkpoint = Checkpoint::open(&path).expect("opens");
    let context = 50;
    checkpoint.config.context_length = context;
    let mut engine = CpuEngine::load(&checkpoint, CpuOptions::default()).expect("loads");
    last_logits(&mut engine, 0, &vec![5; context - 3]);
    decode(&mut engine, &[(0, 1)], &[Draw::GREEDY], 3);
    assert_eq!(engine.length(0), context);
    let refused = engine.submit(&[Work::decode(0, Draw::GREEDY)]);
    assert!(matches!(refused, Err(EngineError::BadRequest(BadRequest::ContextExceeded { .. }))));
}

/// With more threads than tasks, threads share the keys of a long sequence, and results do not change.
#[test]
fn splitting_keys_among_threads_does_not_change_results() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    let nano = SyntheticModel::preset("nano").expect("a preset");
    let model = SyntheticModel { layers: 2, heads: 4, kv_heads: 1, ..nano };
    model.write(&path, 11, &mut |_, _| ()).expect("written");
    let sequence = [(0..2100).map(|i| i * 13 % 1000).collect::<Vec<u32>>()];
    // The last of these chunks is one token, with three shares of keys.
    let [one, two] = [1, 2].map(|threads| {
        let options = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
        logits(&mut cpu(&path, options), &sequence, &[700, 700, 699, 1])
    });
    assert!(one == two, "other logits in two threads than in one");
}

/// Bytes of a page of [`model`] in f32, in both pools: keys and values of 64 positions, for two heads of 32.
const PAGE: u64 = 2 * 2 * 2 * 64 * 32 * 4;

#[test]
fn pages_are_shared_and_freed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = model(directory.path(), test_seed(), DenseFormat::Q8_0, 20, 4);
    let options = CpuOptions { exact: true, kv_bytes: Some(20 * PAGE), ..CpuOptions::default() };
    let mut engine = cpu(&path, options);
    assert_eq!(engine.capacity().pages_total, 20);
    common::pages_are_shared_and_freed(&mut engine);
}

/// A truncated sequence may lack the oldest position of its window, which the next token does not need.
#[test]
fn truncated_cache_can_be_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = model(directory.path(), 7, DenseFormat::Q8_0, 20, 4);
    let mut engine = cpu(&path, CpuOptions::default());
    let rewind = engine.capacity().rewind;
    // One of 64 lengths puts the window's oldest position at the end of a page.
    for shorter in 150..214 {
        let tokens = vec![1; shorter + rewind];
        engine.step(&[Work::tokens(0, &tokens, Want::Nothing)]).expect("a step");
        engine.truncate(0, shorter).expect("goes back");
        let (positions, ..) = engine.read_cache(0, 0).expect("a sliding layer");
        let oldest = positions[0];
        assert!([shorter - 20, shorter - 19].contains(&oldest), "{oldest} of {shorter}");
        assert_eq!(positions, (oldest..shorter).collect::<Vec<_>>());
        engine.release(0);
    }
}

#[test]
fn an_engine_moves_between_threads() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = model(directory.path(), 3, DenseFormat::Q8_0, 20, 4);
    let (mut engine, mut other) = (cpu(&path, CpuOptions::default()), cpu(&path, CpuOptions::default()));
    for token in 0..5 {
        let expected = last_logits(&mut other, 0, &[token]);
        let moved = std::thread::spawn(move || (last_logits(&mut engine, 0, &[token]), engine)).join().expect("runs");
        engine = moved.1;
        assert_eq!(moved.0, expected);
    }
}

/// A NaN row of the head ends decoding, even if the shortlist would not contain it.
#[test]
fn nan_in_the_head_ends_decoding() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = model(directory.path(), test_seed(), DenseFormat::Q8_0, 20, 4);
    let head = Checkpoint::open(&path).expect("opens").tensor("output.weight").packed_as(Format::Q8_0, 0..1).to_vec();
    let mut file = std::fs::read(&path).expect("reads");
    let place = file.windows(head.len()).position(|bytes| bytes == head).expect("the head's first row is in the file");
    file[place..place + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    std::fs::write(&path, file).expect("writes");
    let mut engine = cpu(&path, CpuOptions::default());
    let nan = [Outcome::NotANumber { position: 1 }];
    // Both with all logits and with a shortlist, which is made after 24 steps.
    for sequence in 0..30 {
        let outcomes = engine.step(&[Work::tokens(sequence, &[1], Want::Token(Draw::GREEDY))]).expect("a step");
        assert_eq!(outcomes, nan, "{sequence}");
        let again = engine.submit(&[Work::decode(sequence, Draw::GREEDY)]);
        assert!(matches!(again, Err(EngineError::BadRequest(BadRequest::NothingDrawn(_)))));
        engine.release(sequence);
    }
}

#[test]
fn q8_0_cache_is_half_the_size_of_f16() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = model(directory.path(), test_seed(), DenseFormat::Q8_0, 20, 4);
    let tokens: Vec<u32> = (0..200).collect();
    let bytes = |kv| -> usize {
        let mut engine = cpu(&path, CpuOptions { kv: Some(kv), ..CpuOptions::default() });
        engine.step(&[Work::tokens(0, &tokens, Want::Nothing)]).expect("a step");
        engine.save(0).expect("known").items.iter().map(|item| item.len()).sum()
    };
    // Four pages of 64 positions of the full layer, and two of each sliding layer: keys and values of 2 heads of 32.
    assert_eq!(bytes(CacheType::F16), (4 + 2 + 2) * 64 * 2 * 2 * CacheType::F16.row_bytes(32));
    assert_eq!(bytes(CacheType::Q8_0) * 2, bytes(CacheType::F16));
}

#[test]
fn snapshots_of_other_engines_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = model(directory.path(), test_seed(), DenseFormat::Q8_0, 20, 4);
    let with = |kv| cpu(&path, CpuOptions { kv: Some(kv), ..CpuOptions::default() });
    let (mut engine, mut other) = (with(CacheType::F16), phase3(&path));
    let work = [Work::tokens(0, &[1, 2, 3], Want::Nothing)];
    engine.step(&work).expect("a step");
    other.step(&work).expect("a step");
    let (good, of_phase_3) = (engine.save(0).expect("known"), other.save(0).expect("known"));
    let other_engine = |refused| matches!(refused, Err(EngineError::BadRequest(BadRequest::OtherEngine { .. })));
    let wrong_snapshot = |refused| matches!(refused, Err(EngineError::BadRequest(BadRequest::WrongSnapshot(_))));
    assert!(other_engine(engine.restore(0, &of_phase_3)));
    assert!(other_engine(other.restore(0, &good)));
    for length in [0, 65, usize::MAX] {
        let wrong = Snapshot { length, ..good.clone() };
        assert!(wrong_snapshot(engine.restore(0, &wrong)), "{length}");
    }
    assert!(wrong_snapshot(with(CacheType::Q8_0).restore(0, &good)));
    assert_eq!((engine.length(0), engine.save(0).expect("known")), (3, good));
}

/// The positions within the window are available at every length, also at the end of a page.
#[test]
fn the_cache_holds_the_window() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let seed = test_seed();
    for window in [1, 12, 64] {
        let path = model(directory.path(), seed, DenseFormat::Q8_0, window, 4);
        let mut engine = cpu(&path, CpuOptions::default());
        for length in 1..200 {
            engine.step(&[Work::tokens(0, &[length as u32], Want::Nothing)]).expect("a step");
            let (positions, keys, _) = engine.read_cache(0, 0).expect("a sliding layer");
            assert_eq!(positions, (length.max(window) - window..length).collect::<Vec<_>>());
            assert_eq!(keys.dims()[1], positions.len());
        }
    }
}

#[test]
fn requested_logits_are_returned() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = model(directory.path(), test_seed(), DenseFormat::Q8_0, 20, 4);
    let mut engine = cpu(&path, CpuOptions::default());
    let vocab = engine.config().vocab;
    let work = [
        Work::tokens(1, &[1, 2, 3], Want::Nothing),
        Work::tokens(2, &[4, 5], Want::LastLogits),
        Work::tokens(3, &[6, 7, 8, 9], Want::AllLogits),
    ];
    let outcomes = engine.step(&work).expect("a step");
    let rows = |outcome: &Outcome| if let Outcome::Logits(logits) = outcome { logits.len() } else { 0 };
    assert_eq!(outcomes[0], Outcome::Fed);
    assert_eq!(outcomes.iter().map(rows).collect::<Vec<_>>(), [0, vocab, 4 * vocab]);
    assert_eq!([1, 2, 3, 4].map(|sequence| engine.length(sequence)), [3, 2, 4, 0]);
    let empty = engine.step(&[Work::tokens(1, &[], Want::Nothing)]);
    assert!(matches!(empty, Err(EngineError::BadRequest(BadRequest::NoTokens(1)))));
    assert_eq!(engine.length(1), 3);
}

#[test]
fn unsupported_head_size_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    let nano = SyntheticModel::preset("nano").expect("a preset");
    let model = SyntheticModel { head_dim: 8, ..nano };
    model.write(&path, 0, &mut |_, _| ()).expect("written");
    let refused = CpuEngine::load(&Checkpoint::open(&path).expect("opens"), CpuOptions::default());
    assert!(matches!(refused, Err(CpuLoadError::HeadDim { head_dim: 8, unit: 16, .. })));
}

/// Panics when this operation of layer 1 ends.
struct Panics(Operation);

impl Probe for Panics {
    fn done(&mut self, span: Span) {
        assert!(span.layer != Some(1) || span.operation != self.0, "on purpose");
    }
}

#[test]
fn panicked_step_leaves_sequences_unchanged() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = model(directory.path(), 5, DenseFormat::Q8_0, 70, 4);
    let options = CpuOptions { exact: true, ..CpuOptions::default() };
    let (mut engine, mut undisturbed) = (cpu(&path, options), cpu(&path, options));
    for (sequence, tokens) in [(1, &[1, 2, 3, 4, 5][..]), (2, &[9; 90])] {
        for engine in [&mut engine, &mut undisturbed] {
            last_logits(engine, sequence, tokens);
        }
    }
    for operation in [Operation::CacheAppend, Operation::Attention, Operation::Down] {
        let item = |sequence, tokens| Work::tokens(sequence, tokens, Want::LastLogits);
        let work = [item(1, &[7, 8]), item(2, &[6]), item(3, &[4])];
        let step = || engine.inspect(&work, &mut Panics(operation)).map(|_| ());
        let free = undisturbed.capacity().pages_free;
        assert!(catch_unwind(AssertUnwindSafe(step)).is_err(), "{operation:?}");
        assert_eq!([1, 2, 3].map(|sequence| engine.length(sequence)), [5, 90, 0]);
        assert_eq!(engine.capacity().pages_free, free);
    }
    for sequence in [1, 2] {
        let next = |engine: &mut CpuEngine| last_logits(engine, sequence, &[3, 1]);
        assert_eq!(next(&mut engine), next(&mut undisturbed));
    }
}
