//! The whole architecture of GPT-OSS.
//!
//! Shapes are written `[tokens, hidden]`. `n` new tokens attend to `m` keys.

use std::ops::Range;

use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{Int, Tensor, TensorData};
use phase1_loading::constants::{SWIGLU_ALPHA, SWIGLU_LIMIT};
use phase1_loading::{AttentionKind, Checkpoint, GptOssConfig, HostTensor, LoadError, check_scales};

use crate::device::{ComputeDevice, ModelNeeds};
use crate::packed::{PackedMatrix, device_format, packed_matmul};
use crate::probe::{Activation, Operation, Probe, Span};
use crate::rope::{Rope, rotate};

/// A model on a device.
pub struct GptOss {
    pub config: GptOssConfig,
    pub rope: Rope,
    pub device: ComputeDevice,
    /// `[vocab, hidden]`. Stays in the mapped file on every device: only rows that are looked up are unpacked.
    embedding: HostTensor,
    layers: Vec<Layer>,
    final_norm: Tensor<1>,
    head: Linear,
}

struct Layer {
    attention: AttentionKind,
    attention_norm: Tensor<1>,
    q: Linear,
    k: Linear,
    v: Linear,
    /// Attention sinks: one learned logit per query head, which is added to the softmax's denominator only. `[heads]`
    sinks: Tensor<1>,
    o: Linear,
    mlp_norm: Tensor<1>,
    router: Linear,
    gate: Experts,
    up: Experts,
    down: Experts,
}

/// The source of keys and values of earlier tokens.
pub trait KvCache {
    /// The position of every key that [`KvCache::extend`] will return in layers of this kind, in the same order, when
    /// the tokens at positions `new` are added.
    fn positions(&self, attention: AttentionKind, new: Range<usize>) -> Vec<usize>;

    /// Adds the keys and values `[kv_heads, n, head_dim]` of the new tokens in `layer`. Returns the keys and values `[kv_heads, m,
    /// head_dim]` that the queries of the new tokens may attend to.
    fn extend(&mut self, layer: usize, keys: Tensor<3>, values: Tensor<3>) -> (Tensor<3>, Tensor<3>);
}

impl GptOss {
    /// Runs the model on new tokens of one sequence; the first of them has the position `start`.
    ///
    /// Returns the logits `[wanted, vocab]` of the new tokens with the indices `wanted`, counted from the first new token; `None` if the
    /// range is empty.
    pub fn forward(
        &self,
        tokens: &[u32],
        start: usize,
        wanted: Range<usize>,
        cache: &mut dyn KvCache,
        probe: &mut dyn Probe,
    ) -> Option<Tensor<2>> {
        let n = tokens.len();
        let new = start..start + n;
        let rope = self.rope.at(new.clone(), &self.device.burn);
        let mask = |attention| {
            let keys = cache.positions(attention, new.clone());
            self.mask(attention, new.clone(), &keys)
        };
        let (sliding_mask, full_mask) = (mask(AttentionKind::Sliding), mask(AttentionKind::Full));
        probe.done(Span { operation: Operation::Mask, layer: None, tokens: n, sequences: 1, keys: 0 });

        let mut x = self.embed(tokens);
        probe.observe(&|| "embed".into(), &|| on_host(&x));
        probe.done(Span { operation: Operation::Embed, layer: None, tokens: n, sequences: 1, keys: 0 });
        for (number, layer) in self.layers.iter().enumerate() {
            let span = |operation, keys| Span { operation, layer: Some(number), tokens: n, sequences: 1, keys };
            let h = self.rms_norm(x.clone(), &layer.attention_norm);
            probe.done(span(Operation::AttentionNorm, 0));
            let q = self.split_heads(layer.q.forward(h.clone()));
            let k = self.split_heads(layer.k.forward(h.clone()));
            let v = self.split_heads(layer.v.forward(h));
            probe.done(span(Operation::Qkv, 0));
            let (q, k) = (rotate(q, &rope), rotate(k, &rope));
            probe.done(span(Operation::Rope, 0));
            let (k, v) = cache.extend(number, k, v);
            let [_, keys, _] = k.dims();
            probe.done(span(Operation::CacheAppend, keys));
            let mask = match layer.attention {
                AttentionKind::Sliding => &sliding_mask,
                AttentionKind::Full => &full_mask,
            };
            let mixed = join_heads(attention(q, k, v, &layer.sinks, mask));
            probe.done(span(Operation::Attention, keys));
            x = x + layer.o.forward(mixed);
            probe.observe(&|| format!("layers.{number}.resid_attn"), &|| on_host(&x));
            probe.done(span(Operation::AttentionOut, 0));

            let h = self.rms_norm(x.clone(), &layer.mlp_norm);
            probe.done(span(Operation::MlpNorm, 0));
            let router_logits = layer.router.forward(h.clone());
            probe.observe(&|| format!("layers.{number}.router_logits"), &|| on_host(&router_logits));
            x = x + self.mixture_of_experts(layer, h, router_logits, &mut |operation| probe.done(span(operation, 0)));
            probe.observe(&|| format!("layers.{number}.resid_mlp"), &|| on_host(&x));
            probe.done(span(Operation::Down, 0));
        }
        if wanted.is_empty() {
            return None;
        }
        let rows = wanted.len();
        let x = x.narrow(0, wanted.start, rows);
        let h = self.rms_norm(x, &self.final_norm);
        probe.observe(&|| "final_norm".into(), &|| on_host(&h));
        probe.done(Span { operation: Operation::HeadNorm, layer: None, tokens: rows, sequences: 1, keys: 0 });
        let logits = self.head.forward(h);
        probe.done(Span { operation: Operation::Head, layer: None, tokens: rows, sequences: 1, keys: 0 });
        Some(logits)
    }

