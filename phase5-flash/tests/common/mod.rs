//! Shared by the tests of phase 5's CPU engine and of its GPU engine.

use std::collections::VecDeque;

use phase1_loading::{Checkpoint, GptOssConfig};
use phase2_forward::{
    Adjustment, ComputeDevice, Draw, DrawnToken, Dump, Engine, EngineError, GptOss, Inspect, Outcome, Sampling,
    SequenceId, Want, Work,
};
use phase3_kvcache::{CacheType, CachedEngine};

/// Phase 3's logits of every token, on the CPU.
pub struct Expected {
    pub logits: Vec<f32>,
    /// The smallest margin by which a layer chose the experts of each token, as a share of its router logits' range.
    margins: Vec<f32>,
}

impl Expected {
    pub fn of(checkpoint: &Checkpoint, kv: CacheType, tokens: &[u32]) -> Expected {
        let model = GptOss::load(checkpoint, ComputeDevice::cpu("a test"), &mut |_, _| ()).expect("loads");
        let mut engine = CachedEngine::with_cache(model, kv).expect("heads of whole blocks");
        let mut dump = Dump::default();
        let work = [Work::tokens(9, tokens, Want::AllLogits)];
        let logits = engine.inspect(&work, &mut dump).expect("a step").remove(0).logits().expect("logits");
        let GptOssConfig { experts, experts_per_token: chosen, .. } = checkpoint.config;
        let margin = |logits: &[f32]| {
            let mut falling = logits.to_vec();
            falling.sort_by(|a, b| b.total_cmp(a));
            let range = (falling[0] - falling[experts - 1]).max(f32::MIN_POSITIVE);
            if chosen == experts { f32::INFINITY } else { (falling[chosen - 1] - falling[chosen]) / range }
        };
        let mut margins = vec![f32::INFINITY; tokens.len()];
        for (_, (_, values)) in dump.tensors.iter().filter(|(name, _)| name.ends_with(".router_logits")) {
            for (least, logits) in margins.iter_mut().zip(values.chunks_exact(experts)) {
                *least = least.min(margin(logits));
            }
        }
        Expected { logits, margins }
    }

    /// Number of tokens, from the first, whose experts are chosen with a margin of more than `rounding` in every layer. For later tokens
    /// rounding may change the choice, which then changes the keys and values that all following tokens see.
    pub fn settled(&self, rounding: f32) -> usize {
        self.margins.iter().position(|&margin| margin <= rounding).unwrap_or(self.margins.len())
    }
}

/// Decodes sequences together, `steps` tokens each, with as many steps in flight as the engine allows. The first step feeds them `first`.
/// Returns the tokens of each step.
pub fn decode(
    engine: &mut dyn Engine,
    first: &[(SequenceId, u32)],
    draws: &[Draw<'_>],
    steps: usize,
) -> Vec<Vec<DrawnToken>> {
    let mut in_flight = VecDeque::new();
    let mut tokens = Vec::new();
    for step in 0..steps {
        let work: Vec<Work<'_>> = (first.iter().zip(draws))
            .map(|((sequence, token), &draw)| match step {
                0 => Work::tokens(*sequence, std::slice::from_ref(token), Want::Token(draw)),
                _ => Work::decode(*sequence, draw),
            })
            .collect();
        in_flight.push_back(engine.submit(&work).expect("a step"));
        while in_flight.len() == engine.capacity().steps_in_flight || step + 1 == steps && !in_flight.is_empty() {
            let outcomes = engine.collect(in_flight.pop_front().expect("in flight")).expect("outcomes");
            tokens.push(outcomes.into_iter().map(|outcome| outcome.token().expect("a token")).collect());
        }
    }
    tokens
}

/// The tokens without log probabilities.
pub fn ids(tokens: &[Vec<DrawnToken>]) -> Vec<Vec<u32>> {
    tokens.iter().map(|step| step.iter().map(|token| token.id).collect()).collect()
}

/// The logits after the last of `tokens`.
pub fn last_logits(engine: &mut dyn Engine, sequence: SequenceId, tokens: &[u32]) -> Vec<f32> {
    engine.last_logits(sequence, tokens).expect("logits")
}

/// The parameters of a draw, owned.
pub struct OwnedDraw {
    pub sampling: Sampling,
    pub seed: u64,
    pub allowed: Option<Vec<u32>>,
    pub adjustments: Vec<Adjustment>,
    pub logprobs: Option<usize>,
}

impl OwnedDraw {
    pub fn random(below: &mut impl FnMut(usize) -> usize, vocab: usize) -> OwnedDraw {
        let mut tokens: Vec<u32> = (0..below(6)).map(|_| below(vocab) as u32).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let adjustment = |token| Adjustment {
            token,
            bias: [0.0, 2.0, -3.0, f32::NEG_INFINITY][below(4)],
            repetition_penalty: [1.0, 1.3][below(2)],
            penalty: [0.0, 0.5][below(2)],
        };
        let adjustments = tokens.into_iter().map(adjustment).collect();
        let sampling = Sampling {
            temperature: [0.0, 0.6, 1.0, 1.5][below(4)],
            top_k: [0, 3, 40][below(3)],
            top_p: [1.0, 0.9, 0.3][below(3)],
            min_p: [0.0, 0.05][below(2)],
        };
        let mask = |below: &mut dyn FnMut(usize) -> usize| {
            (0..vocab.div_ceil(32)).map(|_| below(1 << 30) as u32 | 1).collect()
        };
        let allowed = if below(3) == 0 { Some(mask(below)) } else { None };
        OwnedDraw {
            sampling,
            seed: below(1 << 30) as u64,
            allowed,
            adjustments,
            logprobs: [None, Some(0), Some(5)][below(3)],
        }
    }

    pub fn draw(&self) -> Draw<'_> {
        Draw {
            sampling: self.sampling,
            seed: self.seed,
            allowed: self.allowed.as_deref(),
            adjustments: &self.adjustments,
            logprobs: self.logprobs,
        }
    }
}

