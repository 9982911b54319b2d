//! The least cost of an operation, in bytes moved and arithmetic operations, computed from shapes and number formats.

use phase1_loading::{AttentionKind, Checkpoint, GptOssConfig};
use phase2_forward::{Operation, Span};
use phase3_kvcache::CacheType;

use crate::profile::Cost;

/// Size in bytes of an activation value.
const ACTIVATION: usize = 4;

/// Computes the least cost of a model's operations.
#[derive(Clone)]
pub struct CostModel {
    config: GptOssConfig,
    /// `None` for an engine that keeps no keys and values between steps.
    cache: Option<CacheType>,
    embedding_row: u64,
    head: u64,
    layers: Vec<LayerBytes>,
}

/// Bytes of a layer's weights, including biases; for experts, of one expert.
#[derive(Clone)]
struct LayerBytes {
    qkv: u64,
    out: u64,
    router: u64,
    gate_up: u64,
    down: u64,
}

impl CostModel {
    pub fn new(checkpoint: &Checkpoint, cache: CacheType) -> CostModel {
        let config = checkpoint.config.clone();
        let experts = config.experts as u64;
        let bytes = |name: &str| checkpoint.tensor(name).bytes() as u64;
        let layer = |number: usize| {
            let both = |part: &str| {
                bytes(&format!("blk.{number}.{part}.weight")) + bytes(&format!("blk.{number}.{part}.bias"))
            };
            LayerBytes {
                qkv: both("attn_q") + both("attn_k") + both("attn_v"),
                out: both("attn_output"),
                router: both("ffn_gate_inp"),
                gate_up: (both("ffn_gate_exps") + both("ffn_up_exps")) / experts,
                down: both("ffn_down_exps") / experts,
            }
        };
        let embedding = checkpoint.tensor("token_embd.weight");
        CostModel {
            embedding_row: embedding.format.row_bytes(embedding.row_len()) as u64,
            head: bytes("output.weight"),
            layers: (0..config.layers()).map(layer).collect(),
            config,
            cache: Some(cache),
        }
    }

    /// For an engine that keeps no keys and values between steps: it appends none to a cache, and attention reads them as f32 activations.
    pub fn without_cache(self) -> CostModel {
        CostModel { cache: None, ..self }
    }

    /// For an engine that reads `head` bytes instead of the whole head.
    pub fn with_head_bytes(self, head: u64) -> CostModel {
        CostModel { head, ..self }
    }

    /// The least cost of `span`, assuming that experts are chosen uniformly.
    pub fn of(&self, span: Span) -> Cost {
        let config = &self.config;
        let Span { operation, layer, tokens, sequences, keys } = span;
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (hidden, width, experts) = (config.hidden, config.expert_width, config.experts);
        let chosen = config.experts_per_token;
        let weights = |part: fn(&LayerBytes) -> u64| layer.map_or(0, |number| part(&self.layers[number]));
        // `values` is the number of activations per token that are read and written.
        let moves = |weights: u64, values: usize| weights + (tokens * values * ACTIVATION) as u64;
        let macs = |a_token: usize| 2 * (tokens * a_token) as u64;
        let cost = |bytes, operations| Cost { bytes, operations };
        match operation {
            Operation::Mask => Cost::default(),
            Operation::Embed => cost(moves(self.embedding_row * tokens as u64, hidden), 0),
            Operation::AttentionNorm | Operation::MlpNorm | Operation::HeadNorm => {
                cost(moves((hidden * ACTIVATION) as u64, 2 * hidden), macs(2 * hidden))
            }
            Operation::Qkv => cost(moves(weights(|l| l.qkv), hidden + q + 2 * kv), macs(hidden * (q + 2 * kv))),
            Operation::Rope => cost(moves(0, 2 * (q + kv)), macs((q + kv) * 3 / 2)),
            Operation::CacheAppend if self.cache.is_none() => Cost::default(),
            Operation::CacheAppend => cost((tokens * self.position_bytes()) as u64, 0),
            Operation::Attention => {
                let (touched, pairs) = self.visible(layer, tokens / sequences, keys);
                let cache = (sequences * touched * self.position_bytes()) as u64;
                cost(moves(cache, 2 * q), 4 * sequences as u64 * pairs * q as u64)
            }
            Operation::AttentionOut => cost(moves(weights(|l| l.out), q + 2 * hidden), macs(q * hidden)),
            Operation::Router => cost(moves(weights(|l| l.router), hidden + experts), macs(hidden * experts)),
            Operation::GateUp => {
                let bytes = (weights(|l| l.gate_up) as f64 * self.experts_touched(tokens)) as u64;
                cost(moves(bytes, hidden + chosen * width), macs(chosen * 2 * hidden * width))
            }
            Operation::Down => {
                let bytes = (weights(|l| l.down) as f64 * self.experts_touched(tokens)) as u64;
                cost(moves(bytes, chosen * width + 2 * hidden), macs(chosen * hidden * width))
            }
            Operation::Head => cost(moves(self.head, hidden + config.vocab), macs(hidden * config.vocab)),
        }
    }

    /// The least cost, per operation, of a step that adds `new` tokens to each of `sequences` sequences of `depth` tokens, and computes
    /// the logits of each sequence's last token. Weights are read once for all sequences.
    pub fn step(&self, sequences: usize, new: usize, depth: usize) -> Vec<Cost> {
        let tokens = sequences * new;
        let cost = |(operation, layer)| {
            let keys = if operation == Operation::Attention { depth + new } else { 0 };
            let tokens = match operation {
                Operation::HeadNorm | Operation::Head => sequences,
                _ => tokens,
            };
            self.of(Span { operation, layer, tokens, sequences, keys })
        };
        let in_layers = Operation::ALL[2..12].iter();
        let inside = (0..self.layers.len()).flat_map(|layer| in_layers.clone().map(move |&op| (op, Some(layer))));
        let outside = [Operation::Embed, Operation::HeadNorm, Operation::Head].map(|operation| (operation, None));
        inside.chain(outside).map(cost).collect()
    }

    /// Bytes of the keys and values of one position in one layer.
    fn position_bytes(&self) -> usize {
        let head_dim = self.config.head_dim;
        2 * self.config.kv_heads * self.cache.map_or(head_dim * ACTIVATION, |cache| cache.row_bytes(head_dim))
    }

    /// For one sequence: the number of positions that at least one query attends to, and the number of pairs of a query and a position
    /// that it attends to.
    fn visible(&self, layer: Option<usize>, tokens: usize, keys: usize) -> (usize, u64) {
        let window = match layer.map(|number| self.config.attention[number]) {
            Some(AttentionKind::Sliding) => self.config.sliding_window,
            _ => usize::MAX,
        };
        let earlier = keys.saturating_sub(tokens);
        let pairs = (1..=tokens).map(|nth| (earlier + nth).min(window) as u64).sum();
        (keys.min(window.saturating_add(tokens - 1)), pairs)
    }

    /// Expected number of distinct experts that `tokens` tokens choose, if all choices are equally likely.
    fn experts_touched(&self, tokens: usize) -> f64 {
        let (experts, chosen) = (self.config.experts as f64, self.config.experts_per_token as f64);
        experts * (1.0 - (1.0 - chosen / experts).powi(tokens as i32))
    }
}