    /// `[n]` tokens to their embeddings, `[n, hidden]`, without a scaling factor.
    fn embed(&self, tokens: &[u32]) -> Tensor<2> {
        let hidden = self.config.hidden;
        let mut rows = vec![0.0; tokens.len() * hidden];
        for (&token, values) in tokens.iter().zip(rows.chunks_exact_mut(hidden)) {
            self.embedding.decode_row(token as usize, values);
        }
        Tensor::from_data(TensorData::new(rows, [tokens.len(), hidden]), &self.device.burn)
    }

    /// `x / √(mean(x²) + ε) · w` over the last dimension of `[n, hidden]`.
    fn rms_norm(&self, x: Tensor<2>, weight: &Tensor<1>) -> Tensor<2> {
        let mean_square = (x.clone() * x.clone()).mean_dim(1);
        x / (mean_square + self.config.rms_eps).sqrt() * weight.clone().unsqueeze()
    }

    /// `[n, heads · head_dim]` to `[heads, n, head_dim]`.
    fn split_heads(&self, x: Tensor<2>) -> Tensor<3> {
        let [n, width] = x.dims();
        let dim = self.config.head_dim;
        x.reshape([n, width / dim, dim]).swap_dims(0, 1)
    }

    /// `[1, n, m]`: 0 where the query may see the key, −∞ where it may not.
    fn mask(&self, attention: AttentionKind, queries: Range<usize>, keys: &[usize]) -> Tensor<3> {
        let reach = match attention {
            AttentionKind::Sliding => self.config.sliding_window,
            AttentionKind::Full => usize::MAX,
        };
        let visible = |query: usize, key: usize| key <= query && query - key < reach;
        let shape = [1, queries.len(), keys.len()];
        let values: Vec<f32> = queries
            .flat_map(|query| keys.iter().map(move |&key| if visible(query, key) { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        Tensor::from_data(TensorData::new(values, shape), &self.device.burn)
    }

    /// The weighted sum of the chosen experts' outputs, `[n, hidden]`, from the router's logits `[n, experts]`. Calls `done` when the
    /// router has ended, and when gate and up have ended.
    fn mixture_of_experts(
        &self,
        layer: &Layer,
        h: Tensor<2>,
        router_logits: Tensor<2>,
        done: &mut dyn FnMut(Operation),
    ) -> Tensor<2> {
        let [n, hidden] = h.dims();
        let chosen_per_token = self.config.experts_per_token;
        let (top, chosen) = router_logits.topk_with_indices(chosen_per_token, 1);
        let weights = softmax(top, 1);
        done(Operation::Router);

        // Each token is repeated once per chosen expert; from here on every copy is a row.
        let chosen: Tensor<1, Int> = chosen.reshape([n * chosen_per_token]);
        let h = h.unsqueeze_dim::<3>(1).repeat_dim(1, chosen_per_token).reshape([n * chosen_per_token, hidden]);
        let gate = layer.gate.forward(h.clone(), &chosen);
        let up = layer.up.forward(h, &chosen);
        let h = swiglu(gate, up);
        done(Operation::GateUp);

        let y = layer.down.forward(h, &chosen);
        let y = y.reshape([n, chosen_per_token, hidden]) * weights.unsqueeze_dim(2);
        y.sum_dim(1).squeeze_dim(1)
    }
}

/// Softmax attention of queries `[heads, n, dim]` over keys and values `[kv_heads, m, dim]`, each head with a sink:
/// `p_j = exp(s_j) / (Σ exp(s_j) + exp(sink))`.
fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, sinks: &Tensor<1>, mask: &Tensor<3>) -> Tensor<3> {
    let [heads, n, dim] = q.dims();
    let [kv_heads, m, _] = k.dims();
    // Query heads that share a key/value head become further rows of one product.
    let grouped_rows = heads / kv_heads * n;
    let scores = q.reshape([kv_heads, grouped_rows, dim]).matmul(k.transpose()) / (dim as f32).sqrt();
    let scores = scores.reshape([heads, n, m]) + mask.clone();
    let sinks = sinks.clone().reshape([heads, 1, 1]).expand([heads, n, 1]);
    let p = softmax(Tensor::cat(vec![scores, sinks], 2), 2).narrow(2, 0, m);
    p.reshape([kv_heads, grouped_rows, m]).matmul(v).reshape([heads, n, dim])
}

/// Copies an intermediate result to the host, which waits for the device.
fn on_host(values: &Tensor<2>) -> Activation {
    (values.dims(), values.to_data().try_to_vec().expect("activations are f32"))
}

/// The inverse of `split_heads`: `[heads, n, head_dim]` to `[n, heads · head_dim]`.
fn join_heads(x: Tensor<3>) -> Tensor<2> {
    let [heads, n, dim] = x.dims();
    x.swap_dims(0, 1).reshape([n, heads * dim])
}

/// GPT-OSS's gated activation: gate is clamped from above, up from both sides, and 1 is added to up.
fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let (limit, alpha) = (SWIGLU_LIMIT as f32, SWIGLU_ALPHA as f32);
    let gate = gate.clamp_max(limit);
    let up = up.clamp(-limit, limit);
    (up + 1.0) * gate.clone() * sigmoid(gate * alpha)
}

/// `W x + b`.
struct Linear {
    weight: PackedMatrix,
    bias: Option<Tensor<1>>,
}

impl Linear {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let only_matrix = Tensor::zeros([x.dims()[0]], &x.device());
        let y = packed_matmul(x, &self.weight, only_matrix);
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}

/// One projection (gate, up or down) of all experts.
struct Experts {
    weight: PackedMatrix,
    /// `[experts, out]`
    bias: Tensor<2>,
}

impl Experts {
    /// Multiplies row i of `x` by the matrix of expert `chosen[i]`, and adds the expert's bias.
    fn forward(&self, x: Tensor<2>, chosen: &Tensor<1, Int>) -> Tensor<2> {
        packed_matmul(x, &self.weight, chosen.clone()) + self.bias.clone().select(0, chosen.clone())
    }
}

impl GptOss {
    /// A checkpoint's requirements on a GPU. Weights in formats that the GPU's kernel does not support are counted as F32, and the
    /// embedding is counted although it stays in the mapped file.
    pub fn needs(checkpoint: &Checkpoint) -> ModelNeeds {
        let on_gpu = |tensor: &HostTensor| device_format(tensor.format).row_bytes(tensor.row_len()) * tensor.rows();
        let bytes = checkpoint.tensors.values().map(|tensor| on_gpu(tensor) as u64).sum();
        ModelNeeds { bytes, layers: checkpoint.config.layers() }
    }

