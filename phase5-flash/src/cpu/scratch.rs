//! The buffers of a step. They are kept between steps, so that decoding a token allocates nothing here.

use cpu_kernels::{Bound, CoarseInputs, Panel};
use phase2_forward::HostDraw;

#[derive(Default)]
pub(super) struct Scratch {
    /// The residual stream `[tokens, hidden]`, and its norm.
    pub x: Vec<f32>,
    pub h: Vec<f32>,
    /// The queries `[tokens, heads · head_dim]`, and the results of attention.
    pub q: Vec<f32>,
    pub attention_out: Vec<f32>,
    /// Partial results of attention over shares of a long sequence's keys, by task.
    pub shares: Vec<f32>,
    /// `[tokens, kv_heads · head_dim]`
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    /// Cosines and sines, `[tokens, head_dim / 2]`.
    pub cosines: Vec<f32>,
    pub sines: Vec<f32>,
    /// `[tokens, experts]`
    pub router_logits: Vec<f32>,
    pub choices: Choices,
    /// Activations of the chosen experts after SwiGLU, `[tokens · chosen, expert_width]`, in the order of `choices`.
    pub hidden: Vec<f32>,
    /// The input of products with all tokens.
    pub panel: Panel,
    pub expert_inputs: ExpertInputs,
    pub shortlist: Shortlist,
    pub threads: Vec<ThreadScratch>,
}

/// Packed inputs of the chosen experts.
#[derive(Default)]
pub(super) struct ExpertInputs {
    /// For each entry of [`Choices::experts`] with more than a few tokens, its inputs.
    pub panels: Vec<Panel>,
    /// The inputs of the other experts, `[tokens · chosen, columns]`.
    pub prepared: Vec<u32>,
}

/// Buffers of the shortlist: the rows of the head that can have the largest logits.
#[derive(Default)]
pub(super) struct Shortlist {
    pub inputs: CoarseInputs,
    /// Estimates `[tiles, tokens, 32]` and their bounds `[tiles, tokens]`.
    pub estimates: Vec<f32>,
    pub bounds: Vec<Bound>,
    pub candidates: Vec<Candidate>,
}

/// A row of the head that can have the largest logit of an input.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub input: usize,
    pub row: usize,
    pub logit: f32,
}

/// The scratch of one thread.
#[derive(Default)]
pub(super) struct ThreadScratch {
    /// Results of two tiles, each `[tokens, 32]`.
    pub tiles: [Vec<f32>; 2],
    pub attention: Vec<f32>,
    pub host: HostDraw,
}

/// The router's choice: which tokens go to which expert.
#[derive(Default)]
pub(super) struct Choices {
    /// The experts that at least one token chose.
    pub experts: Vec<Chosen>,
    /// (token, routing weight), grouped by expert.
    pub tokens: Vec<(usize, f32)>,
    /// (logit, expert) of one token, while its experts are chosen.
    order: Vec<(f32, usize)>,
    weights: Vec<f32>,
    /// (expert, token, weight) of all choices, `[tokens · chosen]`.
    all: Vec<(usize, usize, f32)>,
}

/// An expert, and its range of [`Choices::tokens`].
#[derive(Clone, Copy)]
pub(super) struct Chosen {
    pub expert: usize,
    pub first: usize,
    pub count: usize,
}

impl Choices {
    /// Chooses, for each token, the `chosen` experts with the largest logits. Their weights are the softmax over these logits.
    pub fn choose(&mut self, router_logits: &[f32], experts: usize, chosen: usize) {
        self.all.clear();
        for (token, logits) in router_logits.chunks_exact(experts).enumerate() {
            self.order.clear();
            self.order.extend(logits.iter().copied().zip(0..));
            self.order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            self.weights.clear();
            self.weights.extend(self.order[..chosen].iter().map(|&(logit, _)| logit));
            cpu_kernels::softmax(&mut self.weights);
            let picked = self.order.iter().zip(&self.weights);
            self.all.extend(picked.map(|(&(_, expert), &weight)| (expert, token, weight)));
        }
        self.all.sort_unstable_by_key(|&(expert, token, _)| (expert, token));
        self.experts.clear();
        self.tokens.clear();
        for &(expert, token, weight) in &self.all {
            match self.experts.last_mut() {
                Some(last) if last.expert == expert => last.count += 1,
                _ => self.experts.push(Chosen { expert, first: self.tokens.len(), count: 1 }),
            }
            self.tokens.push((token, weight));
        }
    }
}

/// Grows a buffer to at least `len` elements.
pub(super) fn grow<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}
