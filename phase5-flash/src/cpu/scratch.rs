//! Buffers of a step, kept from step to step: decoding one token allocates none of them.

use cpu_kernels::{Bound, CoarseInputs, Panel};
use phase2_forward::HostDraw;

#[derive(Default)]
pub(super) struct Scratch {
    /// The residual stream, `[tokens, hidden]`; the same normalized.
    pub x: Vec<f32>,
    pub h: Vec<f32>,
    /// `[tokens, heads · head_dim]`, and what attention makes of them.
    pub q: Vec<f32>,
    pub mixed: Vec<f32>,
    /// Results of attention's shares, task by task.
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
    /// Hidden layers of the chosen experts, `[tokens · chosen, expert_width]`, in the order of `choices`.
    pub hidden: Vec<f32>,
    /// The input of a matrix that all tokens pass.
    pub panel: Panel,
    pub expert_inputs: ExpertInputs,
    pub shortlist: Shortlist,
    pub threads: Vec<ThreadScratch>,
}

/// Inputs of the chosen experts, as their products take them.
#[derive(Default)]
pub(super) struct ExpertInputs {
    /// By place in [`Choices::experts`], of those that have more than a few.
    pub panels: Vec<Panel>,
    /// `[tokens · chosen, columns]`, of the others.
    pub strips: Vec<u32>,
}

/// What is known of logits before any is computed.
#[derive(Default)]
pub(super) struct Shortlist {
    pub inputs: CoarseInputs,
    /// By tile of the head: `[tokens, 32]`, and `[tokens]`.
    pub estimates: Vec<f32>,
    pub bounds: Vec<Bound>,
    pub candidates: Vec<Candidate>,
}

/// A row of the head that may have an input's largest logit.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub input: usize,
    pub row: usize,
    pub logit: f32,
}

/// What a thread needs for itself.
#[derive(Default)]
pub(super) struct ThreadScratch {
    /// Results of a tile, `[tokens, 32]`, and of a second one.
    pub tiles: [Vec<f32>; 2],
    pub attention: Vec<f32>,
    pub host: HostDraw,
}

/// Which tokens go to which expert.
#[derive(Default)]
pub(super) struct Choices {
    /// Experts that some token chose.
    pub experts: Vec<Chosen>,
    /// Tokens and their weights, expert by expert.
    pub tokens: Vec<(usize, f32)>,
    /// Of one token while it chooses: logits and experts.
    order: Vec<(f32, usize)>,
    weights: Vec<f32>,
    /// `[tokens · chosen]`: expert, token, weight.
    all: Vec<(usize, usize, f32)>,
}

/// An expert and its places in [`Choices::tokens`].
#[derive(Clone, Copy)]
pub(super) struct Chosen {
    pub expert: usize,
    pub first: usize,
    pub count: usize,
}

impl Choices {
    /// Every token chooses the `chosen` experts with the largest logits; their softmax are its weights.
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

/// Makes a buffer at least `len` long.
pub(super) fn grow<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}