    /// Loads a checkpoint's weights onto a device. On the CPU the matrices stay in the mapped file, and vectors and biases are copied as
    /// F32. On a GPU everything is uploaded except the embedding. On both, `progress` is called for each tensor with (bytes so far, total
    /// bytes).
    ///
    /// # Errors
    /// A weight is invalid (see [`check_scales`]).
    pub fn load(
        checkpoint: &Checkpoint,
        device: ComputeDevice,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<GptOss, LoadError> {
        let config = checkpoint.config.clone();
        let mut loader = Loader { checkpoint, device: &device, done: 0, progress };
        let mut layers = Vec::new();
        for (number, &attention) in config.attention.iter().enumerate() {
            let name = |part: &str| format!("blk.{number}.{part}");
            layers.push(Layer {
                attention,
                attention_norm: loader.vector(&name("attn_norm.weight")),
                q: loader.linear(&name("attn_q"))?,
                k: loader.linear(&name("attn_k"))?,
                v: loader.linear(&name("attn_v"))?,
                sinks: loader.vector(&name("attn_sinks.weight")),
                o: loader.linear(&name("attn_output"))?,
                mlp_norm: loader.vector(&name("post_attention_norm.weight")),
                router: loader.linear(&name("ffn_gate_inp"))?,
                gate: loader.experts(&name("ffn_gate_exps"))?,
                up: loader.experts(&name("ffn_up_exps"))?,
                down: loader.experts(&name("ffn_down_exps"))?,
            });
        }
        let final_norm = loader.vector("output_norm.weight");
        let embedding = loader.looked_up("token_embd.weight")?;
        let head = Linear { weight: loader.packed("output.weight")?, bias: None };
        Ok(GptOss {
            rope: Rope::new(&config.rope, config.head_dim),
            embedding,
            config,
            layers,
            final_norm,
            head,
            device,
        })
    }
}

/// Creates tensors on a device from the tensors of a checkpoint.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a ComputeDevice,
    done: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Loader<'_> {
    fn vector(&mut self, name: &str) -> Tensor<1> {
        let tensor = self.checkpoint.tensor(name);
        self.advance(tensor);
        Tensor::from_data(TensorData::new(tensor.to_f32(), [tensor.row_len()]), &self.device.burn)
    }

