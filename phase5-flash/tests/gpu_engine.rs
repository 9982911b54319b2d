//! Phase 5's engine on a GPU against phase 3's on the CPU: random models, batches, generation that stays on the device.

use std::ops::ControlFlow;

use gptoss_reference::{Check, Limit};
use phase1_loading::{Checkpoint, DenseFormat, GptOssConfig};
use phase2_forward::{
    Choice, Chunk, ComputeDevice, Continuation, Dump, Engine, EngineError, GptOss, LogitsFor, NoProbe, Snapshot,
};
use phase3_kvcache::{CacheType, Cached, Sampler, SamplingParams};
use phase5_flash::gpu::{GpuEngine, Options};
use synthetic::SyntheticModel;

/// Numbers that differ from run to run; the seed is in every message.
struct Random(u64);

impl Random {
    fn fresh() -> (Random, u64) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let seed = now.as_nanos() as u64 | 1;
        (Random(seed), seed)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 33) % end as u64) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab) as u32).collect()
    }
}

fn gpu() -> ComputeDevice {
    let [_, gpu] = ComputeDevice::for_gates().expect("both devices");
    gpu
}

fn random_model(random: &mut Random) -> SyntheticModel {
    let nano = SyntheticModel::preset("nano").expect("a preset");
    let kv_heads = random.of(&[1, 2, 3]);
    let experts = random.of(&[3, 8, 33]);
    SyntheticModel {
        layers: 1 + random.below(3),
        hidden: random.of(&[32, 64, 96, 160, 416]),
        expert_width: random.of(&[32, 64, 96, 352]),
        heads: kv_heads * random.of(&[1, 2, 5, 8]),
        kv_heads,
        head_dim: random.of(&[32, 64]),
        experts,
        experts_per_token: 1 + random.below(experts.min(4)),
        sliding_window: random.of(&[1, 7, 64, 100]),
        rest: random.of(&DenseFormat::ALL),
        ..nano
    }
}

fn write(model: &SyntheticModel, seed: u64) -> (tempfile::TempDir, Checkpoint) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    model.write(&path, seed, &mut |_, _| ()).expect("written");
    let checkpoint = Checkpoint::open(&path).expect("opens");
    (directory, checkpoint)
}

fn engine(checkpoint: &Checkpoint, kv: CacheType) -> GpuEngine {
    GpuEngine::load(checkpoint, &gpu(), Options { kv, exact: true, ..Options::default() }, &mut |_, _| ())
        .expect("loads")
}

/// Logits of every token, fed in chunks of random lengths.
fn logits(engine: &mut dyn Engine, mut tokens: &[u32], lengths: &[usize]) -> Vec<f32> {
    let mut all = Vec::new();
    let mut lengths = lengths.iter().cycle();
    while !tokens.is_empty() {
        let (chunk, rest) = tokens.split_at(tokens.len().min(*lengths.next().expect("endless")));
        let chunk = Chunk { sequence: 9, tokens: chunk, logits: LogitsFor::EveryToken };
        let rows = engine.step(&[chunk], &mut NoProbe).expect("a step").remove(0).expect("logits");
        all.extend(rows.into_data().try_to_vec::<f32>().expect("f32"));
        tokens = rest;
    }
    engine.release(9);
    all
}

/// Phase 3's logits of every token on the CPU, and how many tokens from the first on choose their experts by a margin of more than
/// `rounding`, as a share of the router logits' range, in every layer. Behind those, rounding may choose other experts, and every later
/// token sees what they made of the keys and values.
fn phase_3(checkpoint: &Checkpoint, kv: CacheType, tokens: &[u32], rounding: f32) -> (Vec<f32>, usize) {
    let model = GptOss::load(checkpoint, ComputeDevice::cpu("a test"), &mut |_, _| ()).expect("loads");
    let mut engine = Cached::with_cache(model, kv).expect("heads of whole blocks");
    let mut dump = Dump::default();
    let chunk = Chunk { sequence: 9, tokens, logits: LogitsFor::EveryToken };
    let logits = engine.step(&[chunk], &mut dump).expect("a step").remove(0).expect("logits");
    let GptOssConfig { experts, experts_per_token: chosen, .. } = checkpoint.config;
    let is_open = |logits: &[f32]| {
        let mut falling = logits.to_vec();
        falling.sort_by(|a, b| b.total_cmp(a));
        chosen < experts && falling[chosen - 1] - falling[chosen] <= rounding * (falling[0] - falling[experts - 1])
    };
    let routers = dump.tensors.iter().filter(|(name, _)| name.ends_with(".router_logits"));
    let settled = routers.filter_map(|(_, (_, values))| values.chunks_exact(experts).position(is_open)).min();
    (logits.into_data().try_to_vec().expect("f32"), settled.unwrap_or(tokens.len()))
}

