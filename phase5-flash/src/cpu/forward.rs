//! The forward pass of a step, top to bottom.
//!
//! Shapes are as in phase 2, with the new tokens of all sequences as one matrix `[tokens, hidden]`. A product, except the router's, is
//! split into tasks of 32 weight rows for the threads of the pool.

use cpu_kernels::{
    Isa, PackedRows, Panel, PanelFormat, Pool, SMALL_BATCH, Shared, TILE, multiply_panel, multiply_prepared,
    multiply_small_batch, rms_norm,
};
use phase1_loading::GptOssConfig;
use phase2_forward::{Operation, Probe, Rope, Span};

use super::cache::Cache;
use super::model::{Layer, Matrix, Model};
use super::part::Part;
use super::scratch::{Scratch, ThreadScratch, grow};

/// Router logits (experts) per task.
const ROUTER_TILE: usize = 8;

/// The model, and what is needed to compute it.
pub(super) struct Forward {
    pub config: GptOssConfig,
    pub rope: Rope,
    pub model: Model,
    pub pool: Pool,
    pub isa: Isa,
    pub exact: bool,
}

/// The input of a product.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    /// At most [`SMALL_BATCH`] rows.
    SmallBatch([&'a [f32]; SMALL_BATCH], usize),
    /// At most [`SMALL_BATCH`] prepared rows, for MXFP4.
    Prepared([&'a [u32]; SMALL_BATCH], usize),
    Panel(&'a Panel),
}

/// Collects `count` rows, at most [`SMALL_BATCH`], and returns them with `count`.
pub(super) fn small_batch<'a, T>(count: usize, row: impl Fn(usize) -> &'a [T]) -> ([&'a [T]; SMALL_BATCH], usize) {
    (std::array::from_fn(|i| if i < count { row(i) } else { &[] }), count)
}

impl Forward {
    /// Computes all layers for the new tokens. The result is the residual stream in the scratch.
    pub fn layers(
        &self,
        cache: &mut Cache,
        s: &mut Scratch,
        tokens: &[u32],
        parts: &[Part<'_>],
        probe: &mut dyn Probe,
    ) {
        let (n, sequences) = (tokens.len(), parts.len());
        self.prepare(s, n);
        self.angles(s, parts);
        probe.done(Span { operation: Operation::Mask, layer: None, tokens: n, sequences, keys: 0 });

        self.embed(s, tokens);
        let hidden = self.config.hidden;
        observe(probe, || "embed".into(), &s.x, n, hidden);
        probe.done(Span { operation: Operation::Embed, layer: None, tokens: n, sequences, keys: 0 });
        for (number, layer) in self.model.layers.iter().enumerate() {
            let span = |operation, keys| Span { operation, layer: Some(number), tokens: n, sequences, keys };
            self.norm(&s.x, &layer.attention_norm, n, |row| row, &mut s.h);
            probe.done(span(Operation::AttentionNorm, 0));
            self.qkv(layer, s, n);
            probe.done(span(Operation::Qkv, 0));
            self.append(cache, s, number, parts);
            let keys = self.visible_keys(cache, number, parts);
            probe.done(span(Operation::CacheAppend, keys));
            self.attention(cache, s, number, parts);
            probe.done(span(Operation::Attention, keys));
            self.attention_out(layer, s, n);
            observe(probe, || format!("layers.{number}.resid_attn"), &s.x, n, hidden);
            probe.done(span(Operation::AttentionOut, 0));

            self.norm(&s.x, &layer.mlp_norm, n, |row| row, &mut s.h);
            probe.done(span(Operation::MlpNorm, 0));
            self.router(layer, s, n);
            observe(probe, || format!("layers.{number}.router_logits"), &s.router_logits, n, self.config.experts);
            s.choices.choose(
                &s.router_logits[..n * self.config.experts],
                self.config.experts,
                self.config.experts_per_token,
            );
            probe.done(span(Operation::Router, 0));
            self.gate_up(layer, s);
            probe.done(span(Operation::GateUp, 0));
            self.down(layer, s);
            observe(probe, || format!("layers.{number}.resid_mlp"), &s.x, n, hidden);
            probe.done(span(Operation::Down, 0));
        }
    }

    fn prepare(&self, s: &mut Scratch, n: usize) {
        let config = &self.config;
        let dim = config.head_dim;
        grow(&mut s.x, n * config.hidden);
        grow(&mut s.h, n * config.hidden);
        grow(&mut s.q, n * config.heads * dim);
        grow(&mut s.attention_out, n * config.heads * dim);
        grow(&mut s.k, n * config.kv_heads * dim);
        grow(&mut s.v, n * config.kv_heads * dim);
        grow(&mut s.cosines, n * dim / 2);
        grow(&mut s.sines, n * dim / 2);
        grow(&mut s.router_logits, n * config.experts);
        grow(&mut s.hidden, n * config.experts_per_token * config.expert_width);
        s.expert_inputs.panels.resize_with(config.experts, Panel::default);
        grow(&mut s.expert_inputs.prepared, n * config.experts_per_token * config.hidden.max(config.expert_width));
        s.threads.resize_with(self.pool.threads(), ThreadScratch::default);
        for thread in &mut s.threads {
            thread.tiles.iter_mut().for_each(|tile| grow(tile, n * TILE));
        }
    }

    /// Cosines and sines of the rotary embedding for each token's position, computed as in phase 2.
    fn angles(&self, s: &mut Scratch, parts: &[Part<'_>]) {
        let positions = parts.iter().flat_map(|part| part.tokens.start..part.tokens.start + part.tokens.count);
        let angles = positions.flat_map(|p| self.rope.inverse_frequencies.iter().map(move |f| p as f32 * f));
        for ((angle, cos), sin) in angles.zip(&mut s.cosines).zip(&mut s.sines) {
            (*cos, *sin) = (angle.cos() * self.rope.mscale, angle.sin() * self.rope.mscale);
        }
    }

    fn embed(&self, s: &mut Scratch, tokens: &[u32]) {
        let embedding = &self.model.embedding;
        for (&token, x) in tokens.iter().zip(s.x.chunks_exact_mut(self.config.hidden)) {
            embedding.decode_row(token as usize, x);
        }
    }

    /// RMS norm of `n` rows: row i of `out` is the norm of row `row(i)` of `x`.
    fn norm(&self, x: &[f32], weight: &[f32], n: usize, row: impl Fn(usize) -> usize + Sync, out: &mut [f32]) {
        let hidden = self.config.hidden;
        let out = Shared::new(out);
        self.pool.run(n, &|i, _| {
            // SAFETY: each task has its own row.
            let out = unsafe { out.part(i * hidden, hidden) };
            rms_norm(self.isa, &x[row(i) * hidden..][..hidden], weight, self.config.rms_eps, out);
        });
    }

    /// The panel format of inputs of these matrices.
    pub(super) fn panel_format(&self, matrices: &[&Matrix]) -> PanelFormat {
        let integers = !self.exact && matrices.iter().all(|matrix| matrix.storage.is_quantized());
        if integers { PanelFormat::I16 } else { PanelFormat::F32 }
    }

    /// Prepares `n` rows `x`, `[n, columns]`, as the input of products with `matrices`.
    fn input<'a>(&self, panel: &'a mut Panel, x: &'a [f32], n: usize, matrices: &[&Matrix]) -> Input<'a> {
        let columns = matrices[0].columns;
        let row = |i: usize| &x[i * columns..(i + 1) * columns];
        if n <= SMALL_BATCH {
            let (rows, count) = small_batch(n, row);
            return Input::SmallBatch(rows, count);
        }
        let filling = panel.begin(self.isa, self.panel_format(matrices), columns, n);
        // SAFETY: each group is packed by one task.
        self.pool.run(filling.groups(), &|group, _| unsafe { filling.pack(group, row) });
        Input::Panel(panel)
    }

    pub(super) fn multiply(&self, rows: PackedRows<'_>, input: Input<'_>, out: &mut [f32]) {
        match input {
            Input::SmallBatch(inputs, count) => multiply_small_batch(self.isa, rows, &inputs[..count], out),
            Input::Prepared(prepared, count) => multiply_prepared(self.isa, rows, &prepared[..count], out),
            Input::Panel(panel) => multiply_panel(self.isa, rows, panel, out),
        }
    }

    fn qkv(&self, layer: &Layer, s: &mut Scratch, n: usize) {
        let Scratch { h, q, k, v, panel, threads, .. } = s;
        let input = self.input(panel, h, n, &[&layer.q.weight, &layer.k.weight, &layer.v.weight]);
        let projections = [(&layer.q, Shared::new(q)), (&layer.k, Shared::new(k)), (&layer.v, Shared::new(v))];
        let tiles = projections.map(|(linear, _)| linear.weight.rows.div_ceil(TILE));
        let threads = Shared::new(threads);
        self.pool.run(tiles.iter().sum(), &|mut task, thread| {
            let mut which = 0;
            while task >= tiles[which] {
                task -= tiles[which];
                which += 1;
            }
            let (linear, out) = projections[which];
            let width = linear.weight.rows;
            let rows = linear.weight.rows_of(0, task * TILE, TILE);
            // SAFETY: each thread has its own scratch, and each task its own columns of the result.
            unsafe {
                let tile = &mut threads.part(thread, 1)[0].tiles[0];
                self.multiply(rows, input, tile);
                let bias = &linear.bias[task * TILE..][..rows.count()];
                for (token, y) in tile.chunks_exact(TILE).take(n).enumerate() {
                    let out = out.part(token * width + task * TILE, bias.len());
                    for ((out, y), bias) in out.iter_mut().zip(y).zip(bias) {
                        *out = y + bias;
                    }
                }
            }
        });
    }

    fn attention_out(&self, layer: &Layer, s: &mut Scratch, n: usize) {
        let hidden = self.config.hidden;
        let Scratch { x, attention_out, panel, threads, .. } = s;
        let input = self.input(panel, attention_out, n, &[&layer.o.weight]);
        let (x, threads) = (Shared::new(x), Shared::new(threads));
        self.pool.run(hidden.div_ceil(TILE), &|task, thread| {
            let rows = layer.o.weight.rows_of(0, task * TILE, TILE);
            let bias = &layer.o.bias[task * TILE..][..rows.count()];
            // SAFETY: each thread has its own scratch, and each task its own columns of the stream.
            unsafe {
                let tile = &mut threads.part(thread, 1)[0].tiles[0];
                self.multiply(rows, input, tile);
                for (token, y) in tile.chunks_exact(TILE).take(n).enumerate() {
                    let x = x.part(token * hidden + task * TILE, bias.len());
                    for ((x, y), bias) in x.iter_mut().zip(y).zip(bias) {
                        *x += y + bias;
                    }
                }
            }
        });
    }

    /// Router logits, always computed in f32. A task is a few tokens and a few experts.
    fn router(&self, layer: &Layer, s: &mut Scratch, n: usize) {
        let (hidden, experts) = (self.config.hidden, self.config.experts);
        let Scratch { h, router_logits, .. } = s;
        let logits = Shared::new(router_logits);
        let tiles = experts.div_ceil(ROUTER_TILE);
        self.pool.run(n.div_ceil(SMALL_BATCH) * tiles, &|task, _| {
            let (first, expert) = (task / tiles * SMALL_BATCH, task % tiles * ROUTER_TILE);
            let count = SMALL_BATCH.min(n - first);
            let rows = layer.router.weight.rows_of(0, expert, ROUTER_TILE);
            let bias = &layer.router.bias[expert..][..rows.count()];
            let mut tile = [0.0; SMALL_BATCH * TILE];
            let (inputs, count) = small_batch(count, |i| &h[(first + i) * hidden..][..hidden]);
            self.multiply(rows, Input::SmallBatch(inputs, count), &mut tile);
            for (i, y) in tile.chunks_exact(TILE).take(count).enumerate() {
                // SAFETY: each task has its own logits.
                let out = unsafe { logits.part((first + i) * experts + expert, bias.len()) };
                for ((out, y), bias) in out.iter_mut().zip(y).zip(bias) {
                    *out = y + bias;
                }
            }
        });
    }

    /// The final norm of the given rows of the residual stream, into the first rows of `h`.
    pub fn final_norm(&self, s: &mut Scratch, rows: &[usize], sequences: usize, probe: &mut dyn Probe) {
        let (hidden, count) = (self.config.hidden, rows.len());
        self.norm(&s.x, &self.model.final_norm, count, |i| rows[i], &mut s.h);
        observe(probe, || "final_norm".into(), &s.h, count, hidden);
        probe.done(Span { operation: Operation::HeadNorm, layer: None, tokens: count, sequences, keys: 0 });
    }

    /// Logits of the first `count` rows of `h`, `[count, vocab]`.
    pub fn head(&self, s: &mut Scratch, count: usize, sequences: usize, probe: &mut dyn Probe) -> Vec<f32> {
        let vocab = self.config.vocab;
        let Scratch { h, panel, threads, .. } = s;
        let input = self.input(panel, h, count, &[&self.model.head]);
        let mut logits = vec![0.0; count * vocab];
        let (all, threads) = (Shared::new(&mut logits), Shared::new(threads));
        self.pool.run(vocab.div_ceil(TILE), &|task, thread| {
            let weights = self.model.head.rows_of(0, task * TILE, TILE);
            // SAFETY: each thread has its own scratch, and each task its own columns of the logits.
            unsafe {
                let tile = &mut threads.part(thread, 1)[0].tiles[0];
                self.multiply(weights, input, tile);
                for (row, y) in tile.chunks_exact(TILE).take(count).enumerate() {
                    let out = all.part(row * vocab + task * TILE, weights.count());
                    out.copy_from_slice(&y[..weights.count()]);
                }
            }
        });
        probe.done(Span { operation: Operation::Head, layer: None, tokens: count, sequences, keys: 0 });
        logits
    }
}

/// Reports the first `rows` rows to a probe.
fn observe(probe: &mut dyn Probe, name: impl Fn() -> String, values: &[f32], rows: usize, width: usize) {
    probe.observe(&name, &|| ([rows, width], values[..rows * width].to_vec()));
}