fn free(engine: &dyn Engine) -> usize {
    engine.capacity().pages_free
}

/// Tests a fork, a truncation, a full cache and the release of everything, on an engine with few pages of cache. Its model has full and
/// sliding layers.
pub fn pages_are_shared_and_freed(engine: &mut dyn Engine) {
    let total = engine.capacity().pages_total;
    assert_eq!(free(engine), total);
    let tokens: Vec<u32> = (0..100).collect();
    last_logits(engine, 1, &tokens[..99]);
    let logits = last_logits(engine, 1, &tokens[99..]);
    let before = free(engine);
    engine.fork(1, 2, 100).expect("known");
    engine.fork(1, 3, 99).expect("known");
    assert_eq!(free(engine), before, "forks share pages");
    // The same keys and values give bit-identical logits.
    assert_eq!(last_logits(engine, 3, &tokens[99..]), logits);
    engine.truncate(2, 99).expect("goes back");
    assert_eq!(last_logits(engine, 2, &tokens[99..]), logits);
    assert_eq!(free(engine), before - 4, "two copies of the last page in each kind of layer");
    // The forked sequence is unchanged.
    assert_eq!(last_logits(engine, 1, &[7]), last_logits(engine, 2, &[7]));

    // A step that does not fit is refused as a whole, and has no effect.
    let left = free(engine);
    let count = (engine.capacity().positions_per_page * total).min(engine.capacity().tokens_per_step - 1);
    let long = vec![3; count];
    let work = [Work::tokens(1, &[8], Want::LastLogits), Work::tokens(4, &long, Want::Nothing)];
    let refused = engine.submit(&work);
    assert!(
        matches!(refused, Err(EngineError::Full { needed, free }) if needed > free && free == left),
        "{refused:?}, {left} free"
    );
    assert_eq!((engine.length(1), engine.length(4), free(engine)), (101, 0, left));

    // The cache can be filled to its last page: a short sequence takes one page in each kind of layer.
    let mut short = 10;
    while free(engine) >= 2 {
        assert_eq!(engine.step(&[Work::tokens(short, &[3], Want::Nothing)]).expect("room"), [Outcome::Fed]);
        short += 1;
    }
    let refused = engine.step(&[Work::tokens(short, &[3], Want::Nothing)]);
    assert!(matches!(refused, Err(EngineError::Full { needed: 2, free: 0 | 1 })), "{refused:?}");
    assert_eq!(last_logits(engine, 1, &[8]), last_logits(engine, 2, &[8]));
    (10..short).for_each(|sequence| engine.release(sequence));
    assert_eq!(free(engine), left);
    (1..4).for_each(|sequence| engine.release(sequence));
    assert_eq!(free(engine), total);
}