#[test]
fn random_models_equal_phase_3() {
    let (mut random, seed) = Random::fresh();
    let mut compared = 0;
    for _ in 0..5 {
        let model = random_model(&mut random);
        let (_directory, checkpoint) = write(&model, random.0);
        let count = 1 + random.below(150);
        let vocab = checkpoint.config.vocab;
        let tokens = random.tokens(count, vocab);
        let lengths: Vec<usize> = (0..4).map(|_| 1 + random.below(70)).collect();
        // A pass of single rows too, on a cache that rounds.
        for (kv, tokens, lengths, rounding, limit) in [
            (CacheType::F32, &tokens[..], &lengths[..], 1e-4, Limit { rms: 1e-4, max: 1e-3 }),
            (CacheType::F16, &tokens[..count.min(20)], &[1][..], 1e-2, Limit { rms: 2e-2, max: 0.5 }),
        ] {
            let (expected, settled) = phase_3(&checkpoint, kv, tokens, rounding);
            let found = logits(&mut engine(&checkpoint, kv), tokens, lengths);
            assert_eq!(found.len(), expected.len());
            if settled > 0 {
                let (expected, found) = (&expected[..settled * vocab], &found[..settled * vocab]);
                let check = Check::values("random", "logits", expected, found, limit);
                assert!(check.passed(), "seed {seed}: {model:?}, {kv}, {lengths:?}, {settled} tokens: {check:?}");
                compared += settled;
            }
        }
    }
    assert!(compared > 0, "seed {seed}: rounding may choose other experts everywhere");
}

#[test]
fn sequences_of_a_batch_do_not_meet() {
    let (mut random, seed) = Random::fresh();
    let (_directory, checkpoint) = write(&SyntheticModel::preset("nano").expect("a preset"), seed);
    let vocab = checkpoint.config.vocab;
    let (mut together, mut alone) = (engine(&checkpoint, CacheType::F32), engine(&checkpoint, CacheType::F32));
    let mut running: Vec<u64> = (0..5).collect();
    for round in 0..12 {
        // Some decode, some prefill, one leaves and another comes.
        if round % 4 == 3 {
            let gone = running.remove(0);
            together.release(gone);
            alone.release(gone);
            running.push(100 + round);
        }
        let inputs: Vec<(u64, Vec<u32>)> = running
            .iter()
            .map(|&sequence| {
                let count = if random.below(3) == 0 { 1 + random.below(90) } else { 1 };
                (sequence, random.tokens(count, vocab))
            })
            .collect();
        let chunk = |(sequence, tokens): &'_ (u64, Vec<u32>)| {
            let logits = if sequence % 2 == 0 { LogitsFor::LastToken } else { LogitsFor::EveryToken };
            (*sequence, tokens.clone(), logits)
        };
        let chunks: Vec<_> = inputs.iter().map(chunk).collect();
        let batch: Vec<Chunk<'_>> = chunks
            .iter()
            .map(|(sequence, tokens, logits)| Chunk { sequence: *sequence, tokens, logits: *logits })
            .collect();
        let all = together.step(&batch, &mut NoProbe).expect("a batch");
        for (chunk, found) in batch.iter().zip(all) {
            let expected = alone.step(&[*chunk], &mut NoProbe).expect("a step").remove(0).expect("logits");
            let [expected, found] =
                [expected, found.expect("logits")].map(|logits| logits.into_data().try_to_vec::<f32>().expect("f32"));
            let check = Check::values("batch", "logits", &expected, &found, Limit::F32);
            assert!(check.passed(), "seed {seed}, round {round}, sequence {}: {check:?}", chunk.sequence);
            assert_eq!(together.length(chunk.sequence), alone.length(chunk.sequence));
        }
    }
}

/// Goes on with (sequence, token)s on the device, all choosing alike.
fn go_on(
    engine: &mut GpuEngine,
    inputs: &[(u64, u32)],
    choice: Choice,
    count: usize,
    on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
) {
    let mut draws: Vec<_> = inputs.iter().map(|_| || unreachable!("the likeliest token is not drawn")).collect();
    let mut batch: Vec<_> = inputs
        .iter()
        .zip(&mut draws)
        .map(|(&(sequence, token), draws)| Continuation { sequence, token, choice, draws })
        .collect();
    engine.decode(&mut batch, count, on_tokens).expect("a loop").expect("decodes");
}

/// The sequence's next row of logits.
fn next_logits(engine: &mut GpuEngine, sequence: u64, tokens: &[u32]) -> Vec<f32> {
    let chunk = Chunk { sequence, tokens, logits: LogitsFor::LastToken };
    let logits = engine.step(&[chunk], &mut NoProbe).expect("a step").remove(0).expect("logits");
    logits.into_data().try_to_vec().expect("f32")
}