    fn packed(&mut self, name: &str) -> Result<PackedMatrix, LoadError> {
        let tensor = self.checkpoint.tensor(name);
        check_scales(&self.checkpoint.path, name, tensor)?;
        self.advance(tensor);
        Ok(PackedMatrix::new(tensor, self.device))
    }

    /// A matrix that stays on the host, because only some of its rows are looked up.
    fn looked_up(&mut self, name: &str) -> Result<HostTensor, LoadError> {
        let tensor = self.checkpoint.tensor(name);
        check_scales(&self.checkpoint.path, name, tensor)?;
        self.advance(tensor);
        Ok(tensor.clone())
    }

    fn linear(&mut self, name: &str) -> Result<Linear, LoadError> {
        let bias = Some(self.vector(&format!("{name}.bias")));
        Ok(Linear { weight: self.packed(&format!("{name}.weight"))?, bias })
    }

    fn experts(&mut self, name: &str) -> Result<Experts, LoadError> {
        let bias = self.checkpoint.tensor(&format!("{name}.bias"));
        self.advance(bias);
        let shape = [bias.rows(), bias.row_len()];
        let bias = Tensor::from_data(TensorData::new(bias.to_f32(), shape), &self.device.burn);
        Ok(Experts { weight: self.packed(&format!("{name}.weight"))?, bias })
    }

    fn advance(&mut self, tensor: &HostTensor) {
        self.done += tensor.bytes() as u64;
        (self.progress)(self.done, self.checkpoint.weight_bytes());
    }
}