#[test]
fn sequences_drawn_together_are_those_drawn_alone() {
    let (mut random, seed) = Random::fresh();
    let (_directory, checkpoint) = write(&SyntheticModel::preset("nano").expect("a preset"), seed);
    let vocab = checkpoint.config.vocab;
    let (mut resident, mut stepped) = (engine(&checkpoint, CacheType::F32), engine(&checkpoint, CacheType::F32));
    // Every kernel for products; each with a choice of its own, some of them greedy.
    for sequences in [1, 5, 17, 26] {
        let params = |random: &mut Random| SamplingParams {
            temperature: random.of(&[0.0, 0.6, 1.0, 1.5]),
            top_k: random.of(&[0, 3, 40]),
            top_p: random.of(&[1.0, 0.9, 0.3]),
            min_p: random.of(&[0.0, 0.05]),
            seed: random.0,
            ..SamplingParams::default()
        };
        let params: Vec<SamplingParams> = (0..sequences).map(|_| params(&mut random)).collect();
        let mut samplers: Vec<Sampler> =
            params.iter().map(|params| Sampler::new(params.clone(), vocab).expect("in range")).collect();
        let mut tokens = Vec::new();
        for (sequence, sampler) in (0..).zip(&mut samplers) {
            let count = 1 + random.below(9);
            let prompt = random.tokens(count, vocab);
            let mut logits = next_logits(&mut resident, sequence, &prompt);
            next_logits(&mut stepped, sequence, &prompt);
            tokens.push(sampler.sample(&mut logits));
        }
        let first = tokens.clone();
        let mut heard: Vec<Vec<u32>> = Vec::new();
        // Broken off once, it goes on with the numbers that were not used.
        for stop_after in [2, 4] {
            let mut draws: Vec<_> = samplers.iter().map(Sampler::draws).collect();
            let mut batch: Vec<_> = (0..)
                .zip(&tokens)
                .zip(&params)
                .zip(&mut draws)
                .map(|(((sequence, &token), params), draws)| Continuation {
                    sequence,
                    token,
                    choice: params.choice().expect("no penalty"),
                    draws,
                })
                .collect();
            let mut steps = 0;
            let listen = &mut |chosen: &[u32]| {
                heard.push(chosen.to_vec());
                samplers.iter_mut().zip(chosen).for_each(|(sampler, &token)| sampler.accept(token));
                steps += 1;
                if steps == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            resident.decode(&mut batch, 400, listen).expect("a loop").expect("decodes");
            tokens = batch.iter().map(|item| item.token).collect();
            assert_eq!(heard.last(), Some(&tokens));
        }
        assert_eq!(heard.len(), 6);
        // The same tokens from logits that come to the host.
        let mut different = 0;
        for (row, params) in params.iter().enumerate() {
            let mut sampler = Sampler::new(params.clone(), vocab).expect("in range");
            // The first draw chose the first token.
            sampler.accept(first[row]);
            let sequence = row as u64;
            let mut fed = first[row];
            for (step, token) in heard.iter().map(|step| step[row]).enumerate() {
                let mut logits = next_logits(&mut stepped, sequence, &[fed]);
                different += usize::from(sampler.sample(&mut logits) != token);
                fed = token;
                assert_eq!(stepped.length(sequence), resident.length(sequence) - (heard.len() - 1 - step));
            }
        }
        assert!(different * 20 <= 6 * sequences, "seed {seed}: {different} of {} differ", 6 * sequences);
        (0..sequences as u64).for_each(|sequence| {
            resident.release(sequence);
            stepped.release(sequence);
        });
    }
}

#[test]
fn a_restored_sequence_goes_on() {
    let (mut random, seed) = Random::fresh();
    let model = SyntheticModel { sliding_window: 70, ..SyntheticModel::preset("nano").expect("a preset") };
    let (_directory, checkpoint) = write(&model, seed);
    let vocab = checkpoint.config.vocab;
    for kv in CacheType::ALL {
        // The ring of 10 pages has wrapped at 700 positions, and not at 90.
        for length in [90, 700] {
            let (mut first, mut second) = (engine(&checkpoint, kv), engine(&checkpoint, kv));
            let (before, other, after) =
                (random.tokens(length, vocab), random.tokens(150, vocab), random.tokens(8, vocab));
            let feed = |engine: &mut GpuEngine, sequence, tokens: &[u32]| -> Vec<f32> {
                let chunk = Chunk { sequence, tokens, logits: LogitsFor::EveryToken };
                let logits = engine.step(&[chunk], &mut NoProbe).expect("a step").remove(0).expect("logits");
                logits.into_data().try_to_vec().expect("f32")
            };
            feed(&mut second, 7, &other);
            feed(&mut second, 8, &other);
            second.release(7);
            for engine in [&mut first, &mut second] {
                feed(engine, 1, &before);
            }
            let snapshot = first.save(1).expect("known");
            assert!(
                second.save(1).expect("known") == snapshot,
                "seed {seed}: {kv}, {length}: what was there before shows"
            );
            let company = feed(&mut first, 8, &other);
            second.restore(8, &snapshot).expect("the same model");
            assert_eq!(second.length(8), length);
            assert_eq!(feed(&mut first, 1, &after), feed(&mut second, 8, &after), "seed {seed}: {kv}, {length}");
            second.release(8);
            assert_eq!(feed(&mut second, 8, &other), company, "seed {seed}: {kv}, {length}");
            let wrong = Snapshot { length: length + 64, ..snapshot.clone() };
            assert!(matches!(second.restore(8, &wrong), Err(EngineError::WrongSnapshot(_))));
            assert!(matches!(
                second.restore(8, &Snapshot { form: "phase 3".into(), ..snapshot }),
                Err(EngineError::OtherForm { .. })
            ));
        }
    }
}

#[test]
fn a_q8_0_cache_is_half_of_an_f16_one() {
    let (mut random, seed) = Random::fresh();
    let (_directory, checkpoint) = write(&SyntheticModel::preset("nano").expect("a preset"), seed);
    let tokens = random.tokens(200, checkpoint.config.vocab);
    let bytes = |kv| -> usize {
        let mut engine = engine(&checkpoint, kv);
        let chunk = Chunk { sequence: 0, tokens: &tokens, logits: LogitsFor::Nothing };
        engine.step(&[chunk], &mut NoProbe).expect("a step");
        engine.save(0).expect("known").items.iter().map(|item| item.len()).sum()
    };
    let GptOssConfig { kv_heads, head_dim, .. } = checkpoint.config;
    // Four pages of 64 positions in every layer: no ring is full.
    let positions = 4 * 64 * checkpoint.config.layers();
    assert_eq!(bytes(CacheType::F16), positions * 2 * kv_heads * CacheType::F16.row_bytes(head_dim));
    assert_eq!(bytes(CacheType::Q8_0) * 2, bytes(CacheType::F16));
}

#[test]
fn generation_on_the_device_chooses_the_same_tokens() {
    let (mut random, seed) = Random::fresh();
    let (_directory, checkpoint) = write(&SyntheticModel::preset("nano").expect("a preset"), seed);
    let prompt = random.tokens(10, checkpoint.config.vocab);
    let count = 300;
    let (mut resident, mut stepped) = (engine(&checkpoint, CacheType::F32), engine(&checkpoint, CacheType::F32));
    let argmax = |logits: Vec<f32>| {
        let best = logits.iter().copied().fold(f32::MIN, f32::max);
        logits.iter().position(|&logit| logit == best).expect("a largest") as u32
    };
    let step = |engine: &mut GpuEngine, tokens: &[u32]| {
        let chunk = Chunk { sequence: 4, tokens, logits: LogitsFor::LastToken };
        let logits = engine.step(&[chunk], &mut NoProbe).expect("a step").remove(0).expect("logits");
        argmax(logits.into_data().try_to_vec().expect("f32"))
    };
    let first = step(&mut resident, &prompt);
    assert_eq!(step(&mut stepped, &prompt), first);
    let mut found = Vec::new();
    let keep = &mut |tokens: &[u32]| {
        found.push(tokens[0]);
        ControlFlow::Continue(())
    };
    go_on(&mut resident, &[(4, first)], Choice::LIKELIEST, count, keep);
    let mut token = first;
    let expected: Vec<u32> = (0..count)
        .map(|_| {
            token = step(&mut stepped, &[token]);
            token
        })
        .collect();
    assert_eq!(found, expected, "seed {seed}");
    assert_eq!(resident.length(4), stepped.length(4));

    // Broken off, it goes on as if nothing had been queued.
    let mut heard = 0;
    let mut last = *expected.last().expect("tokens");
    let stop = &mut |tokens: &[u32]| {
        heard += 1;
        last = tokens[0];
        if heard == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    go_on(&mut resident, &[(4, *expected.last().expect("tokens"))], Choice::LIKELIEST, 50, stop);
    let mut token = *expected.last().expect("tokens");
    for _ in 0..3 {
        token = step(&mut stepped, &[token]);
    }
    assert_eq!((last, resident.length(4)), (token, stepped.length(4)), "seed {seed}");
    assert_eq!(step(&mut resident, &[token]), step(&mut stepped, &[token]), "seed {seed}");
}
